"""The tumour's place in a volume: box, square crop, slices, intensities. Arrays have their slices along the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Box:
    """Voxels `start` (included) to `stop` (excluded) along three axes; may reach beyond the volume in the first two."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def __str__(self) -> str:
        return " ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))


def tumour_box(foreground: np.ndarray, spacing: Sequence[float], margin_mm: float) -> Box:
    """The box around all foreground (bool [H, W, S], not empty), `margin_mm` wider on each side within a slice and square in mm.

    spacing [3], mm. The margin is rounded up to whole voxels. The longer side (in mm) is the side of the square; the shorter axis is
    filled up around its middle with as many voxels as that side takes, rounded up, the odd one behind.
    """
    start, stop = [], []
    for axis in range(3):
        marked = np.flatnonzero(foreground.any(axis=tuple({0, 1, 2} - {axis})))
        margin = int(np.ceil(margin_mm / spacing[axis] - 1e-9)) if axis < 2 else 0
        start.append(int(marked[0]) - margin)
        stop.append(int(marked[-1]) + 1 + margin)
    side = max((stop[axis] - start[axis]) * spacing[axis] for axis in (0, 1))
    for axis in (0, 1):
        lacking = int(np.ceil(side / spacing[axis] - 1e-6)) - (stop[axis] - start[axis])
        start[axis] -= lacking // 2
        stop[axis] += lacking - lacking // 2
    return Box(tuple(start), tuple(stop))


def crop(values: np.ndarray, box: Box) -> np.ndarray:
    """The voxels of `box`, 0 where it reaches beyond the volume."""
    inside = tuple(slice(max(a, 0), min(b, n)) for a, b, n in zip(box.start, box.stop, values.shape, strict=True))
    beyond = [(max(-a, 0), max(b - n, 0)) for a, b, n in zip(box.start, box.stop, values.shape, strict=True)]
    return np.pad(values[inside], beyond)


def tumour_slices(foreground: np.ndarray, most: int) -> np.ndarray:
    """Numbers of the slices with foreground, ascending; of more than `most`, `most` evenly spread from the first to the last of them."""
    marked = np.flatnonzero(foreground.any(axis=(0, 1)))
    if len(marked) <= most:
        return marked
    return marked[np.round(np.linspace(0, len(marked) - 1, most)).astype(int)]


def scale_intensity(values: np.ndarray) -> np.ndarray:
    """float32 of the same shape in [0, 1]: clipped to the 0.5 and 99.5 percentiles of the voxels that are not 0; 0 where those agree."""
    low, high = np.percentile(values[values != 0], PERCENTILES) if values.any() else (0.0, 0.0)
    if not high > low:
        return np.zeros(values.shape, np.float32)
    return ((np.clip(values, low, high) - low) / (high - low)).astype(np.float32)


def resample(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """float32 of `shape` from `values` [H, W, S], trilinear between the middles of voxels; both cover the same space."""
    from scipy.ndimage import zoom

    factors = np.divide(shape, values.shape)
    return zoom(values, factors, output=np.float32, order=1, mode="nearest", grid_mode=True)


def standardise(values: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 over the voxels that are not 0; the others stay 0, as do all of a constant volume."""
    known = values != 0
    spread = values[known].std(dtype=np.float64) if known.any() else 0.0
    if not spread > 1e-6:
        return np.zeros_like(values)
    return np.where(known, (values - values[known].mean(dtype=np.float64)) / spread, 0).astype(np.float32)
