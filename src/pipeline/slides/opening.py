"""Opening a slide: pixels as RGB on white."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide

from pipeline.errors import InputError


class UnreadableRegionError(Exception):
    """Pixels of a slide that cannot be decoded; says why."""


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

        Transparent pixels (outside the scan) become white. Raises `UnreadableRegionError`.
        """
        try:
            rgba = np.asarray(self._handle.read_region(location, level, size))
        except openslide.OpenSlideError as error:
            self._handle.close()
            self._handle = self._open()
            raise UnreadableRegionError(str(error)) from error
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min() < 255:
            rgb = ((rgb.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16)) + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(rgb)
