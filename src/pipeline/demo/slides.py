"""Write the slides of the synthetic cohort as tiled, pyramidal JPEG TIFFs that OpenSlide reads as Aperio scans."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np

from pipeline.demo.histology import draw_section
from pipeline.demo.plan import PlannedSlide, make_plan
from pipeline.errors import InputError, nearest
from pipeline.files import atomic

log = logging.getLogger(__name__)

TILE = 256
QUALITY = 75
MPP, POWER = 0.5, 20
LEVELS, STEP = 2, 4  # coarser levels, and the downsample from each to the next
THUMBNAIL = 768
TRUNCATED_AT = 0.3
RECIPE = 1  # raise it when the drawing changes: slides of an older recipe are made again


def write_slides(folder: Path, *, slides: Collection[str] | None = None, patients: int = 80, seed: int = 1) -> list[Path]:
    """Make the slides with these ids (default: all) under ``folder/slides``; returns their paths, sorted by id.

    A slide that is there and was made by the same plan is left alone; every slide is renamed into place when complete. The same
    arguments give the same bytes. One slide is cut at 30 % of its bytes, one states neither resolution nor magnification.
    Raises `InputError` for an id that the plan does not have.
    """
    planned = {slide.slide_id: slide for slide in make_plan(patients, seed).slides}
    wanted = sorted(planned if slides is None else slides)
    for slide_id in wanted:
        if slide_id not in planned:
            raise InputError("the synthetic cohort has no such slide", slide=slide_id, remedy=nearest(slide_id, planned))
    paths = []
    for slide_id in wanted:
        path = Path(folder) / planned[slide_id].file
        if not _is_made(path, planned[slide_id]):
            _write_slide(path, planned[slide_id])
            log.info("%s: %d KiB", path.name, path.stat().st_size >> 10)
        paths.append(path)
    return paths


def _fingerprint(slide: PlannedSlide) -> str:
    return f"Synthetic = {RECIPE}-{slide.seed}"


def _is_made(path: Path, slide: PlannedSlide) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as handle:
        return _fingerprint(slide).encode() in handle.read(4096)


def _write_slide(path: Path, slide: PlannedSlide) -> None:
    image = draw_section(slide.morphology, slide.seed)
    with atomic(path) as temporary:
        _write_aperio(temporary, image, slide)
        if slide.defect == "truncated":
            with open(temporary, "rb+") as handle:
                handle.truncate(int(temporary.stat().st_size * TRUNCATED_AT))


def _write_aperio(path: Path, image: np.ndarray, slide: PlannedSlide) -> None:
    """The directories of an Aperio scan: level 0, a thumbnail in strips, then the coarser levels."""
    import tifffile

    height, width = image.shape[:2]
    levels = []
    for _ in range(LEVELS):
        finer = levels[-1] if levels else image
        levels.append(cv2.resize(finer, (finer.shape[1] // STEP, finer.shape[0] // STEP), interpolation=cv2.INTER_AREA))
    shrink = THUMBNAIL / max(height, width)
    thumbnail = cv2.resize(levels[0], (round(width * shrink), round(height * shrink)), interpolation=cv2.INTER_AREA)
    maker = "Aperio Image Library v12.0.15 \r\n"
    scale = "" if slide.defect == "no scale" else f"|AppMag = {POWER}|MPP = {MPP:.4f}"
    facts = f"{scale}|Filename = {slide.slide_id}|{_fingerprint(slide)}"
    common = {
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": QUALITY},
        "metadata": None,
        "software": False,
        "maxworkers": 1,
    }
    with tifffile.TiffWriter(path) as tiff:
        text = f"{maker}{width}x{height} [0,0 {width}x{height}] ({TILE}x{TILE}) JPEG/YCC Q={QUALITY}{facts}"
        tiff.write(image, tile=(TILE, TILE), description=text, **common)
        text = f"{maker}{width}x{height} -> {thumbnail.shape[1]}x{thumbnail.shape[0]} - {facts}"
        tiff.write(thumbnail, rowsperstrip=16, description=text, **common)
        for level in levels:
            text = f"{maker}{width}x{height} ({TILE}x{TILE}) -> {level.shape[1]}x{level.shape[0]} JPEG/YCC Q={QUALITY}"
            tiff.write(level, tile=(TILE, TILE), description=text, **common)
