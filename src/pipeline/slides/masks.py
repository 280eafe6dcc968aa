"""Tissue found elsewhere: contours (QuPath, TRIDENT) or image masks (HistoQC, GrandQC, CLAM), checked against the slide."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from shapely.affinity import scale
from shapely.geometry import Polygon, box
from shapely.ops import unary_union

from pipeline.errors import InputError
from pipeline.limits import check_pixels
from pipeline.machine import MachineError
from pipeline.slides.contours import polygonal, read_contours
from pipeline.slides.signatures import check_directories, recognise
from pipeline.slides.tissue import trace

log = logging.getLogger(__name__)

CONTOURS, IMAGES = (".geojson", ".json"), (".png", ".tif", ".tiff", ".bmp")
ASPECT = 0.02  # by which the proportions of mask and slide may differ, beside a pixel and a half of rounding
OVERHANG = 0.01  # share of the contours' area that may lie outside the slide
DECODERS = ("PNG", "TIFF", "BMP", "JPEG")  # what a mask may be by its content, whatever its name says
MAX_PIXELS = 170_000_000
LONGEST = 4096  # pixels of a mask's longer side beyond which it is shrunk before it is traced


@dataclass(frozen=True)
class MaskSettings:
    """Where tissue from outside is.

    folder: absent = ours is used. name: a file's name without suffix, relative to `folder`; ``{slide_id}`` stands for the slide's id.
    values: which pixel values of an image count as tissue; None = all but 0. ignore: annotations of these classes (shell patterns) are
    taken out of the tissue (our choice: QuPath's ``Ignore*`` and the usual word). required: a slide without a file fails instead of
    having its tissue found by us.
    """

    folder: str | Path | None = None
    name: str = "{slide_id}"
    values: tuple[int, ...] | None = None
    ignore: tuple[str, ...] = ("Ignore*", "Exclude*")
    required: bool = False


def mask_file(slide_id: str, settings: MaskSettings) -> Path | None:
    """The file with the slide's tissue, None where there is none.

    Raises `InputError` when there are two, or when `required` and there is none, and `MachineError` when the folder is absent or empty: its
    disk is not mounted, and the tissue of all slides would be found in place of what was drawn.
    """
    if settings.folder is None:
        return None
    folder = Path(settings.folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        remedy = "Mount it again, or correct or remove `slides.masks.folder`."
        raise MachineError("the folder of masks is absent or empty", path=folder, remedy=remedy, everywhere=True)
    stem = settings.name.replace("{slide_id}", slide_id)
    names = [stem] if Path(stem).suffix.lower() in (*CONTOURS, *IMAGES) else [stem + suffix for suffix in (*CONTOURS, *IMAGES)]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        remedy = "Keep one, or give its suffix in `slides.masks.name`."
        raise InputError("has more than one mask", file=folder, slide=slide_id, found=", ".join(p.name for p in found), remedy=remedy)
    if not found and settings.required:
        remedy = "Add it, or set `slides.masks.required: false` to have the tissue found."
        raise InputError("has no mask", file=folder, slide=slide_id, expected=" or ".join(names), remedy=remedy)
    return found[0] if found else None


def outside_tissue(folder: str | Path, slide_id: str, dimensions: tuple[int, int], settings: MaskSettings) -> list[Polygon] | None:
    """The slide's tissue from a file of `folder` as valid polygons in level-0 pixels, top to bottom; None where there is no file.

    `dimensions`: width and height of level 0. Overlapping annotations are joined, those of an ignored class are taken out.
    Raises `InputError` when the file cannot be read, does not fit the slide, or holds no tissue.
    """
    path = mask_file(slide_id, MaskSettings(**{**vars(settings), "folder": folder}))
    if path is None:
        return None
    if path.suffix.lower() in CONTOURS:
        polygons = within(read_contours(path, settings.ignore)[0], dimensions, path, slide_id)
        facts = "no area within the slide, or all of it of an ignored class"
    else:
        values = _read_image(path, slide_id, settings)
        _check_aspect(values, dimensions, path, slide_id)
        is_tissue = values != 0 if settings.values is None else np.isin(values, settings.values)
        polygons = _traced(is_tissue, dimensions)
        facts = "the values " + ", ".join(map(str, np.unique(values)[:10]))
    if not polygons:
        remedy = "Check the file, `slides.masks.values` and `slides.masks.ignore`, or remove the file to have the tissue found."
        raise InputError("holds no tissue", file=path, slide=slide_id, found=facts, remedy=remedy)
    log.info("slide %s: tissue taken from %s", slide_id, path)
    return polygons


def within(polygons: list[Polygon], dimensions: tuple[int, int], path: Path, slide_id: str) -> list[Polygon]:
    """The polygons as one area cut at the slide's edges (`dimensions`: width, height); `InputError` when much of it lies outside."""
    if not polygons:
        return []
    union = unary_union(polygons)
    inside = union.intersection(box(0, 0, *dimensions))
    if union.area - inside.area > OVERHANG * union.area:
        raise InputError(
            "contours lie outside the slide",
            file=path,
            slide=slide_id,
            found="x {:.0f} to {:.0f}, y {:.0f} to {:.0f}".format(*(union.bounds[i] for i in (0, 2, 1, 3))),
            expected=f"x 0 to {dimensions[0]}, y 0 to {dimensions[1]}",
            remedy="Export them anew in pixels of full resolution, and check that they are this slide's.",
        )
    return sorted(polygonal(inside), key=lambda p: (p.bounds[1], p.bounds[0]))


def _read_image(path: Path, slide_id: str, settings: MaskSettings) -> np.ndarray:
    """The pixel values [H, W] of a mask; of a coloured one whether a pixel is not black."""
    from PIL import Image

    remedy = "Save the mask anew as PNG of at most 170 million pixels."
    kind = recognise(path).kind
    if kind not in DECODERS:
        expected = ", ".join(DECODERS)
        raise InputError("cannot be read as an image", file=path, slide=slide_id, found=kind, expected=expected, remedy=remedy)
    if kind == "TIFF":
        check_directories(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=[kind]) as image:  # by its content alone: Pillow hands PostScript to Ghostscript
                check_pixels("mask", image.size, path.stat().st_size, path, slide=slide_id, most=MAX_PIXELS, remedy=remedy)
                values = np.asarray(image)
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot be read as an image ({error})", file=path, slide=slide_id, remedy=remedy) from error
    if values.ndim == 2:
        return values.astype(np.uint8) if values.dtype == bool else values
    channels = values[..., : 3 if values.shape[2] >= 3 else 1]
    if (channels == channels[..., :1]).all():
        return channels[..., 0]
    if settings.values is not None:
        remedy = "Save the mask in shades of grey, or remove `slides.masks.values` to take all that is not black."
        raise InputError("mask is coloured", file=path, slide=slide_id, expected="one value a pixel", remedy=remedy)
    return channels.max(axis=2)


def _check_aspect(values: np.ndarray, dimensions: tuple[int, int], path: Path, slide_id: str) -> None:
    (height, width), (slide_width, slide_height) = values.shape, dimensions
    off = abs(width * slide_height / (height * slide_width) - 1)
    if off > ASPECT + 1.5 / min(height, width):
        raise InputError(
            "mask has other proportions than the slide",
            file=path,
            slide=slide_id,
            found=f"{width} × {height} pixels",
            expected=f"those of {slide_width} × {slide_height}",
            remedy="Check that it is this slide's mask and covers the whole slide.",
        )


def _traced(mask: np.ndarray, dimensions: tuple[int, int]) -> list[Polygon]:
    factor = max(mask.shape) / LONGEST
    if factor > 1:
        size = tuple(max(1, round(extent / factor)) for extent in mask.shape[::-1])
        mask = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 127
    across, down = (extent / pixels for extent, pixels in zip(dimensions, mask.shape[::-1], strict=True))
    return [scale(polygon, across, down, origin=(0, 0)) for polygon in trace(mask, 1.0)]
