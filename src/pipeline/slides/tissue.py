"""Where the tissue is: stained, not glass, not ink.

The overview is white-balanced by its glass, then a pixel counts as stained by its saturation (Otsu's threshold, within bounds).
Adipose tissue is a thin mesh around white vacuoles, found by a closing where the mesh is. The combination of rules and their
thresholds are our choice, set on pixels of 8 µm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import contourpy
import cv2
import numpy as np
from shapely import transform
from shapely.geometry import Polygon

from pipeline.slides.ink import FILM, OD, disc, find_ink, fine_deviation, usual
from pipeline.slides.opening import Slide
from pipeline.slides.overview import read_overview

PAINTED = (8, 252)  # grey levels at and beyond which a pixel was painted by the scanner's software
FAINT_OD = 0.12  # a mean OD under which a smooth area is a smear
GLASS_SHARE = 0.002  # of the scanned area, from which on bright smooth pixels are taken for glass
GLASS_TINT = (30, 70)  # grey levels that glass may lack in green, and in any channel, against its brightest one
FAINT_SATURATION = 6  # of the lines of a mesh
LINE_UM = 40.0  # thinnest thing that is no line of a mesh
MESH_UM = 200.0  # window in which a mesh is told from dense tissue and glass …
MESH_SHARE = 0.1  # … by its share of thin lines
VACUOLE_UM = 120.0  # widest fat cell that a mesh is closed over


@dataclass(frozen=True)
class TissueSettings:
    """How tissue is found (all figures our choice).

    mpp: µm a pixel of the image that is segmented. min_piece_mm2: smaller pieces are dropped. min_hole_mm2: smaller holes are filled.
    saturation: bounds (0–255) of the Otsu threshold, so that a slide without glass or without tissue does not split at its noise.
    close_um, open_um: gaps bridged and specks removed before the contours are drawn. reject_pen: leave out ink.
    fat: count adipose tissue with its vacuoles.
    """

    mpp: float = 8.0
    min_piece_mm2: float = 0.02
    min_hole_mm2: float = 0.002
    saturation: tuple[int, int] = (8, 24)
    close_um: float = 16.0
    open_um: float = 16.0
    reject_pen: bool = True
    fat: bool = True


@dataclass(frozen=True)
class Segments:
    """What the pixels of an overview show, bool [H, W] each: tissue, with pieces and holes of any size; ink (pen); black up to the
    image's border (scanner borders and unscanned areas); blank, white where the software painted it."""

    tissue: np.ndarray
    ink: np.ndarray
    black: np.ndarray
    blank: np.ndarray


@dataclass(frozen=True)
class Tissue:
    """The tissue of a slide and the overview that it was found in, for pictures and quality control without a second reading.

    polygons: with holes, level-0 pixels, top to bottom. image: uint8 [H, W, 3]. downsample: level-0 pixels a pixel of `image`.
    pen_share: ink as a share of the scanned area. artefact_share: black borders and unscanned black as a share of the image.
    unreadable_share: of the image, taken for glass.
    """

    polygons: list[Polygon]
    image: np.ndarray
    downsample: float
    pen_share: float
    artefact_share: float
    unreadable_share: float = 0.0


def find_tissue(slide: Slide, mpp: float, settings: TissueSettings | None = None, given: Sequence[Polygon] | None = None) -> Tissue:
    """The tissue of a slide whose level 0 has `mpp` µm a pixel; no polygon where all is glass.

    `given` polygons (drawn by hand, made elsewhere) are taken in place of ours; the rest is measured all the same.
    Raises `InputError` when too much of the slide cannot be read.
    """
    settings = settings or TissueSettings()
    downsample = max(1.0, settings.mpp / mpp)
    whole = read_overview(slide, downsample)
    image = whole.image
    found = segment(image, downsample * mpp, settings)
    scanned = max(1, found.blank.size - int(found.blank.sum()) - int(found.black.sum()))
    polygons = outlines(found.tissue, downsample, mpp, settings) if given is None else list(given)
    return Tissue(polygons, image, downsample, float(found.ink.sum() / scanned), float(found.black.mean()), whole.unreadable_share)


def outlines(mask: np.ndarray, downsample: float, mpp: float, settings: TissueSettings) -> list[Polygon]:
    """The pieces and holes of a tissue mask [H, W] that are large enough, as polygons in level-0 pixels."""
    pixel_mm2 = (downsample * mpp / 1000) ** 2
    return trace(mask, downsample, settings.min_piece_mm2 / pixel_mm2, settings.min_hole_mm2 / pixel_mm2)


