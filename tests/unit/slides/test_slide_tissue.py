from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Point, Polygon, box
from synthetic_slides import GLASS, HOLE, PEN, SIZE, TISSUE, picture, write_svs

from pipeline.errors import InputError
from pipeline.slides.contours import read_contours, write_contours
from pipeline.slides.opening import Slide
from pipeline.slides.overlay import draw_overlay
from pipeline.slides.tissue import TissueSettings, find_tissue, tissue_mask, tissue_mm2, trace

TRUTH = box(*TISSUE).difference(box(*HOLE))
INKS = {
    "blue": (40, 60, 180),
    "light blue": (90, 140, 220),
    "violet": (60, 50, 170),
    "navy": (25, 30, 90),
    "green": (20, 140, 60),
    "light green": (90, 190, 120),
    "red": (215, 30, 40),
    "crimson": (190, 20, 50),
    "black": (35, 35, 38),
    "grey": (120, 120, 125),
}


def test_contours_cover_the_square_and_respect_its_hole(square_slide):
    with Slide(square_slide) as slide:
        polygons = find_tissue(slide, 0.5)
    assert len(polygons) == 1
    assert len(polygons[0].interiors) == 1
    assert polygons[0].is_valid
    overlap = polygons[0].intersection(TRUTH).area / polygons[0].union(TRUTH).area
    assert overlap > 0.98
    assert tissue_mm2(polygons, 0.5) == pytest.approx(TRUTH.area * 0.25e-6, rel=0.01)
    assert not polygons[0].intersects(box(*PEN))


@pytest.mark.parametrize("ink", INKS)
def test_pen_of_any_colour_is_no_tissue_even_beside_it(ink):
    image = cv2.resize(picture(pen=None), None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)
    cv2.line(image, (10, 150), (180, 140), INKS[ink], 8, cv2.LINE_AA)  # on glass
    cv2.line(image, (146, 20), (150, 150), INKS[ink], 8, cv2.LINE_AA)  # touches the tissue's right side
    image = cv2.GaussianBlur(image, (3, 3), 0)
    mask = tissue_mask(image, 8.0, TissueSettings())
    truth = np.zeros(mask.shape, bool)
    truth[32:128, 32:144] = True
    truth[64:96, 64:96] = False
    assert mask[truth].mean() > 0.93
    assert mask[~truth].mean() < 0.01


def test_ink_is_kept_when_asked(square_slide):
    with Slide(square_slide) as slide:
        assert len(find_tissue(slide, 0.5, TissueSettings(reject_pen=False))) == 2


@pytest.mark.parametrize("frame", [0, 255])
def test_stitched_black_and_white_are_no_tissue_and_do_not_move_the_threshold(frame):
    image = cv2.resize(picture(), None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)
    alone = tissue_mask(image, 8.0, TissueSettings())
    framed = tissue_mask(np.pad(image, ((90, 90), (90, 90), (0, 0)), constant_values=frame), 8.0, TissueSettings())
    assert (framed[90:-90, 90:-90] == alone).mean() > 0.995
    assert framed.sum() == framed[90:-90, 90:-90].sum()


@pytest.mark.parametrize("glass", [GLASS, (255, 255, 255), (238, 230, 205), (225, 215, 228)])
def test_glass_is_no_tissue_whatever_its_tint(glass):
    noise = np.random.default_rng(0).normal(0, 1.5, (120, 150, 3))
    assert not tissue_mask(np.clip(noise + glass, 0, 255).astype(np.uint8), 8.0, TissueSettings()).any()


def test_a_smooth_faint_smear_is_no_tissue_but_pale_textured_tissue_is():
    image = np.full((120, 240, 3), GLASS, np.uint8)
    smear, pale = (slice(30, 90), slice(20, 100)), (slice(30, 90), slice(140, 220))
    image[smear] = (236, 214, 226)
    grain = cv2.GaussianBlur(np.random.default_rng(1).normal(0, 40, (60, 80, 1)), (0, 0), 1.2)[..., None]
    image[pale] = np.clip(np.array([232, 196, 218]) + grain, 0, 255).astype(np.uint8)
    mask = tissue_mask(image, 8.0, TissueSettings())
    assert mask[smear][8:-8, 8:-8].mean() < 0.02  # its rim has an edge
    assert mask[pale].mean() > 0.9


