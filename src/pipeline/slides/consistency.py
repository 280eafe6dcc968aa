"""Damage that no decoder notices: patches that do not look like the same place at a coarser level.

A flipped byte or an overwritten block of the file often decodes without an error, to other colours. A pyramid tells every place twice,
so the mean colours of sixteen parts of a patch are compared with those of another level. The method and its threshold are our choice.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.slides.opening import Slide
from pipeline.slides.overview import overview

CELLS = 4  # parts of a patch, each way
FINE = 4  # pixels of the coarser level in a part, each way
EVERY = 8  # of a patch's rows every eighth is looked at: the mean of a part is then known to about a grey level
TOLERANCE = 23.0  # grey levels, so that no part is 24 off unnoticed; parts of undamaged slides differ by 5 to 15 at most


class Consistency:
    """What the patches at `coords` [N, 2] (`side` level-0 pixels wide) should look like, from a level coarser than `level`, which they are
    read from. Where there is none, nothing is ever suspicious."""

    def __init__(self, slide: Slide, coords: np.ndarray, side: int, level: int) -> None:
        downsample = side / (CELLS * FINE)
        self._expected: np.ndarray | None = None
        if slide.level_for(downsample) > level:
            image = overview(slide, downsample, max_unreadable=1.0)
            means = cv2.blur(image, (FINE, FINE), anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)
            offsets = np.arange(CELLS) * FINE
            left, top = (coords[:, i, None] / downsample + offsets for i in (0, 1))  # [N, CELLS]: where each part begins
            columns = np.broadcast_to(left[:, None, :], (len(coords), CELLS, CELLS))
            rows = np.broadcast_to(top[:, :, None], columns.shape)
            self._expected = _sample(means, columns, rows)

    def difference(self, start: int, pixels: np.ndarray) -> np.ndarray:
        """By how many grey levels the worst part of each patch differs, float [B], for the patches uint8 [B, S, S, 3] from `start` on."""
        if self._expected is None or not len(pixels):
            return np.zeros(len(pixels))
        found = [
            cv2.resize(patch[EVERY // 2 :: EVERY, EVERY // 2 :: EVERY], (CELLS, CELLS), interpolation=cv2.INTER_AREA) for patch in pixels
        ]
        apart = np.abs(np.stack(found) - self._expected[start : start + len(pixels)])
        return apart.mean(axis=3).max(axis=(1, 2))


def _sample(image: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32 [..., 3]: `image` [H, W, 3] at fractional places, between its pixels."""
    flat = [places.reshape(-1).astype(np.float32) for places in (columns, rows)]
    blocks = [  # OpenCV's images end at 32767 rows
        cv2.remap(image, *(p[i : i + 2**14, None] for p in flat), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for i in range(0, len(flat[0]), 2**14)
    ]
    return np.concatenate(blocks).astype(np.float32).reshape(*columns.shape, 3)
