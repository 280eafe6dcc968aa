"""Where the tissue is: stained, not glass, not ink.

The overview is white-balanced by its glass, then a pixel counts as stained by its saturation (Otsu's threshold, within bounds).
Adipose tissue is a thin mesh around white vacuoles, found by a closing where the mesh is. The combination of rules and their
thresholds are our choice, set on pixels of 8 µm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
GREY_UNIT = 9 * 25  # pixels of the two windows of `fine_deviation`: 255 times it fits in 16 bits
GLASS_TINT = (30, 70)  # grey levels that glass may lack in green, and in any channel, against its brightest one
FAINT_SATURATION = 6  # of the lines of a mesh
LINE_UM = 40.0  # thinnest thing that is no line of a mesh
MESH_UM = 200.0  # window in which a mesh is told from dense tissue and glass …
MESH_SHARE = 0.1  # … by its share of thin lines
VACUOLE_UM = 120.0  # widest fat cell that a mesh is closed over
AROUND = np.array([(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)])  # x, y of the neighbours, counter-clockwise
TOWARDS = np.array([[3, 2, 1], [4, 1, 0], [5, 6, 7]])  # index in AROUND of (y + 1, x + 1); a lone pixel looks anywhere askew
CROSSED = np.full((8, 8, 4), -1)  # indices of the edges passed counter-clockwise from one neighbour to another, all round if the same
for _from, _to in np.ndindex(8, 8):
    _passed = [(_from + step) % 8 for step in range(1, (_to - _from - 1) % 8 + 1) if (_from + step) % 2 == 0]
    CROSSED[_from, _to, : len(_passed)] = _passed


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
    balanced = [cv2.LUT(cv2.medianBlur(channel, 3), _whitening(tint)) for channel, tint in zip(cv2.split(rgb), glass, strict=True)]
    mean = cv2.LUT(cv2.LUT(grey, _whitening(glass @ (0.299, 0.587, 0.114))), OD)
    texture = _texture(mean, noise)
    slide = usual(balanced, texture)
    ink, black = _pen_and_border(*find_ink(balanced, texture, slide), dark)
    usable = ~(blank | black | ink) if settings.reject_pen else ~(blank | black)
    saturation = _saturation(*balanced)
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
    deviation = _grey_deviation(grey)[::2, ::2]  # every fourth pixel tells as much
    rgb, grey, scanned = rgb[::2, ::2], np.ascontiguousarray(grey[::2, ::2]), scanned[::2, ::2]
    smooth = scanned & (grey > 150) & (deviation < 2 * GREY_UNIT)
    white = np.full(3, 255.0), 0.0
    if smooth.sum() <= GLASS_SHARE * scanned.sum():
        return white
    bright = smooth & (grey >= np.percentile(grey[smooth], 75))
    colour = np.array([np.median(channel[bright]) for channel in cv2.split(rgb)])
    tint = colour.max() - colour
    if tint[1] > GLASS_TINT[0] or tint.max() > GLASS_TINT[1]:
        return white
    return colour, float(np.median(deviation[bright]) / GREY_UNIT / colour.mean() / np.log(10))


def _grey_deviation(grey: np.ndarray) -> np.ndarray:
    """uint16 [H, W]: `fine_deviation` of grey levels uint8 in units of 1 / GREY_UNIT, exact and in half the time."""
    around = cv2.boxFilter(grey, cv2.CV_16U, (3, 3), normalize=False)
    return cv2.boxFilter(cv2.absdiff(around, grey * np.uint16(9)), cv2.CV_16U, (5, 5), normalize=False)


def _whitening(level: float) -> np.ndarray:
    """Look-up table uint8 [256] of a channel that makes the grey level of the glass white."""
    return np.minimum(np.arange(256) * (255.0 / level), 255).astype(np.uint8)


def _texture(mean: np.ndarray, noise: float) -> np.ndarray:
    """float32 [H, W]: deviation of a mean density beyond the glass's noise, relative to the density."""
    deviation, around = fine_deviation(mean), cv2.blur(mean, (5, 5))
    deviation -= np.float32(noise)  # in place: new pages cost more than the arithmetic
    around += np.float32(0.01)
    np.maximum(deviation, 0, out=deviation)
    return np.divide(deviation, around, out=deviation)


