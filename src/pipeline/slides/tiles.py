"""The compressed tiles of a TIFF slide, decoded directly.

OpenSlide decodes a tile in a quarter of the time that one of its calls takes; where a slide is a tiled TIFF of JPEG or JPEG 2000
streams, the streams are therefore found through the TIFF directory and decoded here, each once (`pipeline.slides.reading`). OpenSlide
stays the referee: what it makes of the same pixels is compared before any of them counts.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg

from pipeline.errors import InputError
from pipeline.machine import machine_fault
from pipeline.slides.opening import Slide, UnreadableRegionError
from pipeline.slides.signatures import coded_size

if TYPE_CHECKING:
    from tifffile import TiffPage

VENDORS = ("aperio", "generic-tiff", "philips-tiff")  # one grid a level, without overlaps or offsets
JPEG, J2K_YCBCR, J2K_RGB = 7, 33003, 33005  # TIFF compressions
RGB, YCBCR = 2, 6  # TIFF photometric interpretations
OVERWRITTEN = bytes(512)  # no JPEG 2000 stream has so many zeros in a row, and its decoder would notice nothing
START = b"\xff\xd8"
KEPT_BYTES = 1 << 29  # decoded tiles that wait for their other patches
COMPRESSIONS = {JPEG: "JPEG", J2K_YCBCR: "JPEG 2000 (YCbCr)", J2K_RGB: "JPEG 2000"}


class NotServedError(Exception):
    """Why the tiles of a slide are not decoded directly."""


class AbsentTileError(Exception):
    """The scanner stored no data for a tile; OpenSlide knows what to put there."""


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one level, row by row: where each lies in the file, and what is put before a JPEG stream to complete it.

    size, tile: (width, height) of the level and of a tile, in pixels of the level. offsets, lengths: int64 [tiles], bytes.
    """

    compression: int
    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: np.ndarray
    lengths: np.ndarray
    head: bytes

    @property
    def across(self) -> int:
        return math.ceil(self.size[0] / self.tile[0])

    def scales(self, reduce: int) -> bool:
        """Whether tiles can be decoded at 1/`reduce` of their size."""
        return reduce == 1 or (self.compression == JPEG and reduce in (2, 4, 8) and not any(side % (8 * reduce) for side in self.tile))


