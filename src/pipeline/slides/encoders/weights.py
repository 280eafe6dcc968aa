"""Checkpoints: fetched, read without executing anything, renamed to timm's names, and checked against the network they are for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.machine import machine_fault
from pipeline.slides.encoders.table import EncoderSpec
from pipeline.tensors import check_tensors

WRAPPERS = ("state_dict", "model", "teacher")  # keys under which training code likes to hide the weights
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
COUNTER = "num_batches_tracked"  # of BatchNorm; no feature depends on it

LAYER = r"encoder\.layer\.(\d+)\."
TRANSFORMERS_NAMES = [  # of the ViT and Dinov2 classes of `transformers`, and the same weight in timm
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (LAYER + r"(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (LAYER + r"(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (LAYER + r"attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (LAYER + r"(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.", r"blocks.\1.mlp.fc1."),
    (LAYER + r"(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.", r"blocks.\1.mlp.fc2."),
    (r"layernorm\.", "norm."),
]
QUERY_KEY_VALUE = re.compile(LAYER + r"attention\.attention\.(query|key|value)\.(weight|bias)")
MASK = "embeddings.mask_token"  # stands for hidden patches in training


def checkpoint_of(spec: EncoderSpec) -> Path:
    """The file with the weights of `spec`: its checkpoint, or fetched from its source (and kept by the hub's cache).

    Raises `InputError` when there is none, it is not the one expected, or it cannot be fetched.
    """
    if spec.checkpoint is None:
        if spec.source is None:
            raise InputError(f"encoder {spec.name!r} has neither a checkpoint nor a source of weights", remedy=spec.remedy)
        return _fetch(spec.source, spec)
    path = spec.existing_checkpoint()
    if spec.sha256 and (found := sha256(path)) != spec.sha256:
        raise InputError("not the expected checkpoint", file=path, column="sha256", found=found, expected=spec.sha256)
    return path


def _fetch(source: str, spec: EncoderSpec) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = source.partition("@")
    error: Exception | None = None
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except EntryNotFoundError as absent:
            error = error or absent
        except Exception as failed:  # what a download raises is the choice of three libraries
            error = failed
            break
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    problem = f"encoder {spec.name!r}: the weights could not be fetched from hf-hub:{source} ({reason})"
    raise InputError(problem, remedy=spec.remedy) from error


def read_weights(path: Path, remedy: str = "") -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by name; never executes what it may hide. Raises `InputError` when it holds anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        check_tensors(path)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError, ImportError) as error:
        raise machine_fault(error, path) or InputError(f"cannot be read as a checkpoint ({error})", file=path, remedy=remedy) from error
    except Exception as error:  # pickle.UnpicklingError: torch refuses anything but tensors
        raise InputError(f"holds more than weights ({type(error).__name__})", file=path, remedy=remedy) from error
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError("holds no table of weights", file=path, expected="a state dict", remedy=remedy)
    return {name.removeprefix("module."): value for name, value in state.items()}


def timm_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under timm's names: a checkpoint of `transformers` is renamed, any other comes back as it is.

    Query, key and value are stacked in this order. With register tokens, timm's networks have no position for the class token:
    it is added to the token itself, which gives the same sum.
    """
    if "embeddings.patch_embeddings.projection.weight" not in state:
        return dict(state)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    renamed: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if match := QUERY_KEY_VALUE.fullmatch(name):
            layer, part, kind = match.groups()
            parts.setdefault(f"blocks.{layer}.attn.qkv.{kind}", {})[part] = value
        elif name != MASK:
            renamed[_timm_name(name)] = value
    renamed |= {name: torch.cat([found[p] for p in ("query", "key", "value") if p in found]) for name, found in parts.items()}
    if "reg_token" in renamed:
        position = renamed["pos_embed"]
        renamed["cls_token"], renamed["pos_embed"] = renamed["cls_token"] + position[:, :1], position[:, 1:]
    return renamed


def _timm_name(name: str) -> str:
    for pattern, replacement in TRANSFORMERS_NAMES:
        if match := re.match(pattern, name):
            return match.expand(replacement) + name[match.end() :]
    return name


def load_weights(network: torch.nn.Module, path: Path, spec: EncoderSpec) -> None:
    """Put the weights of the checkpoint `path` into `network`, which may be on the meta device.

    Raises `InputError` when one is missing, unknown (and not listed in ``unused``) or of another shape.
    """
    state = {name: value for name, value in read_weights(path, spec.remedy).items() if not name.startswith(spec.unused or ("\0",))}
    state = timm_names(state)
    wanted = network.state_dict()
    expected = {name: tuple(value.shape) for name, value in wanted.items() if not name.endswith(COUNTER)}
    missing = sorted(set(expected) - set(state))
    foreign = sorted(name for name in set(state) - set(expected) if not name.endswith(COUNTER))
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
    values = {name: state[name].float() if name in expected else torch.zeros_like(value, device="cpu") for name, value in wanted.items()}
    network.load_state_dict(values, assign=True)
