from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.slides.preview import LINE, PALE, draw_preview


@pytest.fixture(autouse=True)
def small_pictures_stay_small(monkeypatch):
    monkeypatch.setattr("pipeline.slides.overlay.SHORTEST", 1)


def preview(path, image: np.ndarray, downsample: float, coords: list, side: int) -> np.ndarray:
    draw_preview(path, image, downsample, np.array(coords).reshape(-1, 2), side)
    return cv2.imread(str(path))[..., ::-1].astype(int)


def test_chosen_patches_keep_their_colour_and_the_rest_is_pale(tmp_path):
    image = np.full((100, 120, 3), (200, 100, 160), np.uint8)
    picture = preview(tmp_path / "p.png", image, 16.0, [[256, 512], [512, 512]], 256)
    assert picture[40, 24].tolist() == [200, 100, 160]
    assert picture[40, 40].tolist() == [200, 100, 160]
    pale = [255 - (255 - c) * PALE for c in (200, 100, 160)]
    assert picture[60, 24] == pytest.approx(pale, abs=1)
    assert picture[40, 16].tolist() == picture[32, 20].tolist() == picture[40, 32].tolist() == list(LINE)
    assert (image == (200, 100, 160)).all()


def test_patches_of_a_few_pixels_have_no_lines(tmp_path):
    picture = preview(tmp_path / "p.png", np.full((100, 100, 3), 90, np.uint8), 64.0, [[64, 64], [320, 320]], 256)
    assert (picture[1:5, 1:5] == 90).all()
    assert (picture[5:9, 5:9] == 90).all()
    assert picture[2, 7].min() > 180


def test_a_patch_smaller_than_a_pixel_is_seen(tmp_path):
    assert (preview(tmp_path / "p.png", np.full((50, 50, 3), 90, np.uint8), 512.0, [[5120, 5120]], 16)[10, 10] == 90).all()


def test_a_slide_without_patches_is_all_pale(tmp_path):
    assert preview(tmp_path / "p.png", np.full((50, 50, 3), 90, np.uint8), 16.0, [], 256).min() > 180


def test_a_large_overview_is_shrunk(tmp_path):
    picture = preview(tmp_path / "p.png", np.full((2000, 3200, 3), 90, np.uint8), 8.0, [[12800, 8000]], 800)
    assert picture.shape == (1000, 1600, 3)
    assert (picture[520, 820] == 90).all()
    assert picture[400, 700].min() > 180
