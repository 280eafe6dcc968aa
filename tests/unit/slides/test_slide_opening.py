from __future__ import annotations

import numpy as np
import pytest
from synthetic_slides import GLASS, TISSUE, break_tiles, write_svs

from pipeline.errors import InputError
from pipeline.slides.__main__ import COLUMNS, main
from pipeline.slides.opening import Slide, UnreadableRegionError
from pipeline.slides.overview import overview
from pipeline.slides.provenance import fingerprint, settings_digest
from pipeline.slides.resolution import resolve

MPP, POWER = "openslide.mpp-x", "openslide.objective-power"


def test_the_table_beats_the_header_which_beats_the_objective():
    both = {MPP: "0.25", POWER: "40"}
    assert resolve(both, "s", 0.3, 0.5).source == "table"
    assert (resolve(both, "s", 0.3).mpp, resolve(both, "s").mpp, resolve({POWER: "20"}, "s").mpp) == (0.3, 0.25, 0.5)
    assert resolve(both, "s", float("nan"), 0.5).source == "header"
    assert resolve({POWER: "20"}, "s", None, 0.4).source == "objective-power"
    assert (resolve({}, "s", None, 0.4).mpp, resolve({}, "s", None, 0.4).source) == (0.4, "cohort")


def test_a_slide_without_resolution_is_refused_with_the_remedy():
    with pytest.raises(InputError) as error:
        resolve({MPP: "nan", POWER: "unknown"}, "TCGA-1")
    assert str(error.value) == (
        "slide TCGA-1: no resolution in the file; expected openslide.mpp-x or openslide.objective-power. "
        "Add an mpp column for this slide in the slide table or `slides.mpp` in the cohort file."
    )


@pytest.mark.parametrize("properties", [{MPP: "250"}, {MPP: "0.0005"}, {POWER: "1"}])
def test_an_implausible_resolution_of_the_file_is_refused_but_a_person_is_believed(properties):
    with pytest.raises(InputError, match=r"implausible resolution in the file; found '.* µm per pixel .*', expected 0.05 to 4"):
        resolve(properties, "s")
    assert resolve(properties, "s", 5.0).mpp == 5.0
    with pytest.raises(InputError, match="resolution is not positive"):
        resolve(properties, "s", -0.5)


def test_an_absent_file_and_a_file_that_is_no_slide_are_told_apart(tmp_path, square_slide):
    with pytest.raises(InputError, match="no such slide file"):
        Slide(tmp_path / "absent.svs")
    cut_off = tmp_path / "cut.svs"
    cut_off.write_bytes(square_slide.read_bytes()[:4000])
    with pytest.raises(InputError, match="cannot be opened as a slide"):
        Slide(cut_off)


def test_what_lies_outside_the_scan_is_white(square_slide):
    with Slide(square_slide) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert (slide.read_rgb((-5000, -5000), 0, (32, 16)) == 255).all()
        assert slide.read_rgb((0, 0), 0, (32, 16)).shape == (16, 32, 3)


def test_a_handle_reads_on_after_an_unreadable_tile(tmp_path, square_picture):
    path = break_tiles(write_svs(tmp_path / "s.svs", square_picture), [(4, 2)])
    with Slide(path) as slide:
        with pytest.raises(UnreadableRegionError):
            slide.read_rgb((4 * 256, 2 * 256), 0, (256, 256))
        assert np.abs(slide.read_rgb((0, 0), 0, (64, 64)).astype(int) - GLASS).max() <= 3


@pytest.mark.parametrize("levels", [1, 3])
def test_the_overview_agrees_with_the_picture_with_and_without_a_pyramid(tmp_path, square_picture, levels):
    with Slide(write_svs(tmp_path / "s.svs", square_picture, levels=levels)) as slide:
        image = overview(slide, 16)
    expected = square_picture.reshape(160, 16, 192, 16, 3).mean((1, 3))
    assert image.shape == (160, 192, 3)
    assert np.abs(image - expected).mean() < 4  # JPEG at 1/16


def test_the_overview_of_a_flat_slide_loses_only_the_broken_tile(tmp_path, square_picture):
    tile = (TISSUE[0] // 256 + 1, TISSUE[1] // 256 + 1)
    path = break_tiles(write_svs(tmp_path / "s.svs", square_picture, levels=1), [tile])
    with Slide(path) as slide:
        image = overview(slide, 16)
        with pytest.raises(InputError, match="more than 0% of the slide cannot be read"):
            overview(slide, 16, max_unreadable=0.0)
    white = (image == 255).all(2)
    x, y = tile[0] * 16, tile[1] * 16
    assert white[y : y + 16, x : x + 16].all()
    assert white.sum() == 256


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


def test_inspect_prints_a_row_a_slide_and_its_problem(tmp_path, square_slide, capsys):
    broken = tmp_path / "broken.svs"
    broken.write_text("no slide")
    assert main(["inspect", str(square_slide), str(broken)]) == 1
    header, good, bad = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert header == COLUMNS
    assert good[:8] == ["square", "aperio", "3072", "2560", "1,4,16", "0.5", "header", "20.0"]
    assert bad[0] == "broken"
    assert "cannot be opened as a slide" in bad[-1]
    assert main(["inspect", str(square_slide)]) == 0
