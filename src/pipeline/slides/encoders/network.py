"""Patch encoders: what turns images into feature vectors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.slides.encoders import stain_texture
from pipeline.slides.encoders.table import EncoderSpec

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

HANDCRAFTED = "stain_texture"
WRAPPERS = ("state_dict", "model", "teacher")  # keys under which training code likes to hide the weights


class Encoder(Protocol):
    """What the slide stage asks of an encoder."""

    width: int

    def encode(self, patches: np.ndarray) -> np.ndarray:
        """float32 [B, width] of patches uint8 [B, H, W, 3]."""


def load_encoder(spec: EncoderSpec, device: str | None = None, batch_size: int = 64, threads: int = 1) -> Encoder:
    """The encoder, ready to use. `device` None = CUDA where there is one; `batch_size` bounds the images on the device at a time.
    `threads` compute on a CPU: a number of its own, because the last digits of the features depend on it.

    Raises `InputError` when the weights cannot be had, read, or do not fit the architecture.
    """
    if spec.architecture == HANDCRAFTED:
        return StainTextureEncoder()
    import torch

    torch.set_num_threads(threads)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return NetworkEncoder(_network(spec), spec, where, batch_size)


class StainTextureEncoder:
    """The handcrafted description as an encoder."""

    width = stain_texture.WIDTH

    def encode(self, patches: np.ndarray) -> np.ndarray:
        return stain_texture.describe(patches)


class NetworkEncoder:
    """A network that gets uint8 images; they are resized and normalised on the device, which moves a quarter of the bytes."""

    def __init__(self, network: torch.nn.Module, spec: EncoderSpec, device: torch.device, batch_size: int) -> None:
        import torch

        self.width, self.batch_size, self.device, self.input_size = spec.width, batch_size, device, spec.input_size
        self.network = network.eval().to(device, memory_format=torch.channels_last)
        self.mean, self.std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (spec.mean, spec.std))

    def encode(self, patches: np.ndarray) -> np.ndarray:
        features = np.zeros((len(patches), self.width), np.float32)
        done = 0
        while done < len(patches):  # the batch size may fall on the way
            part = self._encode(patches[done : done + self.batch_size])
            features[done : done + len(part)] = part
            done += len(part)
        return features

    def _encode(self, patches: np.ndarray) -> np.ndarray:
        """One batch; halved, for this and later batches, while it does not fit into the device's memory."""
        import torch

        try:
            return self._forward(patches)
        except torch.OutOfMemoryError:
            if len(patches) == 1:
                raise
            self.batch_size = max(1, len(patches) // 2)
            log.warning("out of memory on %s: batches of %d from here on", self.device, self.batch_size)
            torch.cuda.empty_cache()
        return self.encode(patches)

    def _forward(self, patches: np.ndarray) -> np.ndarray:
        import torch
        from torch.nn.functional import interpolate

        size = self.input_size
        with torch.inference_mode(), torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            images = torch.from_numpy(patches).to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
            if size and images.shape[-2:] != (size, size):
                images = interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
            output = self.network(((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last))
            if isinstance(output, list):  # a network cut after a stage gives maps [B, d, h, w]
                output = output[-1].mean((2, 3))
            features = output.float().cpu().numpy()
        if features.shape != (len(patches), self.width):
            expected = f"[{len(patches)}, {self.width}]"
            raise InputError("the encoder's output has another shape", column="width", found=list(features.shape), expected=expected)
        return features


def _network(spec: EncoderSpec) -> torch.nn.Module:
    import timm

    if spec.checkpoint is None:
        if spec.source is None:
            raise InputError(f"encoder {spec.name!r} has neither a checkpoint nor a source of weights", remedy=spec.remedy)
        try:
            return timm.create_model(spec.architecture, pretrained=True, pretrained_cfg_overlay={"hf_hub_id": spec.source}, **spec.options)
        except Exception as error:  # what a download raises is the choice of three libraries
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            problem = f"encoder {spec.name!r}: the weights could not be fetched from hf-hub:{spec.source} ({reason})"
            raise InputError(problem, remedy=spec.remedy) from error
    path = spec.existing_checkpoint()
    if spec.sha256 and (found := sha256(path)) != spec.sha256:
        raise InputError("not the expected checkpoint", file=path, column="sha256", found=found, expected=spec.sha256)
    network = timm.create_model(spec.architecture, pretrained=False, **spec.options)
    _load(network, _state(path, spec), path, spec)
    return network


def _state(path: Path, spec: EncoderSpec) -> dict[str, torch.Tensor]:
    """The weights by name; never executes what a checkpoint may hide."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"cannot be read as a checkpoint ({error})", file=path, remedy=spec.remedy) from error
    except Exception as error:  # pickle.UnpicklingError: torch refuses anything but tensors
        raise InputError(f"holds more than weights ({type(error).__name__})", file=path, remedy=spec.remedy) from error
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError("holds no table of weights", file=path, expected="a state dict", remedy=spec.remedy)
    return {name.removeprefix("module."): value for name, value in state.items()}


def _load(network: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path, spec: EncoderSpec) -> None:
    state = {name: value for name, value in state.items() if not name.startswith(spec.unused or ("\0",))}
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(state))
    foreign = sorted(name for name in set(state) - set(expected) if not name.endswith("num_batches_tracked"))
    misfits = [n for n, shape in expected.items() if n in state and tuple(state[n].shape) != shape]
    for names, problem in (
        (missing, "lacks weights"),
        (foreign, "has weights that are unknown"),
        (misfits, "has weights of another shape"),
    ):
        if names:
            found = f"{len(names)}, first {names[0]}"
            remedy = f"Check `architecture`, `options` and `unused` of encoder {spec.name!r} in config/encoders.yaml."
            raise InputError(
                f"{problem} to {spec.architecture}", file=path, found=found, expected=f"{len(expected)} weights", remedy=remedy
            )
    network.load_state_dict(state, strict=False)
