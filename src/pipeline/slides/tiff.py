"""Plain TIFF, OME-TIFF and BigTIFF: strips and tiles decoded on demand, reductions of the largest page as levels."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import tifffile
from tifffile import COMPRESSION, PHOTOMETRIC

from pipeline.errors import InputError
from pipeline.slides.images import Level, on_white
from pipeline.slides.signatures import CONVERT, COPY_AGAIN, coded_size, truncation

log = logging.getLogger(__name__)

MAX_SEGMENT = 2**26  # pixels of one strip or tile: 192 MiB (our choice)
SMALL_SEGMENT = 2**20  # pixels that any picture within a TIFF may have
BOUNDED = {  # compressions that are decoded into as many bytes as a strip or tile has
    COMPRESSION[name]
    for name in ("NONE", "CCITTRLE", "CCITTFAX3", "CCITTFAX4", "LZW", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "ZSTD", "LZMA")
}
PICTURES = {  # those with a size of their own, which is asked first (`coded_size`)
    COMPRESSION[name]
    for name in ("OJPEG", "JPEG", "ALT_JPEG", "JPEG2000", "JPEG_2000_LOSSY", "APERIO_JP2000_YCBC", "APERIO_JP2000_RGB", "WEBP", "PNG")
}
CACHE_BYTES = 2**26  # of decoded strips and tiles a level
MIN_SAMPLE, MAX_SAMPLE = 280, 281  # TIFF tags: the declared range of the samples
UNITS = {2: "inch", 3: "centimeter"}
SAMPLES = {PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.PALETTE: 1, PHOTOMETRIC.RGB: 3, PHOTOMETRIC.YCBCR: 3}
SAMPLES |= {PHOTOMETRIC.SEPARATED: 4}
VIPS = "Convert it to a tiled RGB TIFF of 8 bits: `vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg --bigtiff`."


def open_tiff(path: Path) -> tuple[list[Level], dict[str, str], Callable[[], None]]:
    """The levels of a TIFF, its properties (``tiff.…``), and what to call when they are no longer needed.

    Level 0 is the largest page; pages and SubIFDs of its kind and shape, reduced, are the coarser ones. Others are passed over.
    Raises `InputError` for a file that is cut off, and for pixels that are no brightfield image.
    """
    if path.suffix.lower() == ".vsi":
        raise InputError("is an Olympus VSI file, whose pixels lie in ETS files beside it", file=path, remedy=CONVERT)
    if cut := truncation(path, pixels=False):
        raise InputError(f"cannot be opened as a slide ({cut})", file=path, remedy=COPY_AGAIN)
    handle = open(path, "rb")  # noqa: SIM115 - closed by the caller
    try:
        with tifffile.TiffFile(path) as tiff:
            base = max(tiff.pages, key=lambda page: page.imagewidth * page.imagelength)
            _check(base, tiff, path)
            levels = [_level(page, handle.fileno(), path, base) for page in [base, *_reductions(base, list(tiff.pages))]]
            properties = _properties(base, levels)
    except Exception as error:
        handle.close()
        if isinstance(error, InputError):
            raise
        # tifffile meets a broken file with errors of many kinds (TiffFileError, struct.error, IndexError, KeyError, …)
        raise InputError(f"cannot be opened as a slide ({error})", file=path, remedy=COPY_AGAIN) from error

    def release() -> None:
        for level in levels:
            if isinstance(level, _Segments):
                level.forget()
        handle.close()

    return levels, properties, release


def _check(page: tifffile.TiffPage, tiff: tifffile.TiffFile, path: Path) -> None:
    """Refuse what would be read wrongly: channels of fluorescence, floats, colour spaces that are not known."""

    def refuse(problem: str, remedy: str = VIPS) -> InputError:
        return InputError(f"{problem}, which is not read as a slide", file=path, remedy=remedy)

    if page.dtype is None or page.dtype.kind not in "bu" or page.dtype.itemsize > 2:
        raise refuse(f"has samples of type {page.dtype}")
    if page.compression not in BOUNDED | PICTURES:
        raise refuse(f"has {_name(page.compression)} compression")
    if page.photometric not in SAMPLES:
        raise refuse(f"has the colour space {_name(page.photometric)}")
    if page.samplesperpixel not in (SAMPLES[page.photometric], SAMPLES[page.photometric] + 1):
        raise refuse(f"has {page.samplesperpixel} samples a pixel with the colour space {_name(page.photometric)}")
    is_ycbcr = page.photometric == PHOTOMETRIC.YCBCR or page.compression == COMPRESSION.APERIO_JP2000_YCBC
    if is_ycbcr and page.compression not in (COMPRESSION.OJPEG, COMPRESSION.JPEG):
        raise refuse(f"has YCbCr pixels with {_name(page.compression)} compression")
    series = tiff.series[0]
    channels = dict(zip(series.axes, series.shape, strict=False)).get("C", 1)
    if page.samplesperpixel == 1 and channels > 1:
        raise refuse(f"has {channels} channels in separate pages (fluorescence?)", "Export the slide as RGB, from QuPath say.")
    alike = sum((p.shape, p.dtype) == (page.shape, page.dtype) for p in tiff.pages)
    if alike > 1:
        log.warning("%s: has %d pages of one size (a focus stack?); the first is used", path.name, alike)
    if ((turned := page.tags.get(274)) is not None) and turned.value != 1:
        log.warning("%s: the TIFF orientation %s is not applied", path.name, turned.value)


def _name(code: int) -> str:
    return getattr(code, "name", str(code))


def _reductions(base: tifffile.TiffPage, pages: list[tifffile.TiffPage]) -> list[tifffile.TiffPage]:
    """Pages and SubIFDs with the pixels of `base`, reduced alike in both directions, from fine to coarse, each size once."""
    kind = (base.dtype, base.photometric, base.samplesperpixel)
    by_width: dict[int, tifffile.TiffPage] = {}
    for page in [*(base.pages or []), *pages]:
        if (page.dtype, page.photometric, page.samplesperpixel) != kind or page.imagewidth >= base.imagewidth:
            continue
        height = base.imagelength * page.imagewidth / base.imagewidth
        if abs(page.imagelength - height) <= max(2.0, 0.01 * height):  # writers round each level up, down or to nearest
            by_width.setdefault(page.imagewidth, page)
    return [by_width[width] for width in sorted(by_width, reverse=True)]


def _level(page: tifffile.TiffPage, descriptor: int, path: Path, base: tifffile.TiffPage) -> Level:
    to_rgb = _colours(page, _declared_range(base, path))
    if page.is_memmappable and not page.is_tiled and page.planarconfig == 1:
        return _Mapped(page, path, to_rgb)
    return _Segments(page, descriptor, path, to_rgb)


def _properties(page: tifffile.TiffPage, levels: list[Level]) -> dict[str, str]:
    """Description, resolution and geometry under the names that OpenSlide gives them."""
    properties = {"tiff.ImageDescription": page.description, "tiff.ResolutionUnit": "none"}
    if page.is_tiled:
        properties["openslide.vendor"] = "generic-tiff"
    for number, level in enumerate(levels):
        properties |= {f"openslide.level[{number}].width": str(level.width), f"openslide.level[{number}].height": str(level.height)}
    for axis, tag in (("X", 282), ("Y", 283)):
        if tag in page.tags:
            numerator, denominator = page.tags[tag].value
            properties[f"tiff.{axis}Resolution"] = f"{numerator / denominator:.10g}" if denominator else "0"
    if 296 in page.tags or 282 in page.tags:
        unit = page.tags[296].value if 296 in page.tags else 2  # inch is what TIFF 6.0 takes an absent unit for
        properties["tiff.ResolutionUnit"] = UNITS.get(int(unit), "none")
    return properties


class _Mapped:
    """Uncompressed strips that lie in one piece: mapped, so that a strip as large as the image costs no memory."""

    def __init__(self, page: tifffile.TiffPage, path: Path, to_rgb: Callable[[np.ndarray], np.ndarray]) -> None:
        self.width, self.height, self._to_rgb = page.imagewidth, page.imagelength, to_rgb
        kind = page.dtype.newbyteorder(page.parent.byteorder)
        shape = (self.height, self.width, page.samplesperpixel)
        self._pixels = np.memmap(path, kind, "r", page.dataoffsets[0], shape)

    def read(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        return self._to_rgb(np.array(self._pixels[y : y + h, x : x + w]))


class _Segments:
    """Strips or tiles, decoded when a read touches them; the last few are kept as RGB."""

    def __init__(self, page: tifffile.TiffPage, descriptor: int, path: Path, to_rgb: Callable[[np.ndarray], np.ndarray]) -> None:
        self.width, self.height = page.imagewidth, page.imagelength
        self._descriptor, self._to_rgb = descriptor, to_rgb
        self._decode, self._tables, self._is_picture = page.decode, page.jpegtables, page.compression in PICTURES
        self._offsets, self._counts = page.dataoffsets, page.databytecounts
        self._w, self._h = (page.tilewidth, page.tilelength) if page.is_tiled else (self.width, min(page.rowsperstrip, self.height))
        if self._w * self._h > MAX_SEGMENT:
            raise InputError(
                "is compressed in pieces too large to decode one by one",
                file=path,
                found=f"{self._w} × {self._h} pixels",
                expected=f"at most {MAX_SEGMENT} pixels",
                remedy=VIPS,
            )
        self._across, self._down = -(-self.width // self._w), -(-self.height // self._h)
        self._planes = page.samplesperpixel if page.planarconfig == 2 else 1
        if min(len(self._offsets), len(self._counts)) < self._across * self._down * self._planes:
            raise InputError("does not say where all of its strips or tiles lie", file=path, remedy=COPY_AGAIN)
        self._segment = lru_cache(maxsize=max(2, CACHE_BYTES // (self._w * self._h * 3)))(self._load)

    def read(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        out = np.full((h, w, 3), 255, np.uint8)
        for row in range(y // self._h, (y + h - 1) // self._h + 1):
            for column in range(x // self._w, (x + w - 1) // self._w + 1):
                segment = self._segment(row * self._across + column)
                if segment is None:
                    continue
                left, top = column * self._w, row * self._h
                x0, y0 = max(x, left), max(y, top)
                x1, y1 = min(x + w, left + segment.shape[1]), min(y + h, top + segment.shape[0])
                out[y0 - y : y1 - y, x0 - x : x1 - x] = segment[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def forget(self) -> None:
        self._segment.cache_clear()

    def _load(self, index: int) -> np.ndarray | None:
        """uint8 [h, w, 3]; None for a piece that was never written (sparse TIFF): glass."""
        planes = [self._samples(index + plane * self._across * self._down) for plane in range(self._planes)]
        if any(plane is None for plane in planes):
            return None
        return self._to_rgb(np.concatenate(planes, axis=2) if self._planes > 1 else planes[0])

    def _samples(self, index: int) -> np.ndarray | None:
        offset, count = self._offsets[index], self._counts[index]
        if not count:
            return None
        if offset + count > os.fstat(self._descriptor).st_size:  # asked first: a damaged number may be more than a read can take
            raise OSError(f"the file looks truncated: pixels should reach byte {offset + count}, the file ends before")
        data = os.pread(self._descriptor, count, offset)
        self._check_coded(data)
        try:
            segment, _, _ = self._decode(data, index, jpegtables=self._tables)
        except MemoryError:
            raise
        except Exception as error:  # every codec raises errors of its own
            raise OSError(str(error) or type(error).__name__) from error
        return segment[0]

    def _check_coded(self, data: bytes) -> None:
        """Raise `OSError` for a picture within the TIFF that declares more than a strip or tile: it would be decoded all the same."""
        if not self._is_picture:
            return
        size = coded_size(data)
        if size is None and data.startswith(b"\xff\xd8"):
            raise OSError("the JPEG stream states no size")
        if size and size[0] * size[1] > max(SMALL_SEGMENT, 2 * self._w * self._h):
            raise OSError(f"the stream has {size[0]} x {size[1]} pixels in place of {self._w} x {self._h}")


def _declared_range(page: tifffile.TiffPage, path: Path) -> tuple[int, int]:
    """Least and greatest value of the samples: of 16 bits by the TIFF tags or the OME-XML, else all that the bits can hold."""
    low, high = 0, 2**page.bitspersample - 1
    if page.bitspersample != 16:
        return low, high
    if match := re.search(r'SignificantBits="(\d+)"', page.description):
        return 0, 2 ** int(match[1]) - 1
    if MAX_SAMPLE in page.tags:
        low = page.tags[MIN_SAMPLE].value if MIN_SAMPLE in page.tags else 0
        low, high = (int(np.max(value)) for value in (low, page.tags[MAX_SAMPLE].value))
        if low < high:
            return low, high
    log.warning("%s: 16 bits without a declared range are taken for 0–65535", path.name)
    return 0, 2**16 - 1


def _colours(page: tifffile.TiffPage, span: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """What makes uint8 [h, w, 3] on white of the samples [h, w, s] of this page."""
    photometric, samples = page.photometric, SAMPLES[page.photometric]
    extra = page.extrasamples[0] if page.samplesperpixel > samples and page.extrasamples else 0
    scale = _table(page.dtype, span)
    palette = _palette(page.colormap) if photometric == PHOTOMETRIC.PALETTE else None

    def to_rgb(values: np.ndarray) -> np.ndarray:
        if palette is not None:
            return palette[values[..., 0]]
        pixels = values if scale is None else scale[values.view(np.uint8) if values.dtype == bool else values]
        colour = pixels[..., :samples]
        if samples == 1:
            colour = np.repeat(255 - colour if photometric == PHOTOMETRIC.MINISWHITE else colour, 3, axis=2)
        elif samples == 4:
            ink = 255 - colour.astype(np.uint16)
            colour = ((ink[..., :3] * ink[..., 3:] + 127) // 255).astype(np.uint8)
        if extra not in (1, 2):  # neither kind of alpha
            return np.ascontiguousarray(colour)
        return on_white(np.array(colour, order="C"), pixels[..., -1], premultiplied=extra == 1)

    return to_rgb


def _table(dtype: np.dtype, span: tuple[int, int]) -> np.ndarray | None:
    """uint8 for every value that a sample can have; None where it is the same."""
    if dtype == np.uint8 and span == (0, 255):
        return None
    values = np.arange(2 ** (8 * dtype.itemsize), dtype=np.float64)
    return np.clip(np.rint((values - span[0]) * 255 / (span[1] - span[0])), 0, 255).astype(np.uint8)


def _palette(colormap: np.ndarray) -> np.ndarray:
    """uint8 [colours, 3] of a TIFF colour map uint16 [3, colours]; some writers put 8 bits where 16 belong."""
    return np.ascontiguousarray((colormap >> 8 if colormap.max() > 255 else colormap).T.astype(np.uint8))
