"""Laying patches over tissue: a fixed grid at a physical scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from shapely.geometry import Polygon

from pipeline.errors import InputError

CELLS = 16  # mask pixels a patch side: its tissue share is known to half a percent
SUBPIXEL = 4  # fractional bits of the coordinates that OpenCV rasterises


@dataclass(frozen=True)
class PatchSettings:
    """patch_size: pixels that the encoder's transform receives. target_mpp: µm of one such pixel. min_tissue: share of the patch
    that must be tissue. step: pixels from patch to patch at target scale (None = patch_size, no overlap).
    max_upsampling: a slide may be this much coarser than the target (our choice); blowing up pixels invents no detail.
    scale_tolerance: a scan whose pixels are the target's divided by 1, 2, 4, … within this share is taken for exactly that (our
    choice): its patches then lie on whole tiles and no pixel is interpolated. A scan of 0.2525 µm serves 0.5 µm by two pixels to one.
    """

    patch_size: int = 256
    target_mpp: float = 0.5
    min_tissue: float = 0.5
    step: int | None = None
    max_upsampling: float = 1.25
    scale_tolerance: float = 0.03


def level0_size(pixels: int, mpp: float, settings: PatchSettings, slide_id: str | None = None) -> int:
    """Level-0 pixels that `pixels` pixels at target scale cover; raises `InputError` when the scan is too coarse for the target."""
    if mpp > settings.target_mpp * settings.max_upsampling:
        raise InputError(
            "the scan is coarser than the target",
            slide=slide_id,
            found=f"{mpp:g} µm per pixel",
            expected=f"at most {settings.target_mpp * settings.max_upsampling:g}",
            remedy="Raise `patches.target_mpp`, or leave out the slide.",
        )
    return max(1, round(pixels * _factor(settings.target_mpp / mpp, settings.scale_tolerance)))


def _factor(exact: float, tolerance: float) -> float:
    """Level-0 pixels a target pixel: a power of two (at least 1) where that is close enough."""
    whole = 2 ** max(0, round(math.log2(exact)))
    return whole if abs(whole / exact - 1) <= tolerance else exact


def lay_patches(
    polygons: Sequence[Polygon], dimensions: tuple[int, int], mpp: float, settings: PatchSettings, slide_id: str | None = None
) -> tuple[np.ndarray, int]:
    """Top-left corners int32 [N, 2] (x, y) in level-0 pixels, row by row, and the patch's side in level-0 pixels.

    The grid starts at (0, 0) whatever the tissue and steps by the patch's side at level 0: on most scans it then falls on the JPEG
    tiles, each of which is decoded once (our choice). Only whole patches inside the slide are laid (`dimensions` = width, height).
    """
    side = level0_size(settings.patch_size, mpp, settings, slide_id)
    step = level0_size(settings.step or settings.patch_size, mpp, settings, slide_id)
    columns, rows = (np.arange(0, max(extent - side, -1) + 1, step) for extent in dimensions)
    share = _tissue_shares(polygons, dimensions, columns, rows, side)
    row, column = np.nonzero(share >= settings.min_tissue)
    return np.stack([columns[column], rows[row]], axis=1).astype(np.int32).reshape(-1, 2), side


def _tissue_shares(
    polygons: Sequence[Polygon], dimensions: tuple[int, int], columns: np.ndarray, rows: np.ndarray, side: int
) -> np.ndarray:
    """[rows, columns]: tissue share of every cell of the grid at once, from the integral image of a mask of side / 16 pixels."""
    pixel = side / min(CELLS, side)
    width, height = (int(np.ceil(extent / pixel)) + 1 for extent in dimensions)
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        rings = [polygon.exterior, *polygon.interiors]
        points = [np.round((np.asarray(r.coords) / pixel - 0.5) * 2**SUBPIXEL).astype(np.int32) for r in rings]
        cv2.fillPoly(mask, points, 1, shift=SUBPIXEL)
    total = cv2.integral(mask)
    (left, right), (top, bottom) = ((np.round(x / pixel).astype(int), np.round((x + side) / pixel).astype(int)) for x in (columns, rows))
    top, bottom = top[:, None], bottom[:, None]
    tissue = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return tissue / ((bottom - top) * (right - left))
