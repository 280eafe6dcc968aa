"""The whole slide as one small image, pyramid or not."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.errors import InputError
from pipeline.slides.opening import Slide, UnreadableRegionError
from pipeline.slides.signatures import truncation
from pipeline.slides.tiles import AbsentTileError, NotServedError, Tiles

log = logging.getLogger(__name__)

BLOCK = 2048  # level pixels read at a time: 16 MiB
SMALLEST_BLOCK = 128
MAX_PIXELS = 2**28  # of the overview: 131 mm squared at 8 µm
BOUNDS = tuple(f"openslide.bounds-{name}" for name in ("x", "y", "width", "height"))

REDUCTIONS = (1, 2, 4, 8)
ALIKE = 12.0  # mean grey levels; a shift of half a pixel makes 5, colours taken for others 50

Block = tuple[int, int, int, int]  # x, y, width, height in pixels of the overview
Reader = Callable[[Block], np.ndarray]


@dataclass(frozen=True)
class Overview:
    """image: uint8 [⌈H/downsample⌉, ⌈W/downsample⌉, 3]. unreadable_share: the part of its area that is white because it cannot be read."""

    image: np.ndarray
    unreadable_share: float


def overview(slide: Slide, downsample: float, max_unreadable: float = 0.1) -> np.ndarray:
    """The image of `read_overview`."""
    return read_overview(slide, downsample, max_unreadable).image


def read_overview(slide: Slide, downsample: float, max_unreadable: float = 0.1) -> Overview:
    """The whole slide, reduced; pixel (r, c) covers level-0 pixels from (c, r) · downsample.

    Read in blocks from the nearest finer level, inside the bounds of the scan where the scanner gives them: besides the result, memory
    is some 100 MiB whatever the slide. The slide's own tiles are decoded where they can be (JPEG at a half, a quarter or an eighth where
    that is enough); without a pyramid the time is that of decoding level 0. A block that cannot be read is cut in four down to 128
    level pixels; those are tried at the finer levels, then at the coarser ones, and else stay white. More than `max_unreadable` of the
    area raises `InputError`.
    """
    level = slide.level_for(downsample)
    with _reader(slide, level, downsample) as read:
        return _reduced(slide, level, downsample, max_unreadable, read)


def _reduced(slide: Slide, level: int, downsample: float, max_unreadable: float, read: Reader) -> Overview:
    side = max(1, int(BLOCK * slide.downsamples[level] / downsample))
    width, height = (math.ceil(extent / downsample) for extent in slide.dimensions)
    if width * height > MAX_PIXELS:
        found, expected = f"{width} x {height} pixels", f"at most {MAX_PIXELS:,}"
        remedy = "Check the resolution (mpp) of the slide: its overview has pixels of the size that tissue is found at."
        raise InputError("the overview of the slide has an absurd size", file=slide.path, found=found, expected=expected, remedy=remedy)
    image = np.full((height, width, 3), 255, np.uint8)
    lost = rescued = 0
    pending = _blocks(_scanned(slide, downsample, (width, height)), side)[::-1]
    while pending:
        block = x, y, w, h = pending.pop()
        try:
            pixels = read(block)
        except UnreadableRegionError as error:
            if max(_size(slide, level, block, downsample)) > SMALLEST_BLOCK and max(w, h) > 1:
                pending += _blocks(block, math.ceil(max(w, h) / 2))
                continue
            pixels = _from_another_level(slide, level, block, downsample)
            if pixels is None:
                lost += w * h
                if lost > max_unreadable * width * height:
                    raise _too_much_lost(slide, max_unreadable, error) from error
                continue
            rescued += w * h
        image[y : y + h, x : x + w] = pixels
    if lost or rescued:
        shares = [100 * area / (width * height) for area in (lost, rescued)]
        text = "%s: %.3g %% of the overview cannot be read and counts as glass, %.3g %% was read from another level"
        log.warning(text, slide.path.name, *shares)
    return Overview(image, lost / (width * height))


@contextmanager
def _reader(slide: Slide, level: int, downsample: float) -> Iterator[Reader]:
    """What reads a block of the overview: from the slide's own tiles when these look as OpenSlide shows them, else through OpenSlide."""

    def through_openslide(block: Block) -> np.ndarray:
        return _read(slide, level, block, downsample)

    with ExitStack() as stack:
        try:
            tiles = stack.enter_context(Tiles(slide))
            tiles.strict = False  # as OpenSlide: a hint of damage is no reason to look elsewhere for so small an image
            if level not in tiles.levels or not _looks_alike(slide, tiles, level):
                raise NotServedError
        except NotServedError:
            yield through_openslide
            return
        reduce = max(r for r in REDUCTIONS if r * slide.downsamples[level] <= downsample * 1.01 and tiles.levels[level].scales(r))
        scale = downsample / (slide.downsamples[level] * reduce)

        def from_tiles(block: Block) -> np.ndarray:
            x, y, w, h = block
            try:
                size = max(1, round(w * scale)), max(1, round(h * scale))
                pixels = tiles.region(level, round(x * scale), round(y * scale), *size, reduce)
            except AbsentTileError:
                return through_openslide(block)
            return cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)

        yield from_tiles


