from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Point, box
from synthetic_slides import GLASS, HOLE, PEN, SIZE, TISSUE, picture, write_svs

from pipeline.slides.opening import Slide
from pipeline.slides.overview import overview
from pipeline.slides.quality import rasterise
from pipeline.slides.tissue import TissueSettings, _along_edges, find_tissue, glass_colour, outlines, segment, tissue_mm2, trace

TRUTH = box(*TISSUE).difference(box(*HOLE))
UM = 8.0


def small(image: np.ndarray) -> np.ndarray:
    """The overview of a picture of 0.5 µm a pixel."""
    return cv2.resize(image, None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)


def tissue_of(image: np.ndarray, settings: TissueSettings | None = None) -> np.ndarray:
    """bool [H, W]: the tissue of an overview, without small pieces and holes."""
    settings = settings or TissueSettings()
    return rasterise(outlines(segment(image, UM, settings).tissue, 1.0, UM, settings), image.shape[:2], 1.0)


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray]:
    """Densities [H, W, 3] of a piece of tissue on clear glass and where it is."""
    image = small(picture(pen=None)).astype(np.float32)
    density = np.maximum(-np.log10(image / np.array(GLASS, np.float32)), 0)
    density[segment(image.astype(np.uint8), UM, TissueSettings()).tissue == 0] = 0
    return density, rasterise([TRUTH], image.shape[:2], 16.0)


def photograph(density: np.ndarray, glass: tuple[int, int, int] = GLASS, noise: float = 1.0) -> np.ndarray:
    grain = np.random.default_rng(5).normal(0, noise, density.shape)
    return np.clip(np.array(glass) * 10.0**-density + grain, 0, 255).astype(np.uint8)


def test_contours_cover_the_square_and_respect_its_hole(square_slide):
    with Slide(square_slide) as slide:
        tissue = find_tissue(slide, 0.5)
        image = overview(slide, 16.0)
    (square,) = tissue.polygons
    assert len(square.interiors) == 1
    assert square.is_valid
    assert square.intersection(TRUTH).area / square.union(TRUTH).area > 0.98
    assert tissue_mm2(tissue.polygons, 0.5) == pytest.approx(TRUTH.area * 0.25e-6, rel=0.01)
    assert not square.intersects(box(*PEN))
    assert tissue.downsample == 16.0
    assert np.array_equal(tissue.image, image)
    pen = (PEN[2] - PEN[0]) * (PEN[3] - PEN[1]) / (SIZE[0] * SIZE[1])
    assert tissue.pen_share == pytest.approx(pen, rel=0.3)  # with its rim
    assert tissue.artefact_share == 0


def test_given_polygons_replace_ours_and_the_rest_is_measured(square_slide):
    hand = [box(0, 0, 100, 100)]
    with Slide(square_slide) as slide:
        ours, theirs = find_tissue(slide, 0.5), find_tissue(slide, 0.5, given=hand)
    assert theirs.polygons == hand
    assert (theirs.pen_share, theirs.downsample) == (ours.pen_share, ours.downsample)


def test_a_slide_without_tissue_has_no_contours(tmp_path):
    with Slide(write_svs(tmp_path / "s.svs", picture(tissue=False), levels=1)) as slide:
        assert find_tissue(slide, 0.5).polygons == []


def test_ink_is_kept_when_asked(square_slide):
    with Slide(square_slide) as slide:
        assert len(find_tissue(slide, 0.5, TissueSettings(reject_pen=False)).polygons) == 2


@pytest.mark.parametrize("strength", [0.15, 0.3, 0.6, 1.0, 1.8])
def test_the_tissue_does_not_depend_on_the_strength_of_its_stain(scene, strength):
    density, truth = scene
    assert overlap(tissue_of(photograph(density * strength)), truth) > 0.95


@pytest.mark.parametrize(
    "glass", [GLASS, (255, 255, 255), (238, 226, 196), (228, 212, 226), (200, 200, 203), (172, 168, 165), (205, 215, 232)]
)
def test_tinted_and_grey_glass_is_balanced_out(scene, glass):
    density, truth = scene
    image = photograph(density, glass)
    assert overlap(tissue_of(image), truth) > 0.95
    if glass != (255, 255, 255):
        assert np.abs(glass_colour(image) - glass).max() <= 1
    assert not tissue_of(photograph(np.zeros_like(density), glass, noise=1.5)).any()