def test_a_slide_full_of_tissue_is_all_tissue():
    image = picture(pen=None, hole=False)[TISSUE[1] : TISSUE[3], TISSUE[0] : TISSUE[2]]
    small = cv2.resize(image, None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)
    assert tissue_mask(small, 8.0, TissueSettings()).mean() > 0.97


def test_small_pieces_are_dropped_and_small_holes_filled():
    image = np.full((200, 200, 3), GLASS, np.uint8)
    image[20:120, 20:120] = (200, 110, 165)
    image[60:65, 60:65] = GLASS
    image[160:166, 160:166] = (200, 110, 165)
    polygons = trace(tissue_mask(image, 8.0, TissueSettings()), 16.0)
    assert [len(p.interiors) for p in polygons] == [0]
    loose = trace(tissue_mask(image, 8.0, TissueSettings(min_piece_mm2=0.0, min_hole_mm2=0.0, close_um=0, open_um=0)), 16.0)
    assert len(loose) == 2
    assert len(loose[0].interiors) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_traced_polygons_are_valid_and_fill_what_they_were_traced_from(seed, smooth):
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(40, 50)), (0, 0), smooth)
    mask = noise > 0.2 * noise.std()
    polygons = trace(mask, 8.0)
    assert all(p.is_valid for p in polygons)
    assert sum(p.area for p in polygons) / 64 == pytest.approx(mask.sum(), rel=0.1, abs=4)


def test_contours_survive_a_round_trip_and_suit_qupath(tmp_path):
    polygons = [box(0, 0, 100, 80).difference(box(10, 10, 20, 20)), box(200, 0, 260, 60)]
    write_contours(tmp_path / "s.geojson", polygons, {"settings": "x", "mpp": 0.5})
    content = json.loads((tmp_path / "s.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert content["features"][0]["properties"]["objectType"] == "annotation"
    assert content["features"][0]["properties"]["classification"]["name"] == "Tissue"
    assert len(content["features"][0]["geometry"]["coordinates"]) == 2
    read, properties = read_contours(tmp_path / "s.geojson")
    assert properties == {"settings": "x", "mpp": 0.5}
    assert all(a.equals(b) for a, b in zip(read, polygons, strict=True))


def test_annotations_drawn_by_hand_are_read_whatever_their_wrapping(tmp_path):
    square = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}
    both = {"type": "MultiPolygon", "coordinates": [square["coordinates"], [[[20, 20], [29, 20], [29, 29], [20, 20]]]]}
    point = {"type": "Point", "coordinates": [1, 1]}
    features = [{"type": "Feature", "geometry": g, "properties": {}} for g in (both, point)]
    path = tmp_path / "hand.geojson"
    for content, count in ((features, 2), ({"type": "FeatureCollection", "features": features}, 2), (features[0], 2)):
        path.write_text(json.dumps(content))
        assert len(read_contours(path)[0]) == count
    for text in ("{", "[1]", '{"features": [{"geometry": {"type": "Blob"}}]}'):
        path.write_text(text)
        with pytest.raises(InputError, match="cannot be read as GeoJSON"):
            read_contours(path)


def test_the_overlay_is_small_and_shows_the_contour(tmp_path, square_slide):
    with Slide(square_slide) as slide:
        draw_overlay(slide, [Polygon(TRUTH)], tmp_path / "s.png")
    image = cv2.imread(str(tmp_path / "s.png"))[..., ::-1]
    assert image.shape == (854, 1024, 3)
    scale = SIZE[0] / 1024
    green = np.array(image[round(1200 / scale), round(TISSUE[0] / scale)], int)
    assert green[1] > green[0] + 60
    assert green[1] > green[2] + 60


@pytest.mark.realdata
def test_the_tissue_of_a_real_frozen_section_is_one_piece_with_its_holes(real_slide):
    with Slide(real_slide) as slide:
        polygons = find_tissue(slide, 0.5)
    assert len(polygons) == 1
    assert tissue_mm2(polygons, 0.5) == pytest.approx(2.49, rel=0.02)
    section = polygons[0]
    scale = 4443 / 1024
    for x, y, inside in ((400, 400, True), (760, 130, True), (950, 700, True), (650, 470, False), (60, 150, False), (700, 60, False)):
        assert section.contains(Point(x * scale, y * scale)) is inside


def test_a_slide_without_tissue_has_no_contours(tmp_path):
    with Slide(write_svs(tmp_path / "s.svs", picture(tissue=False), levels=1)) as slide:
        assert find_tissue(slide, 0.5) == []
