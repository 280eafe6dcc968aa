"""Patch encoders: what turns images into feature vectors, on one device or several."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.errors import InputError, nearest
from pipeline.slides.encoders import stain_texture
from pipeline.slides.encoders.table import EncoderSpec

if TYPE_CHECKING:
    import torch

    from pipeline.slides.encoders.replica import Replica

log = logging.getLogger(__name__)

HANDCRAFTED = "stain_texture"
AUTO = "auto"
PRECISIONS = (AUTO, "float32", "float16", "bfloat16")
IN_FLIGHT = 2  # batches a device: one is computed while the next is being read
CPU_BATCH = 32  # fixed, because the last digits of the features may depend on it (our choice)
COMPILE_FROM = 2000  # patches from which a CPU earns back the 20 to 40 s of compiling (our choice, from benchmarks/encoders.py)


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder runs.

    device: ``auto`` (CUDA where there is one, else CPU), ``cpu``, ``cuda``, ``cuda:0``, or several of them. batch_size: images on a
    device at a time; ``auto`` = as many as its memory holds (CPU: 32). threads: that compute on a CPU. precision: ``auto`` =
    bfloat16 on CUDA (float16 where the GPU has none), float32 on a CPU. compile: ``auto`` = on a CPU, when `patches`, the number
    that the whole job encodes whether done or not, earns the compilation back.
    """

    device: str | Sequence[str] = AUTO
    batch_size: int | str = AUTO
    threads: int = 1
    precision: str = AUTO
    compile: bool | str = AUTO
    patches: int | None = None