@pytest.mark.parametrize("hue", [(0.65, 0.70, 0.29), (0.75, 0.62, 0.21), (0.79, 0.57, 0.24), (0.27, 0.57, 0.78), (0.07, 0.99, 0.11)])
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_stains_of_any_hue_are_tissue_and_no_ink(scene, hue, strength):
    density, truth = scene
    amount = density.sum(axis=2, keepdims=True) * strength
    found = segment(photograph(amount * np.array(hue, np.float32)), UM, TissueSettings())
    assert overlap(found.tissue, truth) > 0.94
    assert found.ink.mean() < 0.01


@pytest.mark.parametrize("frame", [0, 255])
def test_stitched_black_and_white_are_no_tissue_and_do_not_move_the_threshold(frame):
    image = small(picture())
    alone = tissue_of(image)
    padded = np.pad(image, ((90, 90), (90, 90), (0, 0)), constant_values=frame)
    framed = tissue_of(padded)
    assert (framed[90:-90, 90:-90] == alone).mean() > 0.995
    assert framed.sum() == framed[90:-90, 90:-90].sum()
    found = segment(padded, UM, TissueSettings())
    ring = 1 - image[..., 0].size / padded[..., 0].size
    assert found.black.mean() == pytest.approx(ring if frame == 0 else 0, abs=0.01)
    assert found.blank.mean() == pytest.approx(ring if frame == 255 else 0, abs=0.01)


def test_a_noisy_black_border_is_neither_tissue_nor_pen():
    image = small(picture(pen=None))
    border = np.random.default_rng(2).integers(0, 22, (40, image.shape[1], 3)).astype(np.uint8)
    found = segment(np.vstack([border, image]), UM, TissueSettings())
    assert not found.tissue[:40].any()
    assert found.ink.mean() < 0.01
    assert found.black[:40].mean() > 0.9


def test_the_edge_of_a_coverslip_is_no_tissue(scene):
    density, truth = scene
    line = np.zeros(truth.shape, np.float32)
    cv2.line(line, (0, 12), (191, 20), 1.0, 1, cv2.LINE_AA)
    cv2.line(line, (180, 0), (176, 159), 1.0, 2, cv2.LINE_AA)
    mask = tissue_of(photograph(density + line[..., None] * np.array([0.35, 0.36, 0.33])))
    assert (mask & ~truth).mean() < 0.01


def test_dust_is_no_tissue():
    density = np.zeros((160, 200, 3), np.float32)
    rng = np.random.default_rng(4)
    for x, y in zip(rng.integers(0, 200, 60), rng.integers(0, 160, 60), strict=True):
        cv2.circle(density, (int(x), int(y)), int(rng.integers(0, 3)), (0.2, 0.6, 0.5) if x % 2 else (0.6, 0.6, 0.6), -1)
    assert not tissue_of(photograph(density)).any()


def adipose(membrane: float) -> tuple[np.ndarray, np.ndarray]:
    """Densities of an ellipse of fat cells of 60–110 µm with membranes of that density at 2 µm, and where it is; at 8 µm a pixel."""
    rng = np.random.default_rng(6)
    fat = cv2.ellipse(np.zeros((640, 800), np.uint8), (400, 320), (300, 220), 0, 0, 360, 1, -1).astype(bool)
    seeds, taken = np.ones(fat.shape, np.uint8), np.zeros(fat.shape, np.uint8)
    for at in rng.permutation(np.flatnonzero(fat))[:20000]:
        y, x = divmod(int(at), fat.shape[1])
        if not taken[y, x]:
            seeds[y, x] = 0
            cv2.circle(taken, (x, y), int(rng.integers(15, 27)), 1, -1)
    _, cell = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    lines = (cv2.morphologyEx(cell.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((2, 2))) > 0) & fat
    density = cv2.GaussianBlur(lines.astype(np.float32), (0, 0), 0.7)[..., None] * membrane * np.array([0.35, 1.0, 0.45], np.float32)
    return cv2.resize(density, (200, 160), interpolation=cv2.INTER_AREA), cv2.resize(fat.view(np.uint8), (200, 160)) > 0


@pytest.mark.parametrize("membrane", [0.2, 0.4])
def test_fat_is_one_contiguous_piece_not_thousands_of_specks(membrane):
    density, truth = adipose(membrane)
    image = photograph(density)
    polygons = outlines(segment(image, UM, TissueSettings()).tissue, 1.0, UM, TissueSettings())
    assert len(polygons) == 1
    assert overlap(tissue_of(image), truth) > 0.9
    assert overlap(tissue_of(image, TissueSettings(fat=False)), truth) < 0.3


def test_fat_does_not_close_holes_or_gaps_of_dense_tissue(scene):
    density, _ = scene
    image = photograph(density)
    with_fat, without = (tissue_of(image, TissueSettings(fat=fat)) for fat in (True, False))
    assert overlap(with_fat, without) > 0.99