def tissue_mm2(polygons: Sequence[Polygon], mpp: float) -> float:
    """Area of the polygons (level-0 pixels) in mm²."""
    return sum(p.area for p in polygons) * (mpp / 1000) ** 2


def segment(rgb: np.ndarray, pixel_um: float, settings: TissueSettings) -> Segments:
    """The parts of an overview uint8 [H, W, 3] whose pixels are `pixel_um` µm wide."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    blank, dark = grey >= PAINTED[1], grey <= PAINTED[0]
    if dark.any():  # single pixels are of black pen on tissue
        dark = cv2.morphologyEx(dark.view(np.uint8), cv2.MORPH_OPEN, disc(5)).astype(bool)
    glass, noise = _glass(rgb, grey, ~(blank | dark))
    balanced = cv2.LUT(cv2.medianBlur(rgb, 3), _whitening(glass))
    mean = cv2.LUT(cv2.LUT(grey, _whitening(np.full(1, float(glass @ (0.299, 0.587, 0.114))))), OD)
    texture = np.maximum(fine_deviation(mean) - np.float32(noise), 0) / (cv2.blur(mean, (5, 5)) + np.float32(0.01))
    slide = usual(balanced, texture)
    ink, black = _pen_and_border(*find_ink(balanced, texture, slide), dark)
    usable = ~(blank | black | ink) if settings.reject_pen else ~(blank | black)
    saturation = cv2.cvtColor(balanced, cv2.COLOR_RGB2HSV)[..., 1]
    smoothed = cv2.medianBlur(saturation, 5)
    stained = usable & (smoothed > _otsu(smoothed[usable], settings.saturation))
    stained &= (mean > FAINT_OD) | (texture > FILM * slide.sharp)
    mask = _smooth(stained, cv2.MORPH_OPEN, settings.open_um / pixel_um)
    if settings.fat:
        mask |= _adipose((saturation > FAINT_SATURATION) & usable, ink | black, pixel_um)
    mask = _smooth(mask, cv2.MORPH_CLOSE, settings.close_um / pixel_um) & (usable | blank)
    return Segments(mask, ink, black, blank)


def glass_colour(rgb: np.ndarray) -> np.ndarray:
    """Colour [3] of the empty glass of an overview uint8 [H, W, 3]; white where it shows none."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return _glass(rgb, grey, (grey > PAINTED[0]) & (grey < PAINTED[1]))[0]


def _glass(rgb: np.ndarray, grey: np.ndarray, scanned: np.ndarray) -> tuple[np.ndarray, float]:
    """Colour [3] of the empty glass and its noise as mean deviation of the OD; white without noise where nothing bright and smooth
    has a tint that glass can have (a region of interest has no glass)."""
    deviation = fine_deviation(grey.astype(np.float32))[::2, ::2]  # every fourth pixel tells as much
    rgb, grey, scanned = rgb[::2, ::2], grey[::2, ::2], scanned[::2, ::2]
    smooth = scanned & (grey > 150) & (deviation < 2.0)
    white = np.full(3, 255.0), 0.0
    if smooth.sum() <= GLASS_SHARE * scanned.sum():
        return white
    bright = smooth & (grey >= np.percentile(grey[smooth], 75))
    colour = np.median(rgb[bright], axis=0)
    tint = colour.max() - colour
    if tint[1] > GLASS_TINT[0] or tint.max() > GLASS_TINT[1]:
        return white
    return colour, float(np.median(deviation[bright]) / colour.mean() / np.log(10))


def _whitening(colour: np.ndarray) -> np.ndarray:
    """Look-up table uint8 [256, 1, channels] that makes `colour` white."""
    return np.minimum(np.arange(256)[:, None, None] * (255.0 / colour), 255).astype(np.uint8)


