from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from shapely.geometry import box

from pipeline.slides.overlay import A_PAGE, CAPTION, CELL, COLUMNS, contact_sheet, draw_overlay, fitted


@pytest.fixture(autouse=True)
def small_pictures_stay_small(monkeypatch):
    monkeypatch.setattr("pipeline.slides.overlay.SHORTEST", 1)


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1].astype(int)


def is_green(pixel: np.ndarray) -> bool:
    return bool(pixel[1] > pixel[0] + 60 and pixel[1] > pixel[2] + 60)


def is_orange(pixel: np.ndarray) -> bool:
    return bool(pixel[0] > 200 and pixel[1] < 160 and pixel[2] < 100)


def test_outer_contours_are_green_and_holes_orange(tmp_path):
    image = np.full((300, 400, 3), 240, np.uint8)
    draw_overlay(image, 10.0, [box(500, 600, 3000, 2500).difference(box(1000, 1000, 1500, 1500))], tmp_path / "s.png")
    picture = read(tmp_path / "s.png")
    assert picture.shape == (300, 400, 3)
    assert is_green(picture[150, 50])
    assert is_orange(picture[125, 100])
    assert (picture[20, 20] == 240).all()
    assert (image == 240).all()


@pytest.mark.parametrize("shape", [(3200, 2000), (1000, 4800), (1601, 3)])
def test_a_large_overview_is_shrunk_and_the_contours_with_it(tmp_path, shape):
    image = np.full((*shape, 3), 240, np.uint8)
    picture, scale = fitted(image, 8.0)
    assert max(picture.shape[:2]) == 1600
    assert scale * picture.shape[1] == 8.0 * shape[1]
    right, bottom = shape[1] * 8 // 2, shape[0] * 8 // 2
    draw_overlay(image, 8.0, [box(0, 0, right, bottom)], tmp_path / "s.png")
    assert is_green(read(tmp_path / "s.png")[picture.shape[0] // 4, min(round(right / scale), picture.shape[1] - 1)])


def test_patches_are_drawn_when_given(tmp_path):
    draw_overlay(np.full((100, 100, 3), 240, np.uint8), 16.0, [], tmp_path / "s.png", coords=np.array([[256, 512]]), side=256)
    picture = read(tmp_path / "s.png")
    assert picture[40, 16].tolist() == [0, 90, 200]
    assert picture[40, 24].tolist() == [240, 240, 240]


def overlays(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((60 + i % 7, 80, 3), (i % 200, 60, 90), np.uint8))
    return paths


def test_a_contact_sheet_shows_every_slide_with_its_name_and_its_flags_in_red(tmp_path):
    paths = overlays(tmp_path, 12)
    labels, flags = [f"slide-{i}" for i in range(12)], ["blurred" if i == 3 else "" for i in range(12)]
    assert contact_sheet(paths, labels, tmp_path / "sheet.png", flags) == [tmp_path / "sheet.png"]
    sheet = read(tmp_path / "sheet.png")
    assert sheet.shape == (2 * (CELL + CAPTION), COLUMNS * CELL, 3)
    for i in range(12):
        top, left = i // COLUMNS * (CELL + CAPTION), i % COLUMNS * CELL
        assert sheet[top + 20, left + 20].tolist() == [90, 60, i]
        caption = sheet[top + CELL : top + CELL + CAPTION, left : left + CELL]
        assert (caption.max(axis=2) < 100).any()
        assert ((caption[..., 0] > 180) & (caption[..., 1] < 80)).any() == (i == 3)


def test_an_absent_overlay_leaves_a_cell_that_says_so(tmp_path):
    contact_sheet([tmp_path / "absent.png", *overlays(tmp_path, 1)], ["a", "b"], tmp_path / "sheet.png")
    caption = read(tmp_path / "sheet.png")[CELL : CELL + CAPTION]
    red = (caption[..., 0] > 180) & (caption[..., 1] < 80)
    assert red[:, :CELL].any()
    assert not red[:, CELL:].any()


def test_a_long_name_stays_in_its_cell(tmp_path):
    contact_sheet(overlays(tmp_path, 1) * 2, ["TCGA-CR-7395-01A-01-TS1." * 5, ""], tmp_path / "sheet.png")
    assert (read(tmp_path / "sheet.png")[CELL:, CELL:] == 255).all()


def test_more_than_a_hundred_slides_go_on_further_pages(tmp_path):
    paths = overlays(tmp_path, 3) * 70
    pages = contact_sheet(paths, [str(i) for i in range(210)], tmp_path / "sheet.jpg")
    assert [page.name for page in pages] == ["sheet.jpg", "sheet-2.jpg", "sheet-3.jpg"]
    heights = [read(page).shape[0] // (CELL + CAPTION) for page in pages]
    assert heights == [A_PAGE // COLUMNS, A_PAGE // COLUMNS, 1]


def test_no_slide_gives_an_empty_page(tmp_path):
    (page,) = contact_sheet([], [], tmp_path / "sheet.png")
    assert (read(page) == 255).all()


def test_a_small_overview_is_enlarged_so_that_its_lines_do_not_hide_it(monkeypatch):
    monkeypatch.undo()
    picture, scale = fitted(np.zeros((200, 100, 3), np.uint8), 16.0)
    assert picture.shape == (800, 400, 3)
    assert scale == 4.0