def test_a_smooth_faint_smear_is_no_tissue_but_pale_textured_tissue_is():
    image = np.full((120, 240, 3), GLASS, np.uint8)
    smear, pale = (slice(30, 90), slice(20, 100)), (slice(30, 90), slice(140, 220))
    image[smear] = (236, 214, 226)
    grain = cv2.GaussianBlur(np.random.default_rng(1).normal(0, 40, (60, 80, 1)), (0, 0), 1.2)[..., None]
    image[pale] = np.clip(np.array([232, 196, 218]) + grain, 0, 255).astype(np.uint8)
    mask = tissue_of(cv2.GaussianBlur(image, (0, 0), 1))
    assert mask[smear][8:-8, 8:-8].mean() < 0.02  # its rim has an edge
    assert mask[pale].mean() > 0.9


def test_a_blurred_slide_keeps_its_tissue(scene):
    density, truth = scene
    assert overlap(tissue_of(photograph(cv2.GaussianBlur(density, (0, 0), 2))), truth) > 0.88


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_a_region_of_interest_without_glass_is_all_tissue(strength):
    image = picture(pen=None, hole=False)[TISSUE[1] : TISSUE[3], TISSUE[0] : TISSUE[2]]
    density = -np.log10(small(image).astype(np.float32) / np.array(GLASS, np.float32))
    assert tissue_of(photograph(density * strength)).mean() > 0.97


def test_small_pieces_are_dropped_and_small_holes_filled():
    image = np.full((200, 200, 3), GLASS, np.uint8)
    image[20:120, 20:120] = (200, 110, 165)
    image[60:65, 60:65] = GLASS
    image[160:166, 160:166] = (200, 110, 165)
    strict, loose = TissueSettings(fat=False), TissueSettings(min_piece_mm2=0.0, min_hole_mm2=0.0, close_um=0, open_um=0, fat=False)
    (square,) = outlines(segment(image, UM, strict).tissue, 16.0, 0.5, strict)
    assert len(square.interiors) == 0
    square, speck = outlines(segment(image, UM, loose).tissue, 16.0, 0.5, loose)
    assert len(square.interiors) == 1
    assert tissue_mm2([speck], 0.5) < 0.02


def test_an_island_in_a_filled_hole_is_not_counted_twice():
    mask = np.ones((60, 60), bool)
    mask[20:40, 20:40] = False
    mask[25:35, 25:35] = True
    assert [p.area for p in trace(mask, 1.0)] == pytest.approx([3200, 100], rel=0.01)
    (whole,) = trace(mask, 1.0, min_piece=0, min_hole=500)
    assert whole.area == pytest.approx(3600, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_outlines_run_between_pixels_and_cut_their_corners(seed, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < 0.6
    borders, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = _along_edges(borders) if borders else []
    area = -sum(cv2.contourArea(ring, oriented=True) for ring in rings)
    padded = np.pad(mask, 1).astype(int)
    around = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]
    diagonal = (around == 2) & (padded[:-1, :-1] == padded[1:, 1:])  # a bridge of the width of half a pixel's diagonal
    assert area == np.choose(around, [0, 1 / 8, 1 / 2, 7 / 8, 1]).sum() + diagonal.sum() / 4
    assert sum(map(len, rings)) == np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_traced_polygons_are_valid_and_fill_what_they_were_traced_from(seed, smooth):
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(40, 50)), (0, 0), smooth)
    mask = noise > 0.2 * noise.std()
    polygons = trace(mask, 8.0)
    assert all(p.is_valid and p.geom_type == "Polygon" for p in polygons)
    assert sum(p.area for p in polygons) / 64 == pytest.approx(mask.sum(), rel=0.1, abs=4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_no_image_whatever_its_size_or_content_breaks_the_search(seed, height, width):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    found = segment(image, UM, TissueSettings(min_piece_mm2=0, min_hole_mm2=0))
    assert found.tissue.shape == found.ink.shape == found.black.shape == (height, width)
    assert not (found.tissue & (found.ink | found.black)).any()


@pytest.mark.realdata
def test_the_tissue_of_a_real_frozen_section_is_one_piece_with_its_holes(real_slide):
    with Slide(real_slide) as slide:
        tissue = find_tissue(slide, 0.5)
    (section,) = tissue.polygons
    assert tissue_mm2([section], 0.5) == pytest.approx(2.50, rel=0.02)
    assert tissue.pen_share < 0.001
    scale = 4443 / 1024
    for x, y, inside in ((400, 400, True), (760, 130, True), (950, 700, True), (650, 470, False), (60, 150, False), (700, 60, False)):
        assert section.contains(Point(x * scale, y * scale)) is inside
