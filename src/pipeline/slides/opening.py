"""Opening a slide, whatever made it: pixels as RGB on white."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import openslide

from pipeline.errors import InputError
from pipeline.files import require_file
from pipeline.machine import machine_fault
from pipeline.slides.images import PlainImage, on_white, open_image
from pipeline.slides.signatures import check_directories, check_extent, truncation

PLAIN = (None, "generic-tiff")  # read by `images`: OpenSlide darkens 16 bits, passes over SubIFDs and knows fewer codecs
COMPANIONS = {
    "mirax": "Copy the folder of the same name too: it holds the pixels.",
    "hamamatsu": "Copy all the files of the slide (.vms or .vmu, .jpg, .opt) into one folder.",
    "dicom": "Put all the files of the series into one folder, and nothing else.",
}
WHOLE = "Check that the file was copied whole (size, checksum) and that OpenSlide reads its format."


class UnreadableRegionError(Exception):
    """Pixels of a slide that cannot be decoded; says why."""


class Slide:
    """An open slide that survives unreadable tiles; a context manager.

    Scanners' files (and a file of a DICOM series) are read by OpenSlide; plain TIFF, PNG, JPEG and BMP by `images`. What the file
    is, is told by its content. `format` is OpenSlide's vendor, or ``TIFF``, ``OME-TIFF``, ``PNG``, ``JPEG``, ``BMP``.
    Raises `InputError` when the file is absent, cannot be read, or is no slide, and says what it is instead.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _check_readable(self.path)
        check_directories(self.path)
        vendor = openslide.OpenSlide.detect_format(self.path)
        self._handle: _Scan | PlainImage
        self.format: str
        if vendor in PLAIN:
            self.format, self._handle = open_image(self.path)
        else:
            self.format, self._handle = vendor, _Scan(self.path, vendor)
        self.dimensions: tuple[int, int] = self._handle.dimensions
        self.downsamples: tuple[float, ...] = self._handle.downsamples
        self.properties: Mapping[str, str] = self._handle.properties
        check_extent(self.path, self.dimensions, self.properties)

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

        Transparent pixels (outside the scan) become white. Raises `UnreadableRegionError`.
        """
        try:
            return self._handle.read_rgb(location, level, size)
        except (openslide.OpenSlideError, OSError) as error:
            if fault := machine_fault(error, self.path):
                raise fault from error
            raise UnreadableRegionError(str(error)) from error


class _Scan:
    """A file that OpenSlide reads. Its handle fails for ever after one error, so it is opened anew before the error is passed on."""

    def __init__(self, path: Path, vendor: str) -> None:
        self._path, self._vendor = path, vendor
        self._handle = self._open()
        self.dimensions = self._handle.dimensions
        self.downsamples = self._handle.level_downsamples
        self.properties = dict(self._handle.properties)

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:
            reason = "; ".join(filter(None, [str(error), truncation(self._path)]))
            remedy = COMPANIONS.get(self._vendor, WHOLE)
            raise InputError(f"cannot be opened as a slide ({reason})", file=self._path, remedy=remedy) from error

    def read_rgb(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        try:
            rgba = np.asarray(self._handle.read_region(location, level, size))  # straight alpha: openslide-python divides by it
        except openslide.OpenSlideError:
            self._handle.close()
            self._handle = self._open()
            raise
        return on_white(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), rgba[..., 3])

    def close(self) -> None:
        self._handle.close()


def _check_readable(path: Path) -> None:
    if path.is_dir():
        remedy = "Name the slide file itself: the .mrxs beside the folder, or one .dcm file of the series."
        raise InputError("is a folder, not a slide file", file=path, remedy=remedy)
    require_file(path, "slide file", remedy="Correct its path, or take the slide out of the slide table.")
    try:
        with open(path, "rb") as handle:
            if not handle.read(1):
                raise InputError("is empty", file=path, remedy="Copy the file again from its source.")
    except OSError as error:
        remedy = "Check its permissions and the file system."
        raise machine_fault(error, path) or InputError(f"cannot be read ({error.strerror or error})", file=path, remedy=remedy) from error
