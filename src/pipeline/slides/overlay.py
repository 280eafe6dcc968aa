"""A picture to check the tissue contours by eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from shapely.geometry import Polygon

from pipeline.files import atomic
from pipeline.slides.opening import Slide
from pipeline.slides.overview import overview

LONGEST = 1024
OUTER, HOLE = (0, 160, 0), (255, 90, 0)  # RGB: green is in no common stain, orange tells holes apart


def draw_overlay(slide: Slide, polygons: Sequence[Polygon], path: str | Path) -> None:
    """Write a PNG of the slide, at most 1024 pixels on its longer side, with outer contours in green and holes in orange."""
    downsample = max(1.0, max(slide.dimensions) / LONGEST)
    image = overview(slide, downsample, max_unreadable=1.0)  # a picture with gaps beats none
    for polygon in polygons:
        for ring, colour in [(polygon.exterior, OUTER), *((hole, HOLE) for hole in polygon.interiors)]:
            points = np.round(np.asarray(ring.coords) / downsample - 0.5).astype(np.int32)
            cv2.polylines(image, [points], isClosed=True, color=colour, thickness=2, lineType=cv2.LINE_AA)
    with atomic(path) as temporary:
        cv2.imwrite(str(temporary), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