def _looks_alike(slide: Slide, tiles: Tiles, level: int) -> bool:
    """Whether the fullest tile of a level has the colours that OpenSlide shows there."""
    grid, downsample = tiles.levels[level], slide.downsamples[level]
    index = int(grid.lengths.argmax())
    left, top = index % grid.across * grid.tile[0], index // grid.across * grid.tile[1]
    size = min(grid.tile[0], grid.size[0] - left), min(grid.tile[1], grid.size[1] - top)
    try:
        expected = slide.read_rgb((round(left * downsample), round(top * downsample)), level, size)
        found = tiles.decode(level, index)[: size[1], : size[0]]
    except (UnreadableRegionError, AbsentTileError):
        return False
    return float(np.abs(found.astype(np.int16) - expected).mean()) < ALIKE


def _read(slide: Slide, level: int, block: Block, downsample: float) -> np.ndarray:
    x, y, w, h = block
    pixels = slide.read_rgb((round(x * downsample), round(y * downsample)), level, _size(slide, level, block, downsample))
    return cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)


def _size(slide: Slide, level: int, block: Block, downsample: float) -> tuple[int, int]:
    """Width and height of a block in pixels of a level."""
    scale = downsample / slide.downsamples[level]
    return max(1, round(block[2] * scale)), max(1, round(block[3] * scale))


def _from_another_level(slide: Slide, level: int, block: Block, downsample: float) -> np.ndarray | None:
    """A block that is broken at `level`, from the next finer level that has it, else from the next coarser one."""
    for other in [*range(level - 1, -1, -1), *range(level + 1, len(slide.downsamples))]:
        if max(_size(slide, other, block, downsample)) > BLOCK:
            continue
        try:
            return _read(slide, other, block, downsample)
        except UnreadableRegionError:
            continue
    return None


def _too_much_lost(slide: Slide, max_unreadable: float, error: UnreadableRegionError) -> InputError:
    reason = truncation(slide.path) or str(error)
    problem = f"more than {max_unreadable:.0%} of the slide cannot be read ({reason})"
    return InputError(problem, file=slide.path, remedy="Copy the slide again from its source.")


def _scanned(slide: Slide, downsample: float, size: tuple[int, int]) -> Block:
    """The part of the overview that the scanner says it scanned, all of it where it says nothing."""
    try:
        left, top, width, height = (int(slide.properties[name]) for name in BOUNDS)
    except (KeyError, ValueError):
        return 0, 0, *size
    x, y = (max(0, int(start / downsample)) for start in (left, top))
    right = min(size[0], math.ceil((left + width) / downsample))
    bottom = min(size[1], math.ceil((top + height) / downsample))
    return (x, y, right - x, bottom - y) if right > x and bottom > y else (0, 0, *size)


def _blocks(area: Block, side: int) -> list[Block]:
    x, y, width, height = area
    corners = [(i, j) for j in range(y, y + height, side) for i in range(x, x + width, side)]
    return [(i, j, min(side, x + width - i), min(side, y + height - j)) for i, j in corners]
