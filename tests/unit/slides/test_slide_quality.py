from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from shapely.geometry import box
from synthetic_slides import HOLE, SIZE, TISSUE, break_tiles, picture, write_svs

from pipeline.slides.opening import Slide
from pipeline.slides.quality import FIGURES, QualitySettings, measure, rasterise
from pipeline.slides.tissue import Tissue, find_tissue


def measured(path: Path, mpp: float = 0.5, settings: QualitySettings | None = None) -> dict[str, object]:
    with Slide(path) as slide:
        return measure(slide, find_tissue(slide, mpp), mpp, settings)


def flags(found: dict[str, object]) -> set[str]:
    return set(filter(None, str(found["flags"]).split(";")))


def strengthened(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(243 * (image / 243.0) ** factor, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> dict[str, object]:
    return measured(write_svs(tmp_path_factory.mktemp("clean") / "s.svs", picture(pen=None)))


def test_the_figures_of_a_known_slide_are_right_and_nothing_is_flagged(clean):
    area = ((TISSUE[2] - TISSUE[0]) * (TISSUE[3] - TISSUE[1]) - (HOLE[2] - HOLE[0]) ** 2) * 0.25e-6
    assert list(clean) == FIGURES
    assert clean["tissue_mm2"] == clean["largest_piece_mm2"] == pytest.approx(area, rel=0.01)
    assert clean["tissue_share"] == pytest.approx(area / (SIZE[0] * SIZE[1] * 0.25e-6), rel=0.01)
    assert (clean["pieces"], clean["holes"], clean["pen_share"], clean["artefact_share"]) == (1, 1, 0, 0)
    assert clean["blurred_share"] == 0
    assert clean["haematoxylin"] > 0.03
    assert clean["eosin"] > 0.1
    assert clean["flags"] == ""


def test_measuring_twice_gives_the_same(tmp_path, clean):
    assert measured(write_svs(tmp_path / "s.svs", picture(pen=None))) == clean


def test_blur_is_seen_whatever_the_strength_of_the_stain(tmp_path, clean):
    image = picture(pen=None)
    for name, factor in (("pale", 0.4), ("dark", 1.5)):
        found = measured(write_svs(tmp_path / f"{name}.svs", strengthened(image, factor)))
        assert found["focus"] == pytest.approx(clean["focus"], rel=0.1)
        assert not flags(found) & {"blurred", "partly blurred"}
    previous = clean["focus"]
    for sigma in (1, 2, 4):  # 0.5, 1 and 2 µm
        found = measured(write_svs(tmp_path / f"{sigma}.svs", cv2.GaussianBlur(image, (0, 0), sigma)))
        assert found["focus"] < previous - 0.05
        previous = found["focus"]
        assert sigma == 1 or "blurred" in flags(found)
    assert found["blurred_share"] == 1


def test_a_blurred_part_is_told_from_a_blurred_slide(tmp_path):
    image = picture(pen=None)
    left = TISSUE[0] + (TISSUE[2] - TISSUE[0]) * 2 // 5
    image[:, :left] = cv2.GaussianBlur(image[:, :left], (0, 0), 4)
    found = measured(write_svs(tmp_path / "s.svs", image))
    assert 0.25 <= found["blurred_share"] < 0.5
    assert flags(found) == {"partly blurred"}


def test_pen_pale_stain_specks_and_absent_glass_are_flagged(tmp_path):
    image = picture()
    assert flags(measured(write_svs(tmp_path / "pen.svs", image))) == {"pen"}
    assert "pale" in flags(measured(write_svs(tmp_path / "pale.svs", strengthened(picture(pen=None), 0.15))))
    assert "dark" in flags(measured(write_svs(tmp_path / "dark.svs", strengthened(picture(pen=None), 3.5))))
    crop = picture(pen=None, hole=False)[TISSUE[1] : TISSUE[3], TISSUE[0] : TISSUE[2]]
    assert flags(measured(write_svs(tmp_path / "crop.svs", np.ascontiguousarray(crop), levels=1))) == {"no glass"}
    framed = picture(pen=None)
    framed[:400] = 0
    assert flags(measured(write_svs(tmp_path / "framed.svs", framed))) == {"black border"}
    few = QualitySettings(pieces=0, little_mm2=2.0)
    assert flags(measured(write_svs(tmp_path / "plain.svs", picture(pen=None)), settings=few)) == {"little tissue", "many pieces"}


def test_a_slide_without_tissue_is_measured_and_says_so(tmp_path):
    found = measured(write_svs(tmp_path / "s.svs", picture(tissue=False), levels=1))
    assert flags(found) == {"no tissue", "pen"}
    assert (found["tissue_mm2"], found["largest_piece_mm2"], found["eosin"]) == (0, 0, 0)
    assert np.isnan(found["focus"])


def test_regions_that_cannot_be_read_are_flagged_and_do_not_stop(tmp_path):
    path = write_svs(tmp_path / "s.svs", picture(pen=None))
    break_tiles(path, [(x, y) for x in range(2, 9) for y in range(2, 5)])
    found = measured(path)
    assert flags(found) == {"unreadable"}
    assert found["focus"] > 0.6


def test_focus_is_left_out_when_asked_or_when_the_scan_is_too_coarse(tmp_path):
    path = write_svs(tmp_path / "s.svs", picture(pen=None), mpp=2.0)
    for found in (measured(path, 2.0), measured(path, 0.5, QualitySettings(fields=0))):
        assert np.isnan(found["focus"])
        assert np.isnan(found["blurred_share"])
        assert not flags(found)


def test_a_slide_smaller_than_a_field_is_measured(tmp_path):
    path = write_svs(tmp_path / "s.svs", np.ascontiguousarray(picture(pen=None)[600:760, 600:780]), levels=1)
    with Slide(path) as slide:
        whole = Tissue([box(0, 0, 180, 160)], slide.read_rgb((0, 0), 0, (180, 160)), 1.0, 0.0, 0.0)
        found = measure(slide, whole, 0.5)
    assert found["focus"] > 0
    assert flags(found) == {"little tissue", "no glass"}


def test_a_rasterised_polygon_keeps_its_holes_and_its_area():
    mask = rasterise([box(0, 0, 800, 640).difference(box(160, 160, 320, 320))], (60, 60), 16.0)
    assert not mask[12:18, 12:18].any()
    assert mask.sum() == pytest.approx(50 * 40 - 100, rel=0.1)


@pytest.mark.realdata
def test_a_real_slide_is_sharp_and_its_blurred_copy_is_not(tmp_path, real_slide):
    found = measured(real_slide)
    assert flags(found) == set()
    assert 0.65 < found["focus"] < 1.1
    assert found["blurred_share"] < 0.15
    with Slide(real_slide) as slide:
        pixels = slide.read_rgb((1000, 1000), 0, (2048, 1536))
    blurred = measured(write_svs(tmp_path / "b.svs", cv2.GaussianBlur(pixels, (0, 0), 2)))
    assert "blurred" in flags(blurred)
