"""The whole slide as one small image, pyramid or not."""

from __future__ import annotations

import logging
import math

import cv2
import numpy as np

from pipeline.errors import InputError
from pipeline.slides.opening import Slide, UnreadableRegionError

log = logging.getLogger(__name__)

BLOCK = 2048  # level pixels read at a time: 16 MiB
SMALLEST_BLOCK = 64


def overview(slide: Slide, downsample: float, max_unreadable: float = 0.1) -> np.ndarray:
    """The whole slide as uint8 [⌈H/downsample⌉, ⌈W/downsample⌉, 3]; pixel (r, c) covers level-0 pixels from (c, r) · downsample.

    Read in blocks from the nearest finer level, so that a slide without a pyramid takes time but no memory. A block that
    cannot be read is cut in four down to 64 pixels, which stay white; more than `max_unreadable` of the area raises `InputError`.
    """
    level = slide.level_for(downsample)
    scale = downsample / slide.downsamples[level]
    width, height = (math.ceil(side / downsample) for side in slide.dimensions)
    image = np.full((height, width, 3), 255, np.uint8)
    lost = 0
    pending = list(_blocks(0, 0, width, height, max(1, int(BLOCK / scale))))
    while pending:
        x, y, w, h = pending.pop()
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        try:
            pixels = slide.read_rgb((round(x * downsample), round(y * downsample)), level, size)
        except UnreadableRegionError as error:
            if max(size) > SMALLEST_BLOCK and max(w, h) > 1:
                pending += _blocks(x, y, w, h, math.ceil(max(w, h) / 2))
                continue
            lost += w * h
            if lost > max_unreadable * width * height:
                share = f"more than {max_unreadable:.0%} of the slide cannot be read ({error})"
                raise InputError(share, file=slide.path, remedy="Copy the slide again from its source.") from error
            continue
        image[y : y + h, x : x + w] = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)
    if lost:
        log.warning("%s: %.2g %% of the overview cannot be read and counts as glass", slide.path.name, 100 * lost / (width * height))
    return image


def _blocks(x: int, y: int, width: int, height: int, side: int) -> list[tuple[int, int, int, int]]:
    corners = [(i, j) for j in range(y, y + height, side) for i in range(x, x + width, side)]
    return [(i, j, min(side, x + width - i), min(side, y + height - j)) for i, j in corners]
