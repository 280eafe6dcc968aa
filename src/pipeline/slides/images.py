"""Regions of interest and slides without a scanner's header: TIFF read piece by piece, PNG, JPEG and BMP decoded whole."""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

import cv2
import numpy as np

from pipeline.errors import InputError
from pipeline.limits import check_pixels
from pipeline.slides.signatures import COPY_AGAIN, recognise

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

MAX_PIXELS = 2**28  # of a picture that has to be decoded whole: 768 MiB (our choice)
ROWS = 1024  # of a picture converted at a time
ORIENTATION = 274  # EXIF tag


class Level(Protocol):
    """One resolution of an image. `read` gives uint8 [h, w, 3] of a rectangle that lies inside it."""

    width: int
    height: int

    def read(self, x: int, y: int, w: int, h: int) -> np.ndarray: ...


class PlainImage:
    """An image without a scanner's header, as a slide: levels from fine to coarse, properties as OpenSlide names them."""

    def __init__(self, levels: Sequence[Level], properties: Mapping[str, str], release: Callable[[], None] = lambda: None) -> None:
        self._levels, self._release = tuple(levels), release
        self.properties = properties
        self.dimensions = (levels[0].width, levels[0].height)
        self.downsamples = tuple((levels[0].width / level.width + levels[0].height / level.height) / 2 for level in levels)

    def read_rgb(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        """uint8 [height, width, 3] of `size` level pixels from the level-0 `location`; white outside the image.

        Raises `OSError` for pixels that cannot be decoded.
        """
        source = self._levels[level]
        x, y = (round(at / self.downsamples[level]) for at in location)
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + size[0], source.width), min(y + size[1], source.height)
        if (left, top, right, bottom) == (x, y, x + size[0], y + size[1]):
            return np.ascontiguousarray(source.read(x, y, *size))
        out = np.full((size[1], size[0], 3), 255, np.uint8)
        if left < right and top < bottom:
            out[top - y : bottom - y, left - x : right - x] = source.read(left, top, right - left, bottom - top)
        return out

    def close(self) -> None:
        self._levels = ()
        self._release()


def open_image(path: Path) -> tuple[str, PlainImage]:
    """The format (``TIFF``, ``OME-TIFF``, ``PNG``, ``JPEG``, ``BMP``) of a file, by its content, and the open image.

    Raises `InputError` that says what the file is instead, or what of it cannot be used.
    """
    signature = recognise(path)
    if signature.kind == "TIFF":
        from pipeline.slides.tiff import open_tiff  # tifffile is paid for by those who need it

        levels, properties, release = open_tiff(path)
        return "OME-TIFF" if "<OME" in properties.get("tiff.ImageDescription", "")[:2000] else "TIFF", PlainImage(
            levels, properties, release
        )
    if signature.kind in ("PNG", "JPEG", "BMP"):
        return signature.kind, PlainImage([_Picture(_shared_picture(path, signature.kind))], {})
    raise InputError(f"is no slide: it is {signature.kind}", file=path, remedy=signature.remedy)


def on_white(rgb: np.ndarray, alpha: np.ndarray, *, premultiplied: bool = False) -> np.ndarray:
    """uint8 [H, W, 3] over white by `alpha` uint8 [H, W]; `rgb` may be changed. Opaque pixels cost next to nothing."""
    if alpha.size == 0 or alpha.min() == 255:
        return rgb
    rgb[alpha == 0] = 255
    partly = (alpha > 0) & (alpha < 255)
    if partly.any():
        cover = alpha[partly].astype(np.uint16)[:, None]
        colour = rgb[partly].astype(np.uint16)
        rgb[partly] = np.minimum(colour + 255 - cover, 255) if premultiplied else (colour * cover + 255 * (255 - cover) + 127) // 255
    return rgb


class _Picture:
    """A level that is an array uint8 [H, W, 3]."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        return self._pixels[y : y + h, x : x + w].copy()


_shared: WeakValueDictionary[tuple[str, int, int], np.ndarray] = WeakValueDictionary()
_sharing = threading.Lock()


def _shared_picture(path: Path, kind: str) -> np.ndarray:
    """The decoded picture, once for all the handles of a process: each reader thread opens one."""
    facts = path.stat()
    key = (str(path.resolve()), facts.st_mtime_ns, facts.st_size)
    with _sharing:
        pixels = _shared.get(key)
        if pixels is None:
            pixels = _shared[key] = _decode(path, kind)
        return pixels


def _decode(path: Path, kind: str) -> np.ndarray:
    """uint8 [H, W, 3] of a PNG, JPEG or BMP on white, turned as its EXIF orientation says."""
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

    plugins = {"PNG": PngImagePlugin.PngImageFile, "JPEG": JpegImagePlugin.JpegImageFile, "BMP": BmpImagePlugin.BmpImageFile}
    try:
        with plugins[kind](path) as picture:
            width, height = picture.size
            remedy = f"Convert it: `vips tiffsave {path.name} {path.stem}.tif --tile --pyramid --compression jpeg --bigtiff`."
            check_pixels(kind, (width, height), path.stat().st_size, path, most=MAX_PIXELS, remedy=remedy)
            pixels = np.empty((height, width, 3), np.uint8)
            for top in range(0, height, ROWS):
                pixels[top : top + ROWS] = _rows(picture.crop((0, top, width, min(top + ROWS, height))))
            return _upright(pixels, picture.getexif().get(ORIENTATION, 1), path)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot be decoded as {kind} ({error})", file=path, remedy=COPY_AGAIN) from error


def _rows(picture: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] on white of a PIL image of any mode."""
    mode = picture.mode
    if mode.startswith("I"):  # 16-bit grey, which PIL would cut off at 255
        grey = (np.asarray(picture).astype(np.uint32) + 128) // 257
        return np.repeat(grey.clip(max=255).astype(np.uint8)[..., None], 3, axis=2)
    if "A" in mode or "a" in mode or "transparency" in picture.info:
        rgba = np.asarray(picture.convert("RGBA"))
        return on_white(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), rgba[..., 3])
    return np.asarray(picture.convert("RGB"))


def _upright(pixels: np.ndarray, orientation: int, path: Path) -> np.ndarray:
    """The picture as a viewer shows it; coordinates are those of the turned picture."""
    if orientation not in range(2, 9):
        return pixels
    log.warning("%s: turned as its EXIF orientation (%d) says; coordinates are those of the turned picture", path.name, orientation)
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
