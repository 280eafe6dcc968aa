from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic_slides import GLASS, break_tiles, write_dicom, write_svs

from pipeline.errors import InputError
from pipeline.machine import MachineError
from pipeline.slides.images import on_white
from pipeline.slides.opening import Slide, UnreadableRegionError
from pipeline.slides.provenance import fingerprint, settings_digest
from pipeline.slides.resolution import resolve
from pipeline.slides.signatures import truncation


def _refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        Slide(path)
    return str(error.value).replace(f"{path}: ", "")


def test_an_absent_file_a_folder_and_an_empty_file_are_told_apart(tmp_path):
    assert _refusal(tmp_path / "a.svs") == "no such slide file. Correct its path, or take the slide out of the slide table."
    assert _refusal(tmp_path) == (
        "is a folder, not a slide file. Name the slide file itself: the .mrxs beside the folder, or one .dcm file of the series."
    )
    (tmp_path / "e.svs").touch()
    assert _refusal(tmp_path / "e.svs") == "is empty. Copy the file again from its source."


def test_a_file_that_the_system_does_not_read_is_the_machines_fault(tmp_path):
    if not Path("/proc/self/mem").exists():
        pytest.skip("no /proc")
    (tmp_path / "bad-disk.svs").symlink_to("/proc/self/mem")  # its first byte: an input/output error
    with pytest.raises(MachineError, match=r"bad-disk\.svs: the disk does not read or write \(input/output error\)\. Check the disk"):
        Slide(tmp_path / "bad-disk.svs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_the_machines_fault(tmp_path, square_slide):
    path = tmp_path / "s.svs"
    path.write_bytes(square_slide.read_bytes())
    path.chmod(0)
    with pytest.raises(MachineError, match=r"s\.svs: permission is denied\. Give it back"):
        Slide(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"PK\x03\x04" + b"\0" * 60, "it is a ZIP archive. Unpack it and name the slide inside."),
        (b"\x1f\x8b\x08" + b"\0" * 60, "it is a gzip archive. Unpack it and name the slide inside."),
        (b"a" * 257 + b"ustar" + b"\0" * 300, "it is a tar archive. Unpack it and name the slide inside."),
        (b"%PDF-1.7\n", "it is a PDF document. Name the slide instead."),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer: the slide was not downloaded. Run `git lfs pull`."),
        (
            b"\n <!DOCTYPE HTML><html>",
            "it is an HTML page: the download failed. Download the slide itself; the link or the login may have expired.",
        ),
        (
            b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
            "it is an XML error message: the download failed. Download the slide itself; the link or the login may have expired.",
        ),
        (
            b'{"message": "Not Found"}',
            "it is JSON text (a server's answer?): the download failed. Download the slide itself; the link or the login may have expired.",
        ),
        (b"no slide\nat all", "it is text, beginning with 'no slide'. Name the slide instead; if this is its name, copy it again."),
        (
            b"\0" * 9000,
            "it is zeros at its start: space was reserved but never written. "
            "Copy the file again from its source and compare size and checksum.",
        ),
        (
            bytes(range(200, 250)),
            "it is of no known format (first bytes: c8 c9 ca cb cc cd ce cf). "
            "Copy the file again from its source and compare size and checksum.",
        ),
        (
            b"\0" * 128 + b"DICM" + b"\0" * 60,
            "it is a DICOM file that OpenSlide does not take for a slide. "
            "Name a VOLUME file of the series (VL Whole Slide Microscopy), all of its files in one folder.",
        ),
    ],
)
def test_what_is_no_slide_is_refused_with_what_it_is_instead(tmp_path, content, message):
    path = tmp_path / "slide.svs"
    path.write_bytes(content)
    assert _refusal(path) == f"is no slide: {message}"


@pytest.mark.parametrize("head", ["a" * 4095 + "é", "b\n" * 3000])
def test_text_longer_than_what_is_looked_at_is_still_text(tmp_path, head):
    (tmp_path / "s.svs").write_text(head, encoding="utf-8")
    assert "it is text, beginning with" in _refusal(tmp_path / "s.svs")