class Encoder(Protocol):
    """What the slide stage asks of an encoder."""

    width: int

    @property
    def batch_size(self) -> int:
        """Images a batch that suit the devices best."""

    @property
    def in_flight(self) -> int:
        """Batches that `encode_all` holds at most."""

    def encode(self, patches: np.ndarray) -> np.ndarray:
        """float32 [B, width] of patches uint8 [B, H, W, 3]."""

    def encode_all(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The features of each batch, in order, while the next are being read; at most two batches a device are held.

        What reading or encoding raises is passed on.
        """

    def describe(self) -> dict[str, object]:
        """What the last digits of the features depend on, besides the entry of the table: to be kept with them."""


def load_encoder(spec: EncoderSpec, settings: EncoderSettings | None = None) -> Encoder:
    """The encoder, ready to use.

    Raises `InputError` when the weights cannot be had, read, or do not fit the architecture, and for settings that the machine
    cannot follow.
    """
    settings = settings or EncoderSettings()
    if spec.architecture == HANDCRAFTED:
        return HandcraftedEncoder(settings.threads)
    from pipeline.slides.encoders.replica import Replica, build_network

    devices = _devices(settings.device)
    precisions = [_precision(settings.precision, device) for device in devices]
    network, replicas = build_network(spec), []
    for number, (device, precision) in enumerate(zip(devices, precisions, strict=True), start=1):
        copy = network if number == len(devices) else deepcopy(network)  # a replica changes its network
        batch_size, compiled = _batch_size(settings.batch_size, device), _compiles(settings, device)
        replicas.append(
            Replica(copy, spec, device, precision=precision, batch_size=batch_size, threads=settings.threads, compiled=compiled)
        )
    return NetworkEncoder(replicas)


def _devices(wanted: str | Sequence[str]) -> list[torch.device]:
    import torch

    devices = []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        try:
            device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == AUTO else name)
        except RuntimeError:
            device = None
        count = torch.cuda.device_count() if device and device.type == "cuda" else 1
        if device is None or device.type not in ("cpu", "cuda") or (device.index or 0) >= count:
            found = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
            raise InputError("no such device", column="device", found=name, expected=f"auto, or of {found}")
        devices.append(device)
    if not devices:
        raise InputError("names no device", column="device", expected="auto, cpu, cuda, cuda:0, … or a list of them")
    return devices


def _precision(wanted: str, device: torch.device) -> str:
    import torch

    if wanted not in PRECISIONS:
        remedy = nearest(wanted, PRECISIONS)
        raise InputError("unknown precision", column="precision", found=wanted, expected=", ".join(PRECISIONS), remedy=remedy)
    if device.type == "cuda":
        if wanted != AUTO:
            return wanted
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    able = torch.cpu.get_capabilities()
    if wanted == "float16" or (wanted == "bfloat16" and not (able.get("avx512_bf16") or able.get("amx_bf16"))):
        remedy = "Set the precision to auto: this CPU has no unit for it and would be slower than with float32."
        raise InputError("the CPU lacks the precision", column="precision", found=wanted, expected="auto or float32", remedy=remedy)
    return "float32" if wanted == AUTO else wanted


def _batch_size(wanted: int | str, device: torch.device) -> int | None:
    if wanted == AUTO:
        return CPU_BATCH if device.type == "cpu" else None
    if not isinstance(wanted, int) or wanted < 1:
        raise InputError("not a batch size", column="batch_size", found=wanted, expected="auto or a whole number from 1")
    return wanted


def _compiles(settings: EncoderSettings, device: torch.device) -> bool:
    if settings.compile == AUTO:
        return device.type == "cpu" and (settings.patches or 0) >= COMPILE_FROM
    return bool(settings.compile)


class HandcraftedEncoder:
    """The handcrafted description as an encoder; every patch is described by itself, so threads change nothing."""

    width, batch_size = stain_texture.WIDTH, CPU_BATCH

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    @property
    def in_flight(self) -> int:
        return IN_FLIGHT * self.threads

    def encode(self, patches: np.ndarray) -> np.ndarray:
        return stain_texture.describe(patches)

    def encode_all(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return deal(batches, [stain_texture.describe] * self.threads)

    def describe(self) -> dict[str, object]:
        return {}


class NetworkEncoder:
    """A network, copied to one device or several."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = list(replicas)
        self.width = self.replicas[0].spec.width

    @property
    def batch_size(self) -> int:
        return min(replica.batch_size for replica in self.replicas)

    @property
    def in_flight(self) -> int:
        return IN_FLIGHT * len(self.replicas)

    def encode(self, patches: np.ndarray) -> np.ndarray:
        size = self.batch_size
        parts = (patches[at : at + size] for at in range(0, len(patches), size))
        return np.concatenate([np.zeros((0, self.width), np.float32), *self.encode_all(parts)])

    def encode_all(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        asynchronous = any(replica.device.type == "cuda" for replica in self.replicas)  # while one batch is computed, one is copied
        return deal(batches, [replica.encode for replica in self.replicas], threads=IN_FLIGHT if asynchronous else 1)

    def describe(self) -> dict[str, object]:
        first = self.replicas[0]
        facts = {
            "device": ", ".join(sorted({replica.kind for replica in self.replicas})),
            "precision": first.precision,
            "compiled": all(replica.compiled for replica in self.replicas),
            "batch_size": self.batch_size,
        }
        return facts | ({"threads": first.threads} if first.device.type == "cpu" else {})


def deal(batches: Iterable[np.ndarray], workers: Sequence[Callable[[np.ndarray], np.ndarray]], threads: int = 1) -> Iterator[np.ndarray]:
    """Deal `batches` round robin to `workers`, each in `threads` threads of its own, and yield their results in the order of `batches`.

    At most `IN_FLIGHT` batches a worker are held. An error of `batches` or of a worker is raised when its turn comes; what is
    waiting then is dropped.
    """
    with ExitStack() as stack:
        pools = [ThreadPoolExecutor(threads) for _ in workers]
        for pool in pools:
            stack.callback(pool.shutdown, cancel_futures=True)
        ahead: deque[Future[np.ndarray]] = deque()
        for number, batch in enumerate(batches):
            turn = number % len(workers)
            ahead.append(pools[turn].submit(workers[turn], batch))
            if len(ahead) >= IN_FLIGHT * len(workers):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
