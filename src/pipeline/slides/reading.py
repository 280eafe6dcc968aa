"""Reading the patches of one slide, in order, with bounded memory, whatever tile is broken."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.slides.opening import Slide, UnreadableRegionError


@dataclass(frozen=True)
class Patches:
    """A batch as read: pixels uint8 [B, size, size, 3], readable bool [B] (False: pixels are blank and must not be used)."""

    pixels: np.ndarray
    readable: np.ndarray


def read_patches(path: str | Path, coords: np.ndarray, side: int, size: int, batch: int, readers: int = 1) -> Iterator[Patches]:
    """The patches at `coords` [N, 2] (level-0 corners, `side` level-0 pixels wide) as batches of `size`-pixel images, in order.

    Each of the `readers` threads has a handle of its own (OpenSlide works outside the interpreter's lock); at most two batches a
    reader are held, so memory is bounded whatever N. Raises `InputError` when the slide cannot be opened.
    """
    own = threading.local()
    with ExitStack() as handles, ThreadPoolExecutor(max_workers=readers) as pool:

        def read(corners: np.ndarray) -> Patches:
            if not hasattr(own, "slide"):
                own.slide = handles.enter_context(Slide(path))
            return _read_batch(own.slide, corners, side, size)

        ahead: deque = deque()
        for start in range(0, len(coords), batch):
            ahead.append(pool.submit(read, coords[start : start + batch]))
            if len(ahead) >= 2 * readers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _read_batch(slide: Slide, corners: np.ndarray, side: int, size: int) -> Patches:
    level = slide.level_for(side / size)
    extent = max(1, round(side / slide.downsamples[level]))
    pixels = np.zeros((len(corners), size, size, 3), np.uint8)
    readable = np.ones(len(corners), bool)
    for i, (x, y) in enumerate(corners):
        try:
            patch = slide.read_rgb((int(x), int(y)), level, (extent, extent))
        except UnreadableRegionError:
            readable[i] = False
            continue
        pixels[i] = patch if extent == size else cv2.resize(patch, (size, size), interpolation=cv2.INTER_AREA)
    return Patches(pixels, readable)