@pytest.mark.parametrize("suffix", [".svs", ".tif", ".png"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_a_wrong_suffix_does_not_matter(tmp_path, suffix, kind):
    path = tmp_path / f"roi{suffix}"
    Image.new("RGB", (70, 50), (10, 200, 30)).save(path, format=kind)
    with Slide(path) as slide:
        assert (slide.format, slide.dimensions, slide.downsamples) == (kind, (70, 50), (1.0,))
        assert np.abs(slide.read_rgb((0, 0), 0, (70, 50)).astype(int) - (10, 200, 30)).max() <= 2


@pytest.mark.parametrize("kept", [9, 300, 5000, -100])
def test_a_truncated_scan_says_where_it_should_end(tmp_path, square_slide, kept):
    whole = square_slide.read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(whole[:kept])
    message = _refusal(path)
    assert message.startswith("cannot be opened as a slide (")
    assert f" and has {path.stat().st_size} bytes). C" in message  # Copy the file again, or: Check that it was copied whole
    needed = int(message.split("the file looks truncated: it should reach byte ")[1].split()[0])
    assert len(whole[:kept]) < needed <= len(whole)


@given(kept=st.integers(0, 700), big=st.booleans(), place=st.integers(0, 700), byte=st.integers(0, 255))
@example(kept=0, big=True, place=409, byte=128)  # a tile beyond any file
@example(kept=0, big=True, place=21, byte=1)  # more entries than a file can have
@settings(max_examples=80, deadline=None)
def test_a_damaged_directory_is_refused_or_read_and_never_crashes(tmp_path_factory, kept, big, place, byte):
    path = tmp_path_factory.mktemp("damaged") / "s.tif"
    tifffile.imwrite(path, np.zeros((40, 30, 3), np.uint8), tile=(16, 16), bigtiff=big, photometric="rgb", compression="zlib")
    content = bytearray(path.read_bytes())
    content[min(place, len(content) - 1)] = byte
    path.write_bytes(content[: len(content) - kept] if kept < 350 else content)
    assert truncation(path).startswith("the file looks truncated") or not truncation(path)
    with contextlib.suppress(InputError, UnreadableRegionError), Slide(path) as slide:
        assert slide.read_rgb((0, 0), 0, (30, 40)).shape == (40, 30, 3)


def test_a_scan_of_which_openslide_knows_the_maker_but_not_the_codec_is_refused(tmp_path, square_picture):
    path = tmp_path / "s.svs"
    text = "Aperio Image Library v11.2.1 \r\n3072x2560 (256x256) WEBP|AppMag = 20"
    tifffile.imwrite(
        path, square_picture[:256, :256], tile=(256, 256), compression="webp", photometric="rgb", description=text, metadata=None
    )
    assert _refusal(path) == (
        "cannot be opened as a slide (Unsupported TIFF compression: 50001). "
        "Check that the file was copied whole (size, checksum) and that OpenSlide reads its format."
    )


def test_what_lies_outside_the_scan_is_white(square_slide):
    with Slide(square_slide) as slide:
        assert (slide.format, slide.properties["openslide.vendor"]) == ("aperio", "aperio")
        assert (slide.read_rgb((-5000, -5000), 0, (32, 16)) == 255).all()
        edge = slide.read_rgb((-16, -8), 0, (32, 16))
        assert edge.shape == (16, 32, 3)
        assert (edge[:8] == 255).all()
        assert np.abs(edge[8:, 16:].astype(int) - GLASS).max() <= 3


def test_a_handle_reads_on_after_an_unreadable_tile(tmp_path, square_picture):
    path = break_tiles(write_svs(tmp_path / "s.svs", square_picture), [(4, 2)])
    with Slide(path) as slide:
        with pytest.raises(UnreadableRegionError):
            slide.read_rgb((4 * 256, 2 * 256), 0, (256, 256))
        assert np.abs(slide.read_rgb((0, 0), 0, (64, 64)).astype(int) - GLASS).max() <= 3


def test_both_kinds_of_alpha_are_laid_over_white():
    colour, alpha = np.array([[[200, 100, 0]] * 4], np.uint8), np.array([[0, 51, 204, 255]], np.uint8)
    straight = on_white(colour.copy(), alpha)
    assert straight[0].tolist() == [[255, 255, 255], [244, 224, 204], [211, 131, 51], [200, 100, 0]]
    multiplied = (colour.astype(int) * alpha[..., None] // 255).astype(np.uint8)
    assert np.abs(on_white(multiplied, alpha, premultiplied=True).astype(int) - straight).max() <= 1


@pytest.mark.parametrize("shapes, expected", [([(3073, 2561), (768, 640)], 1), ([(3073, 2561), (750, 625)], 0), ([(3073, 2561)], 0)])
def test_odd_downsamples_choose_the_level_that_is_hardly_coarser(tmp_path, shapes, expected):
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as out:
        for width, height in shapes:
            out.write(np.zeros((height, width, 3), np.uint8), tile=(256, 256), photometric="rgb", compression="zlib", metadata=None)
    with Slide(path) as slide:
        assert len(slide.downsamples) == len(shapes)
        assert slide.level_for(4.0) == expected


def test_a_file_of_a_dicom_series_opens_the_whole_series(tmp_path, square_picture):
    image = np.ascontiguousarray(square_picture[512:1024, 512:1152])
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    finest, _ = write_dicom(tmp_path, [(image, 0.0005), (half, 0.001)])
    with Slide(finest) as slide:
        assert (slide.format, slide.dimensions, slide.downsamples) == ("dicom", (640, 512), (1.0, 2.0))
        assert np.abs(slide.read_rgb((0, 0), 0, (640, 512)).astype(int) - image).mean() < 2
        assert np.abs(slide.read_rgb((0, 0), 1, (320, 256)).astype(int) - half).mean() < 2
        found = resolve(slide.properties, "s")
        assert (found.mpp, found.source, found.objective_power) == (0.5, "header", 20.0)


def test_a_truncated_dicom_file_is_refused_with_the_remedy(tmp_path, square_picture):
    (path,) = write_dicom(tmp_path, [(np.ascontiguousarray(square_picture[:512, :512]), 0.0005)])
    path.write_bytes(path.read_bytes()[:600])
    assert "folder" in _refusal(path)


def test_opening_says_nothing_about_a_usual_slide(square_slide, caplog):
    with caplog.at_level(logging.DEBUG, logger="pipeline"), Slide(square_slide):
        pass
    assert not caplog.records


def test_fingerprints_see_both_ends_and_the_size(tmp_path):
    path = tmp_path / "f"
    prints = set()
    for content in (b"a" * 300_000, b"a" * 300_001, b"b" + b"a" * 299_999, b"a" * 299_999 + b"b", b""):
        path.write_bytes(content)
        prints.add(fingerprint(path))
    assert len(prints) == 5


def test_a_settings_digest_ignores_the_order_of_keys_only():
    assert settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1})
    assert len({settings_digest({"a": 1}), settings_digest({"a": 2}), settings_digest({"b": 1}), settings_digest(1, 2)}) == 4
