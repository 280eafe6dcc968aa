"""Nuclei of the synthetic sections: small libraries of stamps, laid on jittered grids."""

from __future__ import annotations

import numpy as np

from pipeline.demo.texture import SHEET, sheets

VARIANTS = 96
MARGIN = 40  # pixels; no stamp reaches further


def draw_stamps(rng: np.random.Generator, radius: float, darkness: float, elongation: float, angles: np.ndarray) -> np.ndarray:
    """uint8 [V, S, S] haematoxylin (100 = concentration 1) of V nuclei with long axes at `angles` [V] radians.

    radius: of the circle of the same area, pixels. darkness: mean concentration. elongation: long axis over short axis.
    """
    count = len(angles)
    half = int(np.ceil(radius * np.sqrt(elongation) * 1.35)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    stretch = np.sqrt(elongation)
    along, across = (x * cos + y * sin) / stretch, (y * cos - x * sin) * stretch
    distance, theta = np.hypot(along, across), np.arctan2(across, along)
    size = radius * rng.normal(1, 0.1, (count, 1, 1)).clip(0.75, 1.3)
    for waves, amplitude in ((2, 0.09), (3, 0.06), (5, 0.025)):
        size = size * (1 + amplitude * rng.standard_normal((count, 1, 1)) * np.cos(waves * theta + rng.uniform(0, 6.3, (count, 1, 1))))
    depth = size - distance  # pixels inside the membrane
    body = np.clip(depth / 1.6 + 0.5, 0, 1)
    rim = np.exp(-((np.maximum(depth - 1.2, 0) / 1.8) ** 2))
    density = 0.8 + 0.35 * rim + 0.17 * _chromatin(rng, count, y.shape[0])
    spot_y, spot_x = rng.normal(0, 0.25 * radius, (2, count, 1, 1))
    nucleolus = np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / (0.05 * radius**2))
    density += 0.45 * nucleolus * np.clip((radius - 7.5) / 2, 0, 1)  # only large nuclei show one
    shade = darkness * rng.normal(1, 0.09, (count, 1, 1))
    return np.clip(100 * shade * body * density, 0, 255).astype(np.uint8)


def grid(rng: np.random.Generator, shape: tuple[int, int], spacing: float, jitter: float = 0.19) -> np.ndarray:
    """int [N, 2] (row, column) of a hexagonal grid, `MARGIN` pixels or more inside `shape`; `jitter` in units of `spacing`."""
    rows = np.arange(MARGIN, shape[0] - MARGIN, spacing * 0.866)
    columns = np.arange(MARGIN, shape[1] - MARGIN, spacing)
    points = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    points[1::2, :, 1] += spacing / 2
    points += rng.normal(0, jitter * spacing, points.shape)
    points = points.reshape(-1, 2)
    return np.rint(points.clip(MARGIN, np.array(shape) - MARGIN - 1)).astype(int)


def press(canvas: np.ndarray, points: np.ndarray, stamps: np.ndarray, which: np.ndarray) -> None:
    """Lay stamp ``which[i]`` of `stamps` [V, S, S] at ``points[i]`` (centre) of the uint8 `canvas`, the darker value winning."""
    side = stamps.shape[1]
    corners = points - side // 2
    for (row, column), index in zip(corners.tolist(), which.tolist(), strict=True):
        patch = canvas[row : row + side, column : column + side]
        np.maximum(patch, stamps[index], out=patch)


def _chromatin(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    sheet = sheets()["chromatin"]
    rows, columns = rng.integers(0, SHEET - side, (2, count))
    return np.stack([sheet[r : r + side, c : c + side] for r, c in zip(rows, columns, strict=True)])
