"""Pixels equal OpenSlide's bit for bit, whichever way they were read, whatever is broken."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from imagecodecs import jpeg2k_encode, jpeg8_encode
from synthetic_slides import break_tiles, picture, write_svs

from pipeline.slides.opening import Slide, UnreadableRegionError
from pipeline.slides.reading import PatchSource, Reading
from pipeline.slides.tiles import Tiles, _head, describe

LEVEL = (1300, 1100)  # no multiple of a tile


def write_tiled(path: Path, tile: int = 256, coding: str = "rgb", levels: tuple[int, ...] = (1, 4), missing: tuple[int, ...] = ()) -> Path:
    """An Aperio-like pyramid with shared JPEG tables, as scanners write it: RGB, YCbCr 4:2:2 or JPEG 2000 (RGB or YCbCr)."""
    full = cv2.resize(picture(pen=None), None, fx=0.5, fy=0.5)[200 : 200 + LEVEL[1], 150 : 150 + LEVEL[0]]
    codec = {"rgb": 7, "ycc": 7, "j2k": 33005, "j2k-ycc": 33003}[coding]
    facts = "|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path) as out:
        for level in levels:
            image = cv2.resize(full, (LEVEL[0] // level, LEVEL[1] // level), interpolation=cv2.INTER_AREA)
            height, width = image.shape[:2]
            padded = np.pad(image, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
            streams, tables = [], None
            for y in range(0, height, tile):
                for x in range(0, width, tile):
                    tables, stream = _encode(padded[y : y + tile, x : x + tile], coding)
                    streams.append(b"" if level == 1 and len(streams) in missing else stream)
            out.write(
                iter(streams),
                shape=image.shape,
                dtype="uint8",
                tile=(tile, tile),
                jpegtables=tables,
                photometric="ycbcr" if coding == "ycc" else "rgb",
                subsampling=(2, 1) if coding == "ycc" else None,
                compression=codec if codec != 7 else "jpeg",
                compressionargs={"outcolorspace": "rgb" if coding == "rgb" else "ycbcr"} if codec == 7 else None,
                description=f"Aperio Image Library v11.2.1 \r\n{width}x{height} ({tile}x{tile}){facts}",
                metadata=None,
                software=False,
            )
    return path


def _encode(tile: np.ndarray, coding: str) -> tuple[bytes | None, bytes]:
    tile = np.ascontiguousarray(tile)
    if coding == "j2k":
        return None, jpeg2k_encode(tile, codecformat="j2k", reversible=True, mct=True)
    if coding == "j2k-ycc":
        ycc = cv2.cvtColor(tile, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
        return None, jpeg2k_encode(np.ascontiguousarray(ycc), codecformat="j2k", reversible=True, mct=False)
    space, subsampling = ("RGB", "444") if coding == "rgb" else ("YCBCR", "422")
    stream = jpeg8_encode(tile, level=80, colorspace="RGB", outcolorspace=space, subsampling=subsampling)
    tables, body, at = [], [], 2
    while stream[at + 1] != 0xDA:
        size = struct.unpack(">H", stream[at + 2 : at + 4])[0] + 2
        if stream[at + 1] in (0xDB, 0xC4):
            tables.append(stream[at : at + size])
        elif not 0xE0 <= stream[at + 1] <= 0xEF:
            body.append(stream[at : at + size])
        at += size
    return b"\xff\xd8" + b"".join(tables) + b"\xff\xd9", b"\xff\xd8" + b"".join(body) + stream[at:]


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> Callable[..., Path]:
    folder, made = tmp_path_factory.mktemp("tiled"), {}

    def make(**how: object) -> Path:
        name = "-".join(f"{value}" for value in how.values())
        if name not in made:
            made[name] = write_tiled(folder / f"{name or 'default'}.svs", **how)
        return made[name]

    return make


def corners(n: int, side: int, multiple: int = 1, size: tuple[int, int] = LEVEL) -> np.ndarray:
    rng = np.random.default_rng(5)
    x, y = (rng.integers(0, (extent - side) // multiple + 1, n) * multiple for extent in size)
    return np.stack([x, y], 1).astype(np.int32)


def read(path: Path, coords: np.ndarray, side: int, size: int, method: str = "exact", check: bool = False):
    source = PatchSource(path, coords, side, size, method, check)
    try:
        return source.reader, source.read(0, len(coords))
    finally:
        source.close()


@pytest.mark.parametrize("coding", ["rgb", "ycc", "j2k", "j2k-ycc"])
@pytest.mark.parametrize("tile", [256, 240])
@pytest.mark.parametrize("places", [3, pytest.param(8, marks=pytest.mark.long)])
def test_pixels_equal_openslides_bit_for_bit_on_and_off_the_tiles(tiled, coding, tile, places):
    path = tiled(tile=tile, coding=coding)
    grid = np.stack(np.meshgrid(np.arange(0, LEVEL[0] - 256, 256), np.arange(0, LEVEL[1] - 256, 256)), -1).reshape(-1, 2)
    for side, coords in (
        (256, grid.astype(np.int32)),
        (256, corners(5 * places // 2, 256)),
        (300, corners(places, 300)),
        (512, corners(places, 512)),
        (128, corners(places, 128)),
    ):
        reader, found = read(path, coords, side, min(side, 256))
        _, expected = read(path, coords, side, min(side, 256), "openslide")
        assert reader == "tiles"
        assert np.array_equal(found.pixels, expected.pixels)
        assert found.readable.all()


def test_coarser_levels_are_read_directly_where_patches_lie_on_whole_pixels(tiled):
    path = tiled(levels=(1, 4), tile=256)
    coords = corners(12, 512, multiple=4)
    reader, found = read(path, coords, 512, 128)
    assert reader == "tiles"
    assert np.array_equal(found.pixels, read(path, coords, 512, 128, "openslide")[1].pixels)
    coords[3, 0] += 1 if coords[3, 0] % 4 == 0 else 0
    assert read(path, coords, 512, 128)[0] == "openslide"


def test_scaled_decoding_is_as_good_as_averaging_and_says_so(tiled):
    path = tiled(tile=256, coding="rgb")
    coords = corners(10, 512, multiple=2)
    reader, found = read(path, coords, 512, 256, "scaled")
    _, expected = read(path, coords, 512, 256, "openslide")
    assert reader == "tiles at 1/2"
    assert 0 < np.abs(found.pixels.astype(int) - expected.pixels).mean() < 0.5
    assert read(path, corners(4, 256), 256, 256, "scaled")[0] == "tiles"


def test_scaled_decoding_is_given_up_where_coarse_colours_make_it_differ_too_much(tiled):
    path = tiled(tile=256, coding="ycc")  # every second pixel has a colour, and the picture is all edges
    coords = corners(10, 512, multiple=2)
    reader, found = read(path, coords, 512, 256, "scaled")
    assert reader == "tiles"
    assert np.array_equal(found.pixels, read(path, coords, 512, 256, "openslide")[1].pixels)


def test_every_other_format_is_read_through_openslide_and_the_reason_is_logged(tmp_path, caplog):
    path = tmp_path / "region.png"
    cv2.imwrite(str(path), picture(pen=None)[:700, :900])
    with Slide(path) as slide:
        assert describe(slide) == (False, "its format (a plain image) is not one of aperio, generic-tiff, philips-tiff")
    caplog.set_level("INFO")
    coords = corners(4, 256, size=(900, 700))
    reader, found = read(path, coords, 256, 256)
    assert reader == "openslide"
    assert found.readable.all()
    assert "region.png is read through OpenSlide: its format (a plain image)" in caplog.text


def test_a_slide_whose_tiles_look_otherwise_to_us_than_to_openslide_is_left_to_openslide(tiled, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("pipeline.slides.tiles._head", lambda tables, photometric: _head(tables, 6))  # RGB is taken for YCbCr
    path, coords = tiled(tile=256, coding="rgb"), corners(20, 256)
    reader, found = read(path, coords, 256, 256)
    assert reader == "openslide"
    assert "16 of 16 patches differ from what OpenSlide gives" in caplog.text
    monkeypatch.undo()
    assert np.array_equal(found.pixels, read(path, coords, 256, 256)[1].pixels)


def test_a_tile_without_data_is_drawn_by_openslide(tiled):
    path, coords = tiled(tile=256, missing=(7,)), np.array([[256, 256], [0, 0], [300, 300]], np.int32)
    reader, found = read(path, coords, 256, 256)
    assert reader == "tiles"
    assert np.array_equal(found.pixels, read(path, coords, 256, 256, "openslide")[1].pixels)


def test_a_broken_tile_spoils_its_patches_alone(tmp_path):
    path = break_tiles(write_svs(tmp_path / "broken.svs", picture()), [(2, 2)])
    coords = np.array([[512, 512], [768, 512], [600, 600], [1024, 1024]], np.int32)
    for method in ("exact", "openslide"):
        _, found = read(path, coords, 256, 256, method)
        assert found.readable.tolist() == [False, True, False, True]
        assert sorted(found.faults) == [0, 2]
        assert not found.pixels[0].any()
    assert read(path, coords, 256, 256)[1].faults[0] == "tile 2, 2 of level 0: holds no JPEG stream"


def test_a_finer_level_stands_in_for_a_broken_tile(tmp_path):
    path = write_svs(tmp_path / "finer.svs", picture())
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[1].dataoffsets[0]
    whole = read(path, np.array([[512, 512]], np.int32), 512, 128)[1].pixels
    with open(path, "r+b") as handle:
        handle.seek(start)
        handle.write(b"\0" * 64)
    _, found = read(path, np.array([[512, 512]], np.int32), 512, 128)
    assert found.readable.all()
    assert np.abs(found.pixels.astype(int) - whole).mean() < 6


def test_a_stream_that_libjpeg_only_warns_about_is_damage(tmp_path):
    path = write_svs(tmp_path / "flipped.svs", picture())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        start, length = page.dataoffsets[2 * 12 + 3], page.databytecounts[2 * 12 + 3]
    with open(path, "r+b") as handle:
        handle.seek(start + length // 2)
        handle.write(b"\x5a\xa5\x33\xcc")
    coords = np.array([[768, 512], [512, 512]], np.int32)
    assert read(path, coords, 256, 256, "openslide")[1].readable.all()  # OpenSlide does not mind
    _, found = read(path, coords, 256, 256)
    assert found.readable.tolist() == [False, True]


def test_damage_that_decodes_is_found_by_comparing_levels(tmp_path):
    path = write_svs(tmp_path / "swapped.svs", picture())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        entry = page.tags["TileOffsets"].valueoffset, page.tags["TileByteCounts"].valueoffset
        glass, tissue = 0, 2 * 12 + 3
        values = page.dataoffsets[glass], page.databytecounts[glass]
        width = 8 if tiff.is_bigtiff else 4
    with open(path, "r+b") as handle:  # the directory now takes a tile of glass for one of tissue
        for at, value in zip(entry, values, strict=True):
            handle.seek(at + tissue * width)
            handle.write(struct.pack("<Q" if width == 8 else "<I", value))
    coords = np.array([[768, 512], [512, 512], [1536, 1536]], np.int32)
    assert read(path, coords, 256, 256)[1].readable.all()
    for method in ("exact", "openslide"):
        _, found = read(path, coords, 256, 256, method, check=True)
        assert found.readable.tolist() == [False, True, True]
        assert "grey levels from the same place at another level" in found.faults[0]


def test_zeros_written_over_jpeg_2000_are_found(tiled, tmp_path):
    path = tmp_path / "zeros.svs"
    path.write_bytes(tiled(tile=256, coding="j2k").read_bytes())
    with tifffile.TiffFile(path) as tiff:
        start, length = tiff.pages[0].dataoffsets[8], tiff.pages[0].databytecounts[8]
    with open(path, "r+b") as handle:
        handle.seek(start + length // 2)
        handle.write(bytes(600))
    with Slide(path) as slide, Tiles(slide) as tiles:
        tiles.decode(0, 7)
        with pytest.raises(UnreadableRegionError, match="tile 2, 1 of level 0: a part of it is overwritten with zeros"):
            tiles.decode(0, 8)


def test_a_truncated_file_keeps_the_patches_that_are_there(tmp_path):
    path = write_svs(tmp_path / "whole.svs", picture())
    cut = tmp_path / "cut.svs"
    with tifffile.TiffFile(path) as tiff:
        offsets = tiff.pages[0].dataoffsets
    content = bytearray(path.read_bytes())
    content[offsets[60] :] = b""
    cut.write_bytes(content)
    try:
        Slide(cut).close()
    except Exception:
        pytest.skip("the directories of this file lie behind its tiles")
    coords = np.array([[0, 0], [1024, 2048]], np.int32)
    assert read(cut, coords, 256, 256)[1].readable.tolist() == [True, False]


def test_each_tile_is_decoded_once_however_many_patches_lie_on_it(tiled, monkeypatch):
    decoded, lock = [], threading.Lock()
    decode = Tiles.decode

    def count(self, level, index, *rest):
        with lock:
            decoded.append(index)
        return decode(self, level, index, *rest)

    path = tiled(tile=240, coding="rgb")
    coords = np.stack(np.meshgrid(np.arange(7, 900, 100), np.arange(3, 800, 100)), -1).reshape(-1, 2).astype(np.int32)
    source = PatchSource(path, coords, 256, 256)
    monkeypatch.setattr(Tiles, "decode", count)
    with ThreadPoolExecutor(3) as pool, Reading(pool, lambda: source, 0, len(coords), 8) as reading:
        found = np.concatenate([batch.pixels.copy() for batch in reading])
    assert len(decoded) == len(set(decoded))
    assert np.array_equal(found, read(path, coords, 256, 256, "openslide")[1].pixels)


def test_batches_come_in_order_from_any_number_of_threads_and_go_on_where_asked(tiled):
    path, coords = tiled(tile=256, coding="ycc"), corners(50, 256)
    expected = read(path, coords, 256, 256)[1].pixels
    for threads, batch, first in ((1, 64, 0), (3, 7, 0), (2, 5, 15)):
        with ThreadPoolExecutor(threads) as pool, Reading(pool, partial(PatchSource, path, coords, 256, 256), first, 50, batch) as reading:
            found = np.concatenate([b.pixels.copy() for b in reading])
            assert reading.is_asked_for
        assert np.array_equal(found, expected[first:])


def test_memory_is_bounded_by_the_window(tiled):
    path, coords = tiled(tile=256, coding="rgb"), np.tile(corners(40, 256), (10, 1))
    seen = set()
    with ThreadPoolExecutor(2) as pool, Reading(pool, partial(PatchSource, path, coords, 256, 256), 0, 400, 8, window=3, keep=1) as reading:
        for batch in reading:
            seen.add(batch.pixels.ctypes.data)
            assert len(reading._ahead) <= 3
    assert len(seen) <= 3 + 1 + 1


@pytest.mark.slow
@pytest.mark.realdata
def test_the_real_slide_is_decoded_to_the_same_pixels(real_slide):
    with Slide(real_slide) as slide:
        assert describe(slide) == (True, "JPEG 2000 tiles of 256 x 256")
        width, height = slide.dimensions
    coords = np.stack(np.meshgrid(np.arange(0, width - 255, 256), np.arange(0, height - 255, 256)), -1).reshape(-1, 2).astype(np.int32)
    for some in (coords, corners(20, 256, size=(width, height))):
        reader, found = read(real_slide, some, 256, 256, check=True)
        assert reader == "tiles"
        assert found.readable.all()
        assert np.array_equal(found.pixels, read(real_slide, some, 256, 256, "openslide")[1].pixels)


@pytest.mark.realdata
def test_every_slide_of_the_folder_of_real_data_equals_openslide(real_slide):
    folder = Path(os.environ["SLIDE2SURV_REALDATA"]) / "slides"
    for path in sorted(p for p in folder.iterdir() if p.name != "broken.svs" and p.is_file()):
        with Slide(path) as slide:
            size = slide.dimensions
        coords = corners(30, 256, size=size)
        assert np.array_equal(read(path, coords, 256, 256)[1].pixels, read(path, coords, 256, 256, "openslide")[1].pixels), path
