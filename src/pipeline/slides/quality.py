"""Figures and flags that tell a person which slides to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from shapely.geometry import Polygon

from pipeline.slides.ink import OD
from pipeline.slides.opening import Slide, UnreadableRegionError
from pipeline.slides.tissue import Tissue, glass_colour, tissue_mm2

FIGURES = [
    *["tissue_mm2", "tissue_share", "pieces", "holes", "largest_piece_mm2", "pen_share", "artefact_share", "unreadable_share"],
    *["focus", "blurred_share", "haematoxylin", "eosin", "flags"],
]
FOCUS_UM = 1.0  # µm a pixel at which sharpness is measured
FOCUS_SIDE = 128  # such pixels a field is wide
FINE, COARSE = 1.0, 3.0  # standard deviations in such pixels of the Gaussians between which the energy is compared
COARSEST = 1.5  # µm per pixel of a scan beyond which nuclei are too few pixels for a figure
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # haematoxylin, eosin, DAB: Ruifrok & Johnston 2001


@dataclass(frozen=True)
class QualitySettings:
    """From which figure on a slide is flagged (all figures our choice).

    fields: positions at which sharpness is measured, 0 = not at all. sharp: least sharpness of a field in focus; 0.8–1.0 is usual, a
    Gaussian blur of 1 µm gives 0.45. blurred: share of blurred fields from which on the slide is ``blurred`` (the half of it:
    ``partly blurred``). pen: share of the scanned area. black: share of the image. little_mm2: tissue below this is little. pieces:
    more are many. full: a larger share of tissue means that there is no glass. pale, dark: mean optical density of the tissue.
    """

    fields: int = 24
    sharp: float = 0.55
    blurred: float = 0.5
    pen: float = 0.005
    black: float = 0.1
    little_mm2: float = 0.5
    pieces: int = 20
    full: float = 0.97
    pale: float = 0.05
    dark: float = 0.45


def measure(slide: Slide, tissue: Tissue, mpp: float, settings: QualitySettings | None = None) -> dict[str, object]:
    """The figures `FIGURES` of a slide whose level 0 has `mpp` µm a pixel.

    tissue_share: of the slide's area. focus: median over fields of the ratio of fine (about 1 µm) to coarser (about 3 µm) structure in
    the optical density, which stain strength cancels out of; NaN where nothing could be measured. blurred_share: of the fields.
    haematoxylin, eosin: mean density of the stains in the tissue, ink and all. flags: what to look at, joined by ``;``, may be empty.
    Never raises for regions that cannot be read; they are flagged.
    """
    settings = settings or QualitySettings()
    mask = rasterise(tissue.polygons, tissue.image.shape[:2], tissue.downsample)
    areas = [tissue_mm2([p], mpp) for p in tissue.polygons]
    sharpness, unreadable = _sharpness(slide, mask, tissue.downsample, mpp, settings.fields)
    haematoxylin, eosin, density = _stain(tissue.image, mask)
    width, height = slide.dimensions
    found: dict[str, object] = {
        "tissue_mm2": float(sum(areas)),
        "tissue_share": sum(p.area for p in tissue.polygons) / (width * height),
        "pieces": len(areas),
        "holes": sum(len(p.interiors) for p in tissue.polygons),
        "largest_piece_mm2": max(areas, default=0.0),
        "pen_share": tissue.pen_share,
        "artefact_share": tissue.artefact_share,
        "unreadable_share": tissue.unreadable_share,
        "focus": float(np.median(sharpness)) if sharpness else float("nan"),
        "blurred_share": float(np.mean(np.array(sharpness) < settings.sharp)) if sharpness else float("nan"),
        "haematoxylin": haematoxylin,
        "eosin": eosin,
    }
    return {**found, "flags": ";".join(_flags(found, density, unreadable, settings))}


def _flags(found: dict[str, object], density: float, unreadable: int, settings: QualitySettings) -> list[str]:
    """`density`: mean OD of the tissue. Comparisons with NaN are False, so what was not measured is not flagged."""
    blurred, some = found["blurred_share"], bool(found["pieces"])
    conditions = {
        "no tissue": not some,
        "little tissue": some and found["tissue_mm2"] < settings.little_mm2,
        "many pieces": found["pieces"] > settings.pieces,
        "no glass": found["tissue_share"] > settings.full,
        "pen": found["pen_share"] > settings.pen,
        "black border": found["artefact_share"] > settings.black,
        "blurred": blurred >= settings.blurred,
        "partly blurred": settings.blurred > blurred >= settings.blurred / 2,
        "pale": some and density < settings.pale,
        "dark": density > settings.dark,
        "unreadable": unreadable > 0 or found["unreadable_share"] > 0,
    }
    return [flag for flag, raised in conditions.items() if raised]


def rasterise(polygons: Sequence[Polygon], shape: tuple[int, int], downsample: float) -> np.ndarray:
    """bool [H, W]: the pixels of an overview of `shape` that polygons (level-0 pixels) cover or touch."""
    mask = np.zeros(shape, np.uint8)
    for polygon in polygons:
        rings = [polygon.exterior, *polygon.interiors]
        cv2.fillPoly(mask, [np.round(np.asarray(ring.coords) / downsample - 0.5).astype(np.int32) for ring in rings], 1)
    return mask.astype(bool)


def _stain(image: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """Mean density of haematoxylin, of eosin, and mean OD over the channels, in the tissue, above the glass; 0 without tissue."""
    if not mask.any():
        return 0.0, 0.0, 0.0
    glass = -np.log10((glass_colour(image) + 1) / 256)
    density = np.maximum(cv2.LUT(image, OD)[mask].mean(axis=0) - glass, 0)
    amounts = density @ np.linalg.inv(STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True))
    return max(0.0, float(amounts[0])), max(0.0, float(amounts[1])), float(density.mean())


def _sharpness(slide: Slide, mask: np.ndarray, downsample: float, mpp: float, fields: int) -> tuple[list[float], int]:
    """Sharpness of fixed fields in the tissue, and how many could not be read."""
    at = np.flatnonzero(mask)
    if not fields or not len(at) or mpp > COARSEST:
        return [], 0
    level = slide.level_for(FOCUS_UM / mpp)
    step = slide.downsamples[level]
    side = max(1, round(FOCUS_SIDE * FOCUS_UM / (mpp * step)))
    found, unreadable = [], 0
    for index in at[((np.arange(fields) + 0.5) * len(at) / fields).astype(int)]:
        row, column = divmod(int(index), mask.shape[1])
        corner = [_on_grid((i + 0.5) * downsample, side * step, extent) for i, extent in zip((column, row), slide.dimensions, strict=True)]
        try:
            pixels = slide.read_rgb((corner[0], corner[1]), level, (side, side))
        except UnreadableRegionError:
            unreadable += 1
            continue
        found.append(_sharp(cv2.resize(pixels, (FOCUS_SIDE, FOCUS_SIDE), interpolation=cv2.INTER_AREA)))
    return found, unreadable


def _on_grid(centre: float, side: float, extent: int) -> int:
    """Start of the field around `centre`, on a grid of its side from 0 on: fields then fall on as few tiles of the file as they can."""
    return int(max(0, min(centre // side * side, extent - side)))


def _sharp(rgb: np.ndarray) -> float:
    density = cv2.LUT(rgb, OD).mean(axis=2)
    fine, coarse = cv2.GaussianBlur(density, (0, 0), FINE), cv2.GaussianBlur(density, (0, 0), COARSE)
    return float(np.std(density - fine) / (np.std(fine - coarse) + 1e-4))