def _pen_and_border(ink: np.ndarray, black: np.ndarray, dark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ink and black borders apart: black that reaches the image's border is no pen, nor is what the software painted."""
    black = black | dark
    if not black.any():
        return ink, black
    count, labels = cv2.connectedComponents(black.astype(np.uint8), connectivity=8)
    at_border = np.zeros(count, bool)
    at_border[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    at_border[0] = False
    border = dark | at_border[labels]
    return ink & ~cv2.dilate(border.view(np.uint8), disc(13)).astype(bool), border


def _adipose(faint: np.ndarray, pen: np.ndarray, pixel_um: float) -> np.ndarray:
    """bool [H, W]: fat, whose vacuoles are closed over where the surroundings are a mesh of thin `faint` lines."""
    thin = faint & ~_smooth(faint, cv2.MORPH_OPEN, LINE_UM / pixel_um)
    if pen.any():  # the faint rim of a stroke is a thin line too
        thin &= ~cv2.dilate(pen.view(np.uint8), disc(MESH_UM / 2 / pixel_um)).astype(bool)
    half = tuple(-(-extent // 2) for extent in faint.shape[::-1])  # the rest on pixels twice as wide: the discs are large
    pixel_um *= 2
    window = max(3, round(MESH_UM / pixel_um))
    share = cv2.blur(cv2.resize(thin.view(np.uint8) * 255, half, interpolation=cv2.INTER_AREA), (window, window))
    if share.max() <= 255 * MESH_SHARE:
        return np.zeros_like(faint)
    mesh = (share > 255 * MESH_SHARE).view(np.uint8)
    mesh = cv2.dilate(mesh, disc(MESH_UM / 2 / pixel_um)).astype(bool)  # at its rim the window is half empty
    lines = cv2.resize(faint.view(np.uint8) * 255, half, interpolation=cv2.INTER_AREA) > 255 // 4
    fat = _smooth(_smooth(lines, cv2.MORPH_CLOSE, VACUOLE_UM / pixel_um) & mesh, cv2.MORPH_OPEN, VACUOLE_UM / 2 / pixel_um)
    return cv2.resize(fat.view(np.uint8), faint.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)


def _otsu(values: np.ndarray, bounds: tuple[int, int]) -> float:
    """Otsu's threshold (IEEE Trans. SMC 9, 1979) of uint8 values, kept within `bounds`."""
    if not values.size:
        return bounds[1]
    threshold, _ = cv2.threshold(values.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(np.clip(threshold, *bounds))


def _smooth(mask: np.ndarray, operation: int, diameter: float) -> np.ndarray:
    """Opening or closing of a bool mask, framed by glass: without the frame a closing grows tissue along the slide's border."""
    element = disc(diameter)
    frame = element.shape[0]
    framed = cv2.morphologyEx(np.pad(mask.astype(np.uint8), frame), operation, element)
    return framed[frame:-frame, frame:-frame].astype(bool)


def trace(mask: np.ndarray, downsample: float, min_piece: float = 0, min_hole: float = 0) -> list[Polygon]:
    """Polygons with holes in level-0 pixels around the True pixels of `mask` [H, W], from top to bottom.

    Pieces of fewer than `min_piece` pixels of the mask are left out, holes of fewer than `min_hole` filled, islands in them and all.
    Marching squares at one half: the line runs along the edges of the pixels, so that areas are not half a pixel short all round.
    """
    padded = np.pad(mask, 1).astype(np.float32)
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    pieces: list[Polygon] = []
    for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True):
        outer, *holes = (points[a:b] - 0.5 for a, b in pairwise(offsets))
        piece = Polygon(outer, [hole for hole in holes if Polygon(hole).area >= min_hole])
        if piece.area >= min_piece:
            pieces.append(piece)
    if min_hole > min_piece:  # an island in a filled hole is part of the piece around it
        pieces = [p for p in pieces if p.area >= min_hole or not any(q.area > p.area and q.contains(p) for q in pieces)]
    # a tolerance below half the diagonal of a pixel leaves straight edges straight
    polygons = [_simplified(transform(piece, lambda xy: xy * downsample), downsample / 3) for piece in pieces]
    return sorted(polygons, key=lambda p: (p.bounds[1], p.bounds[0]))


def _simplified(polygon: Polygon, tolerance: float) -> Polygon:
    """Without the steps of the pixels, coordinates to a tenth of a pixel; the slow algorithm only where the fast one makes rings cross."""
    fast = transform(polygon.simplify(tolerance, preserve_topology=False), _tenths)
    if isinstance(fast, Polygon) and fast.is_valid and len(fast.interiors) == len(polygon.interiors) and fast.area > 0:
        return fast
    return transform(polygon.simplify(tolerance), _tenths)


def _tenths(points: np.ndarray) -> np.ndarray:
    return np.round(points, 1)
