"""Where the tissue is: stained, not glass, not ink.

Every figure below is in optical density (OD = −log10 of transmitted light), where stains add up and ratios between the channels
do not depend on how dark they are. The combination of rules and their thresholds are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import contourpy
import cv2
import numpy as np
from shapely.geometry import Polygon

from pipeline.slides.opening import Slide
from pipeline.slides.overview import overview

GLASS_PERCENTILE = 95
FAINT_OD = 0.12  # a mean OD under which a smooth area is a smear or tinted glass
SMOOTH_STD = 2.5  # grey levels in a window of 9 pixels
STITCHED = (8, 252)  # grey levels at and beyond which a pixel was painted by the scanner's software


@dataclass(frozen=True)
class TissueSettings:
    """How tissue is found (all figures our choice).

    mpp: µm a pixel of the image that is segmented. min_piece_mm2: smaller pieces are dropped. min_hole_mm2: smaller holes are filled.
    saturation: bounds (0–255) of the Otsu threshold, so that a slide without glass or without tissue does not split at its noise.
    close_um, open_um: gaps bridged and specks removed before the contours are drawn. reject_pen: leave out ink.
    """

    mpp: float = 8.0
    min_piece_mm2: float = 0.02
    min_hole_mm2: float = 0.002
    saturation: tuple[int, int] = (12, 36)
    close_um: float = 16.0
    open_um: float = 16.0
    reject_pen: bool = True


def find_tissue(slide: Slide, mpp: float, settings: TissueSettings | None = None) -> list[Polygon]:
    """Tissue as polygons with holes in level-0 pixels, from top to bottom; none where all is glass. `mpp` is that of level 0.

    Raises `InputError` when too much of the slide cannot be read.
    """
    settings = settings or TissueSettings()
    downsample = max(1.0, settings.mpp / mpp)
    pixel_um = downsample * mpp
    mask = tissue_mask(overview(slide, downsample), pixel_um, settings)
    return trace(mask, downsample)


def tissue_mm2(polygons: Sequence[Polygon], mpp: float) -> float:
    """Area of the polygons (level-0 pixels) in mm²."""
    return sum(p.area for p in polygons) * (mpp / 1000) ** 2


def tissue_mask(rgb: np.ndarray, pixel_um: float, settings: TissueSettings) -> np.ndarray:
    """bool [H, W] of an overview uint8 [H, W, 3] whose pixels are `pixel_um` µm wide."""
    rgb = cv2.medianBlur(rgb, 3)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    scanned = (grey > STITCHED[0]) & (grey < STITCHED[1])
    balanced = np.minimum(rgb * (255.0 / _glass(rgb, grey, scanned)), 255).astype(np.uint8)
    density = -np.log10((balanced.astype(np.float32) + 1) / 256)
    saturation = cv2.medianBlur(cv2.cvtColor(balanced, cv2.COLOR_RGB2HSV)[..., 1], 5)
    stained = scanned & (saturation > _otsu(saturation[scanned], settings.saturation))
    stained &= ~((density.mean(2) < FAINT_OD) & (_local_std(grey) < SMOOTH_STD))
    ink = _ink(density) if settings.reject_pen else np.zeros_like(stained)
    mask = _smooth(stained & ~ink, cv2.MORPH_OPEN, settings.open_um / pixel_um)
    mask = _smooth(mask, cv2.MORPH_CLOSE, settings.close_um / pixel_um) & ~ink
    pixel_mm2 = (pixel_um / 1000) ** 2
    filled = ~_without_small(~mask, settings.min_hole_mm2 / pixel_mm2)
    return _without_small(filled, settings.min_piece_mm2 / pixel_mm2)


def _glass(rgb: np.ndarray, grey: np.ndarray, scanned: np.ndarray) -> np.ndarray:
    """Colour [3] of the empty glass, by which the image is white-balanced; white where the bright pixels are no glass."""
    if not scanned.any():
        return np.full(3, 255.0)
    bright = rgb[scanned & (grey >= np.percentile(grey[scanned], GLASS_PERCENTILE))]
    colour = np.median(bright, axis=0)
    is_glass = colour.min() > 190 and np.ptp(colour) < 35
    return colour if is_glass else np.full(3, 255.0)


def _otsu(values: np.ndarray, bounds: tuple[int, int]) -> float:
    """Otsu's threshold (IEEE Trans. SMC 9, 1979) of uint8 values, kept within `bounds`."""
    if not values.size:
        return bounds[1]
    threshold, _ = cv2.threshold(values.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(np.clip(threshold, *bounds))


def _local_std(grey: np.ndarray) -> np.ndarray:
    values = grey.astype(np.float32)
    mean = cv2.blur(values, (9, 9))
    return np.sqrt(np.maximum(cv2.blur(values * values, (9, 9)) - mean * mean, 0))


def _ink(density: np.ndarray) -> np.ndarray:
    """bool [H, W]: blue, green, red and black pen, from densities [H, W, 3].

    Haematoxylin, eosin and DAB absorb green at least about as much as red; blue and green ink absorb red more, or as much and hardly
    any blue. Red ink absorbs green and blue but not red. Black ink absorbs all alike. The denser the stroke, the less far from tissue
    it must be. The faint rim of a stroke is ink too, but only beside a full stroke.
    """
    red, green, blue = cv2.split(density)
    bluish = red > 1.3 * green
    dense_blue = (red > 0.45) & (red > 0.85 * green) & (blue < 0.75 * red)
    reddish = (green > 0.35) & (red < 0.2 * green) & (blue > 0.75 * green)
    dense_red = (green > 0.6) & (red < 0.16 * green) & (blue > 0.6 * green)
    neutral = density.min(2) > 0.75 * density.max(2)
    strong = (bluish & (red > 0.2)) | dense_blue | reddish | dense_red | (neutral & (density.min(2) > 0.4))
    strong = cv2.morphologyEx(strong.astype(np.uint8), cv2.MORPH_OPEN, _disc(3))
    rim = cv2.dilate(strong, _disc(13)).astype(bool) & (bluish | (blue > 0.7 * green) | neutral)
    return rim | cv2.dilate(strong, _disc(5)).astype(bool)


def _smooth(mask: np.ndarray, operation: int, diameter: float) -> np.ndarray:
    """Opening or closing of a bool mask, framed by glass: without the frame a closing grows tissue along the slide's border."""
    disc = _disc(diameter)
    frame = disc.shape[0]
    framed = cv2.morphologyEx(np.pad(mask.astype(np.uint8), frame), operation, disc)
    return framed[frame:-frame, frame:-frame].astype(bool)


def _disc(diameter: float) -> np.ndarray:
    size = 2 * max(1, round(diameter / 2)) + 1 if diameter >= 2 else 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _without_small(mask: np.ndarray, pixels: float) -> np.ndarray:
    """The mask without its connected parts of fewer than `pixels` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= pixels
    keep[0] = False
    return keep[labels]


def trace(mask: np.ndarray, downsample: float) -> list[Polygon]:
    """Polygons with holes in level-0 pixels around the True pixels of `mask` [H, W], from top to bottom.

    Marching squares at one half: the line runs along the edges of the pixels, so that areas are not half a pixel short all round.
    """
    padded = np.pad(mask, 1).astype(np.float32)
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    polygons = []
    for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True):
        rings = [(points[a:b] - 0.5) * downsample for a, b in pairwise(offsets)]
        simple = Polygon(rings[0], rings[1:]).simplify(downsample / 2)
        polygons.append(Polygon(*_rounded(simple)))
    return sorted(polygons, key=lambda p: (p.bounds[1], p.bounds[0]))


def _rounded(polygon: Polygon) -> tuple[np.ndarray, list[np.ndarray]]:
    return np.round(polygon.exterior.coords, 1), [np.round(hole.coords, 1) for hole in polygon.interiors]