def _saturation(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: how far the weakest channel lies below the strongest one, of 255; 0 of black."""
    strongest = cv2.max(cv2.max(red, green), blue)
    return cv2.divide(strongest - cv2.min(cv2.min(red, green), blue), strongest, scale=255)


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
    pixel_um *= 2  # the rest on pixels twice as wide: the discs are large
    window = max(3, round(MESH_UM / pixel_um))
    share = cv2.blur(_halved(thin), (window, window))
    if share.max() <= 255 * MESH_SHARE:
        return np.zeros_like(faint)
    mesh = (share > 255 * MESH_SHARE).view(np.uint8)
    mesh = cv2.dilate(mesh, disc(MESH_UM / 2 / pixel_um)).astype(bool)  # at its rim the window is half empty
    lines = _halved(faint) > 255 // 4
    fat = _smooth(_smooth(lines, cv2.MORPH_CLOSE, VACUOLE_UM / pixel_um) & mesh, cv2.MORPH_OPEN, VACUOLE_UM / 2 / pixel_um)
    height, width = faint.shape
    return cv2.resize(fat.view(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)[:height, :width].astype(bool)


def _halved(mask: np.ndarray) -> np.ndarray:
    """uint8 [⌈H/2⌉, ⌈W/2⌉]: the share of 2 × 2 pixels that is True, of 255; beyond the border there is nothing."""
    height, width = mask.shape
    even = cv2.copyMakeBorder(mask.view(np.uint8) * 255, 0, height % 2, 0, width % 2, cv2.BORDER_CONSTANT, value=0)
    return cv2.resize(even, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


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
    framed = cv2.copyMakeBorder(mask.view(np.uint8), frame, frame, frame, frame, cv2.BORDER_CONSTANT, value=0)
    framed = cv2.morphologyEx(framed, operation, element)
    return framed[frame:-frame, frame:-frame].astype(bool)


def trace(mask: np.ndarray, downsample: float, min_piece: float = 0, min_hole: float = 0) -> list[Polygon]:
    """Polygons with holes in level-0 pixels around the True pixels of `mask` [H, W], from top to bottom.

    Pieces of fewer than `min_piece` pixels of the mask are left out, holes of fewer than `min_hole` filled, islands in them and all.
    The line runs along the edges of the pixels, so that areas are not half a pixel short all round, and cuts their corners.
    """
    borders, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not borders:
        return []
    rings = _along_edges(borders)
    areas = [cv2.contourArea(ring) for ring in rings]
    holes: dict[int, list[int]] = {}
    for i, parent in enumerate(tree[0, :, 3]):
        if areas[i] >= min_hole and parent >= 0:
            holes.setdefault(int(parent), []).append(i)
    pieces: list[Polygon] = []
    for i in np.flatnonzero(tree[0, :, 3] < 0):
        if areas[i] - sum(areas[hole] for hole in holes.get(i, [])) >= min_piece:
            pieces.append(Polygon(rings[i], [rings[hole] for hole in holes.get(i, [])]))
    if min_hole > min_piece:  # an island in a filled hole is part of the piece around it
        pieces = [p for p in pieces if p.area >= min_hole or not any(q.area > p.area and q.contains(p) for q in pieces)]
    # a tolerance below half the diagonal of a pixel leaves straight edges straight
    polygons = [_simplified(transform(piece, lambda xy: xy * downsample), downsample / 3) for piece in pieces]
    return sorted(polygons, key=lambda p: (p.bounds[1], p.bounds[0]))


def _along_edges(borders: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rings float32 [M, 2] through the middles of the pixel edges between the borders of `cv2.findContours` (pixels) and the outside.

    Seen from a border pixel, what lies counter-clockwise between the border's last pixel and its next one is outside.
    """
    pixels = np.concatenate(borders)[:, 0]
    ends = np.cumsum([len(border) for border in borders])
    starts = np.concatenate([[0], ends[:-1]])
    last, following = np.roll(pixels, 1, axis=0), np.roll(pixels, -1, axis=0)
    last[starts], following[ends - 1] = pixels[ends - 1], pixels[starts]
    (x, y), (u, v) = (last - pixels + 1).T, (following - pixels + 1).T
    crossed = CROSSED[TOWARDS[y, x], TOWARDS[v, u]]
    kept = crossed >= 0
    counts = kept.sum(axis=1)
    points = np.repeat(2 * pixels + 1, counts, axis=0) + AROUND[crossed[kept]]
    return np.split((points / 2).astype(np.float32), np.cumsum(counts)[ends - 1][:-1])


def _simplified(polygon: Polygon, tolerance: float) -> Polygon:
    """Without the steps of the pixels, coordinates to a tenth of a pixel; the slow algorithm only where the fast one makes rings cross."""
    fast = transform(polygon.simplify(tolerance, preserve_topology=False), _tenths)
    if isinstance(fast, Polygon) and fast.is_valid and len(fast.interiors) == len(polygon.interiors) and fast.area > 0:
        return fast
    return transform(polygon.simplify(tolerance), _tenths)


def _tenths(points: np.ndarray) -> np.ndarray:
    return np.round(points, 1)
