"""One copy of an encoder's network on one device: uint8 patches in, features out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import timm
import torch
from torch.nn.functional import interpolate

from pipeline.errors import InputError, nearest
from pipeline.slides.encoders.rewriting import cast_weights, compile_network, fold_batchnorm
from pipeline.slides.encoders.table import EncoderSpec
from pipeline.slides.encoders.weights import checkpoint_of, load_weights

log = logging.getLogger(__name__)

MEMORY_SHARE, LARGEST_BATCH = 0.7, 256  # of free device memory that a batch may take; images a batch (our choice)
PROBES = (2, 10)  # batch sizes whose memory is measured
HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Pooled(torch.nn.Module):
    """A network and the step from its output to one vector an image.

    Maps [B, d, h, w] (of a network cut after a stage) are averaged. ``class_and_mean``: of tokens [B, t, d] the class token and the
    mean of the patch tokens, without registers, [B, 2 d].
    """

    def __init__(self, network: torch.nn.Module, pooling: str) -> None:
        super().__init__()
        self.network, self.pooling, self.prefix = network, pooling, getattr(network, "num_prefix_tokens", 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.network(images)
        if self.pooling == "class_and_mean":
            return torch.cat([output[:, 0], output[:, self.prefix :].mean(1)], dim=1)
        return output[-1].mean((2, 3)) if isinstance(output, list) else output


def build_network(spec: EncoderSpec) -> torch.nn.Module:
    """The network of `spec` with its weights, pooled, in evaluation mode, on the CPU. Raises `InputError` (see `load_encoder`)."""
    path = checkpoint_of(spec)
    with torch.device("meta"):  # random weights for a billion parameters take longer than reading the real ones
        network = _create(spec)
    if any(name not in network.state_dict() for name, _ in network.named_buffers()):
        network = _create(spec)  # it computes tables of its own, which no checkpoint holds
    load_weights(network, path, spec)
    return Pooled(network.eval().requires_grad_(False), spec.pooling)


def _create(spec: EncoderSpec) -> torch.nn.Module:
    options = {key: getattr(timm.layers, value) if key == "mlp_layer" else value for key, value in spec.options.items()}
    if not timm.is_model(spec.architecture):
        remedy = nearest(spec.architecture, timm.list_models())
        raise InputError(f"encoder {spec.name!r}: timm has no such network", column="architecture", found=spec.architecture, remedy=remedy)
    try:
        return timm.create_model(spec.architecture, pretrained=False, **options)
    except TypeError as error:
        raise InputError(f"encoder {spec.name!r}: timm refuses the options ({error})", column="options", found=dict(options)) from error


class Replica:
    """A network on `device`. Images are resized and normalised there, which moves a quarter of the bytes.

    On a CPU, and when compiled, every batch is filled up to `batch_size`: a patch then has the same bits whatever its place and
    company, and nothing is compiled twice.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        spec: EncoderSpec,
        device: torch.device,
        *,
        precision: str = "float32",
        batch_size: int | None = None,
        threads: int = 1,
        compiled: bool = False,
    ) -> None:
        """`network` as `build_network` makes it; it is changed. `batch_size` None = as many as the device's memory holds."""
        self.spec, self.device, self.precision, self.threads = spec, device, precision, threads
        self.batch_size, self.compiled = batch_size or PROBES[0], False
        self._turn = threading.Lock()
        self.network = fold_batchnorm(network).to(device, memory_format=torch.channels_last)
        if precision in HALF:
            cast_weights(self.network, HALF[precision])
        mean, std = (255 * torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (spec.mean, spec.std))
        self._scale, self._shift = 1 / std, -mean / std
        if batch_size is None:
            self.batch_size = self._fitting_batch_size()
        if compiled:
            self._compile()

    @property
    def kind(self) -> str:
        """What the device is, as far as the last digits depend on it."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type} {torch.backends.cpu.get_cpu_capability()}"

    def encode(self, patches: np.ndarray) -> np.ndarray:
        """float32 [B, width] of patches uint8 [B, H, W, 3], for any B. Safe to call from two threads."""
        if self.device.type == "cpu":
            torch.set_num_threads(self.threads)  # the number is one of the calling thread
        features = np.zeros((len(patches), self.spec.width), np.float32)
        done = 0
        while done < len(patches):  # the batch size may fall on the way
            part = self._encode(patches[done : done + self.batch_size])
            features[done : done + len(part)] = part
            done += len(part)
        return features

    def _encode(self, patches: np.ndarray) -> np.ndarray:
        """One batch; halved, for this and later batches, while it does not fit into the device's memory."""
        size = self.batch_size
        filling = size - len(patches) if self.compiled or self.device.type == "cpu" else 0
        try:
            if filling > 0:
                return self._forward(np.concatenate([patches, np.zeros((filling, *patches.shape[1:]), np.uint8)]))[: len(patches)]
            return self._forward(patches)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        self.batch_size = min(self.batch_size, size // 2)
        log.warning("out of memory on %s: batches of %d from here on", self.device, self.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self.encode(patches)

    def _forward(self, patches: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(patches))
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        with self._turn, self._contexts():  # two threads prepare and collect by turns, one at a time fills the device's queue
            output = self.network(self._prepare(images)).float()
        features = output.cpu().numpy()
        if features.shape != (len(patches), self.spec.width):
            expected = f"[{len(patches)}, {self.spec.width}]"
            raise InputError("the encoder's output has another shape", column="width", found=list(features.shape), expected=expected)
        return features

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [B, 3, h, w], normalised, of uint8 [B, H, W, 3]."""
        spec, images = self.spec, images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        size = spec.resize or spec.input_size
        if size and images.shape[-2:] != (size, size):
            images = interpolate(images, (size, size), mode=spec.interpolation, antialias=True, align_corners=False)
            images = images.clamp_(0, 255)  # a cubic kernel overshoots
        if spec.input_size and spec.resize:
            margin = (spec.resize - spec.input_size) // 2
            images = images[..., margin : margin + spec.input_size, margin : margin + spec.input_size]
        return torch.addcmul(self._shift, images, self._scale).contiguous(memory_format=torch.channels_last)

    @contextmanager
    def _contexts(self) -> Iterator[None]:
        dtype = HALF.get(self.precision)
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            yield

    def _compile(self) -> None:
        if self.spec.input_size is None:
            log.warning("encoder %r names no input_size: it is not compiled", self.spec.name)
            return
        if self.device.type == "cpu":
            torch.set_num_threads(self.threads)
        with self._contexts():
            shape = (self.batch_size, self.spec.input_size, self.spec.input_size, 3)
            faster = compile_network(self.network, self._prepare(torch.zeros(shape, dtype=torch.uint8, device=self.device)))
        if faster is not None:
            self.network, self.compiled = faster, True

    def _fitting_batch_size(self) -> int:
        """As many images as fit, from the memory that two small batches take."""
        side, peaks = self.spec.input_size, []
        if side is None:
            return 32
        for size in (PROBES[0], *PROBES):  # the first fills caches of the device that stay
            torch.cuda.reset_peak_memory_stats(self.device)
            self._forward(np.zeros((size, side, side, 3), np.uint8))
            peaks.append(torch.cuda.max_memory_allocated(self.device))
        torch.cuda.empty_cache()
        return fitting_batch_size(peaks[1], peaks[2], torch.cuda.mem_get_info(self.device)[0])


def fitting_batch_size(small: int, large: int, free: int) -> int:
    """The largest power of two (at most `LARGEST_BATCH`) that takes `MEMORY_SHARE` of `free` bytes, from the peaks of both `PROBES`."""
    each = max((large - small) / (PROBES[1] - PROBES[0]), 1)
    images = max(1, int(min(MEMORY_SHARE * free / each, LARGEST_BATCH)))
    return 1 << (images.bit_length() - 1)
