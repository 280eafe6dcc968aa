"""Opening a slide: pixels as RGB on white, its resolution, and an overview at any scale, pyramid or not."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import openslide

from pipeline.errors import InputError

log = logging.getLogger(__name__)

PLAUSIBLE_MPP = (0.05, 4.0)  # µm per pixel: beyond a 200x scan and a 2.5x scan
MPP_TIMES_POWER = 10.0  # a 40x scan has 0.25 µm per pixel
BLOCK = 2048  # level pixels read at a time for an overview: 16 MiB
SMALLEST_BLOCK = 64


@dataclass(frozen=True)
class Resolution:
    """Micrometres a level-0 pixel, where the figure comes from, and the objective power that the file states (may be None).

    source: ``table`` (slide table), ``header`` (openslide.mpp-x), ``objective-power`` (10 / power) or ``cohort`` (`slides.mpp`).
    """

    mpp: float
    source: str
    objective_power: float | None


class Slide:
    """An open slide that survives unreadable tiles; a context manager.

    An OpenSlide handle that met one error fails for ever, so it is opened anew before the error is passed on.
    Raises `InputError` when the file is absent or no slide.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError("no such slide file", file=self.path, remedy="Correct its path, or take the slide out of the slide table.")
        self._handle = self._open()
        self.dimensions: tuple[int, int] = self._handle.dimensions
        self.downsamples: tuple[float, ...] = self._handle.level_downsamples
        self.properties: Mapping[str, str] = dict(self._handle.properties)

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(str(self.path))
        except openslide.OpenSlideError as error:
            remedy = "Check that the file was copied whole (size, checksum) and that OpenSlide reads its format."
            raise InputError(f"cannot be opened as a slide ({error})", file=self.path, remedy=remedy) from error

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._handle.close()

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is not coarser than `downsample` (1 % tolerance: levels have ratios such as 2.0005)."""
        return max((i for i, d in enumerate(self.downsamples) if d <= downsample * 1.01), default=0)

    def read_rgb(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        """uint8 [height, width, 3] of `size` = (width, height) level pixels from the level-0 `location` (x, y).

        Transparent pixels (outside the scan) become white. Raises `openslide.OpenSlideError` for an unreadable tile.
        """
        try:
            rgba = np.asarray(self._handle.read_region(location, level, size))
        except openslide.OpenSlideError:
            self._handle.close()
            self._handle = self._open()
            raise
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min() < 255:
            rgb = ((rgb.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16)) + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(rgb)


def resolve(properties: Mapping[str, str], slide_id: str, table_mpp: float | None = None, default_mpp: float | None = None) -> Resolution:
    """The resolution of a slide: slide table, then openslide.mpp-x, then 10 / objective power, then the cohort's default.

    The two figures of the file are refused outside 0.05–4 µm per pixel; a person's figure is believed.
    Raises `InputError` when nothing is known or the file's figure is implausible.
    """
    power = _number(properties.get("openslide.objective-power"))
    header = _number(properties.get("openslide.mpp-x"))
    if _given(table_mpp):
        return Resolution(_positive(table_mpp, slide_id), "table", power)
    for mpp, source in ((header, "header"), (power and MPP_TIMES_POWER / power, "objective-power")):
        if mpp is None:
            continue
        if not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
            raise InputError(
                "implausible resolution in the file",
                slide=slide_id,
                found=f"{mpp:g} µm per pixel ({source})",
                expected=f"{PLAUSIBLE_MPP[0]:g} to {PLAUSIBLE_MPP[1]:g}",
                remedy="Add an mpp column with the right value for this slide in the slide table.",
            )
        if power and not 0.5 < mpp * power / MPP_TIMES_POWER < 2:
            log.warning("slide %s: %g µm per pixel does not go with its %gx objective; the former is used", slide_id, mpp, power)
        return Resolution(mpp, source, power)
    if _given(default_mpp):
        return Resolution(_positive(default_mpp, slide_id), "cohort", power)
    raise InputError(
        "no resolution in the file",
        slide=slide_id,
        expected="openslide.mpp-x or openslide.objective-power",
        remedy="Add an mpp column for this slide in the slide table or `slides.mpp` in the cohort file.",
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _given(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _positive(value: float, slide_id: str) -> float:
    if not 0 < value < math.inf:
        raise InputError("resolution is not positive", slide=slide_id, column="mpp", found=value, expected="µm per pixel, above 0")
    return float(value)


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
        except openslide.OpenSlideError as error:
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
