from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from synthetic_slides import HOLE, TISSUE, break_tiles, write_svs

from pipeline.errors import InputError
from pipeline.slides.opening import Slide, UnreadableRegionError
from pipeline.slides.overview import overview

BROKEN = (TISSUE[0] // 256 + 1, TISSUE[1] // 256 + 1)  # column and row of a tile of tissue


def _means(picture: np.ndarray, side: int) -> np.ndarray:
    height, width = (extent // side for extent in picture.shape[:2])
    return picture[: height * side, : width * side].reshape(height, side, width, side, 3).mean((1, 3))


def _break_level(path: Path, page: int) -> None:
    """Overwrite the start of every tile of a page so that none can be decoded."""
    with tifffile.TiffFile(path) as tiff:
        starts = tiff.pages[page].dataoffsets
    with open(path, "r+b") as handle:
        for start in starts:
            handle.seek(start)
            handle.write(b"\0" * 64)


@pytest.mark.parametrize("levels", [1, 3])
def test_the_overview_agrees_with_the_picture_with_and_without_a_pyramid(tmp_path, square_picture, levels):
    with Slide(write_svs(tmp_path / "s.svs", square_picture, levels=levels)) as slide:
        image = overview(slide, 16)
    assert image.shape == (160, 192, 3)
    assert np.abs(image - _means(square_picture, 16)).mean() < 4  # JPEG at 1/16


@pytest.mark.parametrize("downsample", [1.0, 3.3, 7.25, 16.03, 33.0, 64.0, 5000.0])
def test_an_overview_of_any_scale_covers_the_slide_and_lies_where_it_should(tmp_path, square_picture, downsample):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, square_picture, photometric="rgb", metadata=None)
    with Slide(path) as slide:
        image = overview(slide, downsample)
    assert image.shape == (-(-2560 // downsample), -(-3072 // downsample), 3)
    if downsample < 40:
        glass = cv2.inRange(image, (225,) * 3, (255,) * 3)
        left, top, right, bottom = (round(edge / downsample) for edge in HOLE)
        inside, around = 2, 3
        assert glass[top + inside : bottom - inside, left + inside : right - inside].mean() > 254
        assert glass[top - around - 1 : top - around, left:right].mean() < 20
        assert glass[top:bottom, right + around : right + around + 1].mean() < 20


def test_blocks_leave_no_seams(tmp_path, square_picture, monkeypatch):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, square_picture, photometric="rgb", metadata=None)
    with Slide(path) as slide:
        whole = overview(slide, 8)
        monkeypatch.setattr("pipeline.slides.overview.BLOCK", 300)
        assert (overview(slide, 8) == whole).all()
    assert np.abs(whole - _means(square_picture, 8)).max() <= 0.5


def test_the_overview_of_a_flat_slide_loses_only_the_broken_tile(tmp_path, square_picture, caplog):
    path = break_tiles(write_svs(tmp_path / "s.svs", square_picture, levels=1), [BROKEN])
    with Slide(path) as slide:
        image = overview(slide, 16)
        with pytest.raises(InputError) as error:
            overview(slide, 16, max_unreadable=0.0)
    white = (image == 255).all(2)
    x, y = BROKEN[0] * 16, BROKEN[1] * 16
    assert white[y : y + 16, x : x + 16].all()
    assert white.sum() == 256
    share = 100 * 256 / (160 * 192)
    assert caplog.messages == [f"s.svs: {share:.3g} % of the overview cannot be read and counts as glass, 0 % was read from another level"]
    assert str(error.value).startswith(f"{path}: more than 0% of the slide cannot be read (")
    assert str(error.value).endswith("). Copy the slide again from its source.")


def test_a_broken_coarse_level_is_replaced_by_the_next_finer_one(tmp_path, square_picture, caplog):
    path = write_svs(tmp_path / "s.svs", square_picture)
    _break_level(path, 2)
    with Slide(path) as slide:
        image = overview(slide, 16, max_unreadable=0.0)
    assert np.abs(image - _means(square_picture, 16)).mean() < 4
    assert caplog.messages == ["s.svs: 0 % of the overview cannot be read and counts as glass, 100 % was read from another level"]


def test_a_broken_fine_level_is_replaced_by_a_coarser_one(tmp_path, square_picture):
    path = write_svs(tmp_path / "s.svs", square_picture, levels=2)
    _break_level(path, 0)
    with Slide(path) as slide:
        with pytest.raises(UnreadableRegionError):
            slide.read_rgb((0, 0), 0, (256, 256))
        image = overview(slide, 2.0, max_unreadable=0.0)
    assert image.shape == (1280, 1536, 3)
    assert np.abs(image - _means(square_picture, 2)).mean() < 8  # 1/4 drawn at 1/2


def test_a_slide_cut_off_in_its_pixels_says_so(tmp_path, square_picture):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, square_picture, tile=(256, 256), photometric="rgb", compression="zlib", metadata=None)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    with Slide(path) as slide, pytest.raises(InputError) as error:
        overview(slide, 16)
    assert str(error.value).startswith(
        f"{path}: more than 10% of the slide cannot be read (the file looks truncated: it should reach byte "
    )
    assert str(error.value).endswith(f"and has {size // 2} bytes). Copy the slide again from its source.")


class _Bounded(Slide):
    """A slide whose scanner names the part that it scanned; remembers what was read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        bounds = zip(("x", "y", "width", "height"), (512, 512, 1792, 1536), strict=True)
        self.properties = {**self.properties, **{f"openslide.bounds-{name}": str(value) for name, value in bounds}}
        self.read: list[tuple[tuple[int, int], tuple[int, int]]] = []

    def read_rgb(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        self.read.append((location, size))
        return super().read_rgb(location, level, size)


def test_only_what_was_scanned_is_read(square_slide, monkeypatch):
    monkeypatch.setattr("pipeline.slides.overview._looks_alike", lambda *_: False)  # all through OpenSlide
    with Slide(square_slide) as slide, _Bounded(square_slide) as bounded:
        whole, part = overview(slide, 16), overview(bounded, 16)
    assert bounded.read == [((512, 512), (112, 96))]
    assert part.shape == whole.shape
    assert (part[32:128, 32:144] == whole[32:128, 32:144]).all()
    part[32:128, 32:144] = 255
    assert (part == 255).all()


def test_memory_for_a_slide_without_a_pyramid_is_bounded(tmp_path):
    import tracemalloc

    tile = np.full((256, 256, 3), 200, np.uint8)
    path = tmp_path / "flat.tif"
    tifffile.imwrite(
        path,
        (tile for _ in range(64 * 64)),
        shape=(16384, 16384, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric="rgb",
        compression="zlib",
    )
    with Slide(path) as slide:
        tracemalloc.start()
        image = overview(slide, 64)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (image == 200).all()
    assert peak < 120 * 2**20  # the slide has 300 MiB


def test_a_whole_overview_is_read_in_silence(square_slide, caplog):
    with caplog.at_level(logging.DEBUG, logger="pipeline"), Slide(square_slide) as slide:
        overview(slide, 16)
    assert not caplog.messages
