"""What a cohort will cost: patches, hours and disk, from a few slides and two batches."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.amounts import duration, gigabytes, slide_files
from pipeline.doctor.findings import FAIL, OK, WARN, Finding
from pipeline.doctor.machine import cores, existing
from pipeline.doctor.slides import lay, sample
from pipeline.doctor.weights import Weights
from pipeline.slides.opening import Slide
from pipeline.slides.reading import PatchSource

READ = 64  # patches of each timed slide
TIMED_SLIDES = 3
TIMED_BATCH = {"cpu": 8, "cuda": 64}


@dataclass(frozen=True)
class Rates:
    """Patches a second of one reader thread and of the encoder (None: not known); a few of the pixels, uint8 [n, size, size, 3]."""

    reading: float | None
    encoding: float | None
    on_gpu: bool = False


def measure(probed: pd.DataFrame, settings: Mapping[str, Any], weights: Weights | None) -> Rates:
    """Read patches of up to three good slides and encode two batches of them."""
    good = probed[probed["stage"].isna()]
    spent, count, pixels = 0.0, 0, None
    for row in sample(good, TIMED_SLIDES).to_dict("records"):
        seconds, pixels = _read(row, settings)
        spent, count = spent + seconds, count + len(pixels)
    reading = count / spent if spent else None
    if weights is None or weights.encoder is None or pixels is None:
        return Rates(reading, None)
    on_gpu = any(replica.device.type == "cuda" for replica in getattr(weights.encoder, "replicas", []))
    batch = np.resize(pixels, (min(weights.encoder.batch_size, TIMED_BATCH["cuda" if on_gpu else "cpu"]), *pixels.shape[1:]))
    weights.encoder.encode(batch)  # the first one also prepares
    start = time.perf_counter()
    weights.encoder.encode(batch)
    return Rates(reading, len(batch) / (time.perf_counter() - start), on_gpu)


def _read(row: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[float, np.ndarray]:
    """Seconds for, and pixels of, neighbouring patches from the middle of a slide; opening it is not counted."""
    with Slide(row["path"]) as slide:
        laid = lay(slide, row["mpp"], settings)
    start = max(0, (len(laid.coords) - READ) // 2)
    size = settings["patches"]["patch_size"]
    source = PatchSource(row["path"], laid.coords, laid.side, size, settings["reading"], settings["check_levels"])
    try:
        begin = time.perf_counter()
        pixels = source.read(start, min(start + READ, len(laid.coords))).pixels
        return time.perf_counter() - begin, pixels
    finally:
        source.close()


def expected_patches(probed: pd.DataFrame, listed: int) -> float:
    """Patches of the whole cohort, by those of the probed slides; a slide that fails has none."""
    return probed["patches"].where(probed["stage"].isna(), 0).fillna(0).mean() * listed


def estimate(probed: pd.DataFrame, listed: int, rates: Rates, settings: Mapping[str, Any], width: int, results: Path) -> Iterator[Finding]:
    """Patches, time on this machine, and disk space against what is free."""
    patches = expected_patches(probed, listed)
    good = probed.loc[probed["stage"].isna(), "patches"]
    if not len(good):
        return
    yield Finding(OK, "patches", f"about {patches:,.0f}; {good.min():,.0f}–{good.max():,.0f} a slide, median {good.median():,.0f}")
    yield from _hours(patches, probed["seconds"].mean() * listed, rates, settings)
    needed = slide_files(patches, listed, width)
    free = shutil.disk_usage(existing(results)).free
    text = f"about {gigabytes(needed)} for {width} features a patch; {gigabytes(free)} free"
    status = FAIL if needed > free else WARN if needed > free / 2 else OK
    yield Finding(status, "disk", text, "Free some space, or link `results` to a larger disk." if status != OK else "")


def _hours(patches: float, tissue_seconds: float, rates: Rates, settings: Mapping[str, Any]) -> Iterator[Finding]:
    readers = min(settings["readers"], cores())
    threads = min(max(settings["threads"], readers), cores())  # what a job asks for
    jobs = max(1, min(settings["chunks"], cores() // threads))
    reading = f"{rates.reading:,.0f} patches/s a thread" if rates.reading else "reading rate unknown"
    if rates.encoding is None:
        yield Finding(WARN, "time", f"{reading}; the encoder's rate is unknown without its weights")
        return
    encode, read = 1 / rates.encoding, 1 / (rates.reading * readers) if rates.reading else 0.0
    each = max(encode, read) if rates.on_gpu else (encode + read) / jobs  # a GPU encodes while the CPU reads
    where = f"on the GPU, {readers} readers" if rates.on_gpu else f"with {jobs} jobs of {threads} threads"
    total = patches * each + tissue_seconds / min(settings["chunks"], cores())
    text = f"about {duration(total)} {where} ({reading}, encoder {rates.encoding:,.1f} patches/s)"
    yield Finding(OK, "time", text)
