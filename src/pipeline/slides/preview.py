"""A picture of what will be encoded: the chosen patches in full colour on the pale slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.slides.overlay import draw_squares, fitted, write_picture

PALE = 0.3  # of the colour that is left outside the patches
LINE = (90, 90, 90)
SMALLEST_GRID = 6  # pixels of a patch below which lines would hide it


def draw_preview(path: str | Path, image: np.ndarray, downsample: float, coords: np.ndarray, side: int) -> None:
    """Write the overview uint8 [H, W, 3], pale but for the patches at `coords` [N, 2] (level-0 corners, `side` level-0 pixels wide).

    `downsample`: level-0 pixels a pixel of `image`. At most 1600 pixels on the longer side; a thin grid where a patch is wide enough.
    """
    picture, scale = fitted(image, downsample)
    corners, width = np.asarray(coords).reshape(-1, 2) / scale, side / scale
    chosen = np.zeros(picture.shape[:2], bool)
    for (left, top), (right, bottom) in zip(_pixels(corners), _pixels(corners + width), strict=True):
        chosen[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    pale = (255 - (255 - picture.astype(np.float32)) * PALE).astype(np.uint8)
    picture = np.where(chosen[..., None], picture, pale)
    if width >= SMALLEST_GRID:
        draw_squares(picture, corners, width, LINE)
    write_picture(path, picture)


def _pixels(points: np.ndarray) -> list[list[int]]:
    return np.round(points).astype(int).tolist()