class Tiles:
    """The tiles of an open slide by its levels; a context manager whose methods may be called from several threads.

    Raises `NotServedError` when no level of the slide can be served.
    """

    def __init__(self, slide: Slide) -> None:
        vendor = slide.properties.get("openslide.vendor")
        if vendor not in VENDORS:
            raise NotServedError(f"its format ({vendor or 'a plain image'}) is not one of " + ", ".join(VENDORS))
        self.levels = dict(_grids(slide))
        if 0 not in self.levels:
            raise NotServedError("its tiles are not JPEG or JPEG 2000 streams of 8-bit RGB")
        self.strict = True  # a stream that libjpeg only warns about is taken for damaged
        self._own = threading.local()
        self._path, self._file = slide.path, os.open(slide.path, os.O_RDONLY)

    def __enter__(self) -> Tiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)

    def decode(self, level: int, index: int, reduce: int = 1, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 [tile height / reduce, tile width / reduce, 3] of the tile `index` of `level`, into `out` where it is given.

        Raises `AbsentTileError` for a tile without data and `UnreadableRegionError` for one that cannot be decoded.
        """
        grid = self.levels[level]
        length = int(grid.lengths[index])
        if length == 0:
            raise AbsentTileError
        try:
            pixels = self._decode(grid, self._stream(grid.head, int(grid.offsets[index]), length), reduce, out)
            if pixels.shape != (grid.tile[1] // reduce, grid.tile[0] // reduce, 3):
                raise ValueError(f"has {pixels.shape[1]} x {pixels.shape[0]} pixels")
        except (ValueError, RuntimeError, OSError) as error:  # imagecodecs raises RuntimeError
            if fault := machine_fault(error, self._path):
                raise fault from error
            place = f"tile {index % grid.across}, {index // grid.across} of level {level}"
            raise UnreadableRegionError(f"{place}: {error}") from error
        return pixels

    def region(self, level: int, left: int, top: int, width: int, height: int, reduce: int = 1) -> np.ndarray:
        """uint8 [height, width, 3] of pixels of `level` divided by `reduce`, put together from its tiles; white beyond them.

        Raises as `decode`.
        """
        grid = self.levels[level]
        across, down = (side // reduce for side in grid.tile)
        limits = [-(-extent // reduce) for extent in grid.size]
        right, bottom = (min(a, b) for a, b in zip((left + width, top + height), limits, strict=True))
        pixels = np.full((height, width, 3), 255, np.uint8)
        for row in range(top // down, -(-bottom // down)):
            for column in range(left // across, -(-right // across)):
                x, y = column * across, row * down
                x0, y0, x1, y1 = max(x, left), max(y, top), min(x + across, right), min(y + down, bottom)
                tile = self.decode(level, row * grid.across + column, reduce)
                pixels[y0 - top : y1 - top, x0 - left : x1 - left] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return pixels

    def _stream(self, head: bytes, offset: int, length: int) -> memoryview:
        """The bytes of a tile behind `head`, in this thread's buffer; the end of the head replaces the start marker of the stream."""
        skip = len(head) - len(START) if head else 0
        if len(getattr(self._own, "stream", b"")) < skip + length:
            self._own.stream = bytearray(skip + 2 * length)
        view = memoryview(self._own.stream)[: skip + length]
        if os.preadv(self._file, [view[skip:]], offset) < length:
            raise ValueError("the file ends before it")
        if head:
            if view[skip : skip + len(START)] != START:
                raise ValueError("holds no JPEG stream")
            view[: len(head)] = head
        return view

    def _decode(self, grid: TileGrid, stream: memoryview, reduce: int, out: np.ndarray | None) -> np.ndarray:
        if out is None or grid.compression != JPEG:  # else the decoder compares it with the room that it is given
            size = coded_size(bytes(stream))
            if size != grid.tile:
                raise ValueError("has {} x {} pixels".format(*size) if size else "states no size")
        if grid.compression == JPEG:
            width, height = grid.tile
            smaller = {"min_width": width // reduce, "min_height": height // reduce, "min_factor": reduce} if reduce > 1 else {}
            return simplejpeg.decode_jpeg(stream, "RGB", buffer=out, strict=self.strict, **smaller)
        from imagecodecs import jpeg2k_decode

        if OVERWRITTEN in bytes(stream):
            raise ValueError("a part of it is overwritten with zeros")
        pixels = jpeg2k_decode(stream)
        if grid.compression == J2K_YCBCR:
            pixels = _from_ycbcr(pixels)
        if out is None:
            return pixels
        if out.shape != pixels.shape:
            raise ValueError(f"has the shape {pixels.shape}")
        out[:] = pixels
        return out


@dataclass(frozen=True)
class View:
    """How patches are cut from one level whose tiles are decoded at 1 / `reduce`: a pixel then covers `step` level-0 pixels, a patch
    `extent` pixels, a tile `tile_width` x `tile_height`; there are `across` tiles in a row."""

    level: int
    reduce: int
    step: int
    extent: int
    tile_width: int
    tile_height: int
    across: int


class _Kept:
    """A tile that several patches need: its pixels, or why it has none, once `ready`."""

    __slots__ = ("error", "pixels", "ready")

    def __init__(self) -> None:
        self.pixels: np.ndarray | None = None
        self.error: Exception | None = None
        self.ready = threading.Event()


class TileStore:
    """Decoded tiles on which more than one patch lies: each is decoded once, by the thread that comes first, and let go after its last use.

    Their memory is used again and again: fetching it anew costs an eighth of what decoding does.
    """

    def __init__(self, tiles: Tiles, view: View, uses: np.ndarray) -> None:
        self._tiles, self._view = tiles, view
        self._uses, self._alone = uses.tolist(), (uses == 1).tolist()
        self._room = KEPT_BYTES // (view.tile_width * view.tile_height * 3)
        self._kept: dict[int, _Kept] = {}
        self._free: list[np.ndarray] = []
        self._own = threading.local()
        self._lock = threading.Lock()

    def is_alone(self, index: int) -> bool:
        """Whether a single patch lies on the tile."""
        return self._alone[index]

    def take(self, index: int) -> np.ndarray:
        """The pixels of a tile, valid until `release`. Its failure is as lasting as its success."""
        if self._alone[index]:
            return self._decode(index, self._scratch())
        tile = self._kept.get(index)
        if tile is None:
            with self._lock:
                tile = self._kept.get(index)
                is_first = tile is None and len(self._kept) < self._room
                if is_first:
                    tile = self._kept[index] = _Kept()
                    pixels = self._free.pop() if self._free else self._empty()
            if tile is None:
                return self._decode(index, self._scratch())
            if is_first:
                try:
                    tile.pixels = self._decode(index, pixels)
                except Exception as error:  # whatever it is, the threads that wait for this tile must hear of it
                    tile.error = error
                finally:
                    tile.ready.set()
        if tile.pixels is None:
            tile.ready.wait()  # another thread is decoding it
            if tile.error:
                raise tile.error
        return tile.pixels

    def release(self, index: int) -> None:
        """One patch has what it needs of the tile."""
        if self._alone[index]:
            return
        with self._lock:
            self._uses[index] -= 1
            if self._uses[index] == 0 and (tile := self._kept.pop(index, None)) and tile.pixels is not None:
                self._free.append(tile.pixels)

    def _decode(self, index: int, out: np.ndarray) -> np.ndarray:
        return self._tiles.decode(self._view.level, index, self._view.reduce, out)

    def _scratch(self) -> np.ndarray:
        """This thread's room for a tile that is not kept."""
        if not hasattr(self._own, "tile"):
            self._own.tile = self._empty()
        return self._own.tile

    def _empty(self) -> np.ndarray:
        return np.empty((self._view.tile_height, self._view.tile_width, 3), np.uint8)


def describe(slide: Slide) -> tuple[bool, str]:
    """Whether the slide's tiles can be decoded directly, and how they are stored or why they cannot."""
    try:
        with Tiles(slide) as tiles:
            grid = tiles.levels[0]
    except NotServedError as reason:
        return False, str(reason)
    return True, f"{COMPRESSIONS[grid.compression]} tiles of {grid.tile[0]} x {grid.tile[1]}"


def check_directory(slide: Slide) -> None:
    """Raises `InputError` when the slide is a TIFF whose directory is damaged: OpenSlide then opens what is left of it without a word."""
    if slide.properties.get("openslide.vendor") in VENDORS:
        try:
            dict(_grids(slide))
        except NotServedError as error:
            remedy = "Copy the slide again from its source. If it is sound, set `slides.check_levels: false`."
            raise InputError(str(error), file=slide.path, remedy=remedy) from error


def _grids(slide: Slide) -> Iterator[tuple[int, TileGrid]]:
    """Level → grid, for the levels of the slide that are pages of tiles of their size."""
    from tifffile import TiffFile

    try:
        with TiffFile(slide.path) as tiff:
            pages = {(page.imagewidth, page.imagelength): page for page in reversed(tiff.pages) if page.is_tiled}
            for level in range(len(slide.downsamples)):
                size = tuple(int(slide.properties[f"openslide.level[{level}].{side}"]) for side in ("width", "height"))
                if size in pages and (grid := _grid(pages[size])):
                    yield level, grid
    except Exception as error:  # a damaged directory makes the parser raise almost anything; OpenSlide is asked instead
        raise NotServedError(f"its TIFF directory cannot be followed ({type(error).__name__}: {error})") from error


def _grid(page: TiffPage) -> TileGrid | None:
    compression, photometric = int(page.compression), int(page.photometric)
    plain = page.samplesperpixel == 3 and page.bitspersample == 8 and page.planarconfig == 1 and page.imagedepth == 1
    colours = (RGB, YCBCR) if compression == JPEG else (RGB, YCBCR, 0)
    tile, size = (page.tilewidth, page.tilelength), (page.imagewidth, page.imagelength)
    offsets, lengths = (np.asarray(x, np.int64) for x in (page.dataoffsets, page.databytecounts))
    tiles = math.ceil(size[0] / tile[0]) * math.ceil(size[1] / tile[1])
    if not plain or compression not in COMPRESSIONS or photometric not in colours or not len(offsets) == len(lengths) == tiles:
        return None
    return TileGrid(compression, size, tile, offsets, lengths, _head(page.jpegtables, photometric) if compression == JPEG else b"")


def _head(tables: bytes | None, photometric: int) -> bytes:
    """What completes the abbreviated streams of a page: start, shared tables, and a marker (Adobe's APP14) that tells the colours,
    without which a decoder takes RGB for YCbCr."""
    colours = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([photometric == YCBCR])
    return START + colours + (tables[2:-2] if tables else b"")


def _from_ycbcr(pixels: np.ndarray) -> np.ndarray:
    """RGB of full-range YCbCr (JFIF), each chroma term rounded by itself as libjpeg and OpenSlide do."""
    y, cb, cr = (pixels[..., i].astype(np.int32) for i in range(3))
    cb, cr = cb - 128, cr - 128
    half = 1 << 15
    red = y + ((91881 * cr + half) >> 16)
    green = y + ((-22554 * cb - 46802 * cr + half) >> 16)
    blue = y + ((116130 * cb + half) >> 16)
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 255).astype(np.uint8)
