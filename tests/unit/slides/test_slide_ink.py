from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from synthetic_slides import picture

from pipeline.demo import histology
from pipeline.demo.plan import make_plan
from pipeline.slides.ink import OD, disc, fine_deviation, usual
from pipeline.slides.tissue import Segments, TissueSettings, segment

INKS = {
    "blue": (40, 60, 180),
    "light blue": (90, 140, 220),
    "violet": (60, 50, 170),
    "navy": (25, 30, 90),
    "purple": (90, 40, 130),
    "green": (20, 140, 60),
    "light green": (90, 190, 120),
    "red": (215, 30, 40),
    "crimson": (190, 20, 50),
    "black": (35, 35, 38),
    "grey": (120, 120, 125),
}
TRUTH = np.zeros((160, 192), bool)
TRUTH[32:128, 32:144] = True
TRUTH[64:96, 64:96] = False


@pytest.fixture(scope="module")
def overview() -> np.ndarray:
    return cv2.resize(picture(pen=None), None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)


def found_in(image: np.ndarray) -> Segments:
    return segment(image, 8.0, TissueSettings())


def inked(image: np.ndarray, ink: str, start: tuple[int, int], end: tuple[int, int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The image seen through a stroke with soft edges (densities add up), and the core of the stroke."""
    stroke = cv2.line(np.zeros(image.shape[:2], np.float32), start, end, 1.0, width, cv2.LINE_AA)
    stroke = cv2.GaussianBlur(stroke, (0, 0), 2.5)
    through = image * 10 ** (stroke[..., None] * np.log10((np.array(INKS[ink]) + 1) / 256))
    return through.astype(np.uint8), stroke > 0.6


@pytest.mark.parametrize("ink", INKS)
def test_pen_of_any_colour_is_no_tissue_even_beside_it(overview, ink):
    stroke = np.zeros(overview.shape[:2], np.float32)
    cv2.line(stroke, (10, 150), (180, 140), 1.0, 8, cv2.LINE_AA)  # on glass
    cv2.line(stroke, (146, 20), (150, 150), 1.0, 8, cv2.LINE_AA)  # touches the tissue's right side
    stroke = cv2.GaussianBlur(stroke, (3, 3), 0)[..., None]
    found = found_in((overview * (1 - stroke) + np.array(INKS[ink]) * stroke).astype(np.uint8))
    assert found.tissue[TRUTH].mean() > 0.93
    assert found.tissue[~TRUTH].mean() < 0.012
    assert 0.03 < found.ink.mean() < 0.25


@pytest.mark.parametrize("ink", INKS)
def test_a_soft_stroke_beside_the_tissue_is_ink(overview, ink):
    image, core = inked(overview, ink, (14, 10), (18, 150), 12)
    found = found_in(image)
    assert found.ink[core].mean() > 0.95
    assert not found.tissue[core].any()


@pytest.mark.parametrize("ink", ["blue", "violet", "navy", "green", "red", "crimson", "black"])
def test_tissue_under_dense_ink_is_left_out(overview, ink):
    image, core = inked(overview, ink, (100, 10), (120, 150), 14)
    found = found_in(image)
    assert found.tissue[core].mean() < 0.35
    near = cv2.dilate(core.astype(np.uint8), disc(19)).astype(bool)
    assert found.tissue[TRUTH & ~near].mean() > 0.95


def test_a_ring_around_the_tissue_does_not_swallow_it(overview):
    image = overview.copy()
    cv2.rectangle(image, (22, 22), (160, 140), INKS["green"], 4, cv2.LINE_AA)
    found = found_in(cv2.GaussianBlur(image, (5, 5), 0))
    assert found.tissue[TRUTH].mean() > 0.95
    assert found.tissue[~TRUTH].mean() < 0.03


def test_ink_without_any_tissue_leaves_none(overview):
    image = np.full_like(overview, overview[0, 0])
    for at, ink in enumerate(("blue", "red", "black", "violet")):
        image, _ = inked(image, ink, (20 + 45 * at, 10), (25 + 45 * at, 150), 12)
    found = found_in(image)
    assert found.tissue.mean() < 0.01
    assert found.ink.mean() > 0.2


def test_blood_is_tissue(overview):
    grain = cv2.GaussianBlur(np.random.default_rng(3).normal(0, 1, overview.shape[:2]).astype(np.float32), (0, 0), 0.8) * 2
    pool = np.clip(256 * 10 ** (-(np.array([0.14, 0.70, 0.55]) * (1 + 0.12 * grain[..., None]))), 0, 255)
    image = overview.copy()
    image[40:62, 40:130] = pool[40:62, 40:130]
    assert found_in(image).tissue[42:60, 42:128].mean() > 0.97


@pytest.fixture
def drawn(monkeypatch) -> Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Draws a slide of the demo: its overview before and after the pen, and the density of red that the pen added."""
    before: list[np.ndarray] = []
    mark = histology._pen_mark

    def remember(rng: np.random.Generator, image: np.ndarray) -> None:
        before.append(small(image))
        mark(rng, image)

    def draw(slide_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (planned,) = (slide for slide in make_plan(80, 1).slides if slide.slide_id == slide_id)
        after = small(histology.draw_section(planned.morphology, planned.seed))
        (clean,) = before
        return clean, after, OD[after[..., 0]] - OD[clean[..., 0]]

    monkeypatch.setattr(histology, "_pen_mark", remember)
    return draw


def small(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    "slide_id",
    ["DEMO-045-A", "DEMO-065-A", "DEMO-073-A", "DEMO-038-A"],
    ids=["blue, runs off the tissue", "blue, within the tissue", "black, runs off the tissue", "green, runs off the tissue"],
)
def test_a_thin_stroke_of_a_felt_pen_costs_the_tissue_under_it_and_no_more(drawn, slide_id):
    clean, marked, added = drawn(slide_id)
    without, found = found_in(clean), found_in(marked)
    stroke, rim = added > 0.3, cv2.dilate((added > 0.03).astype(np.uint8), disc(7)).astype(bool)
    assert not without.ink.any()
    assert found.ink[stroke & without.tissue].mean() > 0.9
    beside = rim & ~cv2.dilate(without.tissue.view(np.uint8), disc(5)).astype(bool)
    assert found.tissue[beside].sum() <= 0.02 * beside.sum()
    assert (found.tissue & ~without.tissue).sum() < 0.005 * without.tissue.sum()  # no glass around the stroke either
    lost = without.tissue & ~found.tissue & ~rim
    assert lost.sum() < 0.01 * without.tissue.sum()
    assert (found.ink & ~rim).sum() < 0.01 * without.tissue.sum()


def test_a_stain_that_is_bluer_than_most_ink_is_the_hue_of_its_slide(overview):
    density = OD[overview].mean(axis=2, keepdims=True) * np.array([1.45, 1.0, 0.4])
    image = np.clip(256 * 10**-density - 1, 0, 255).astype(np.uint8)
    mean = density.mean(axis=2).astype(np.float32)
    texture = fine_deviation(mean) / (mean + np.float32(0.01))
    assert usual(cv2.split(image), texture).red == pytest.approx(1.45, rel=0.05)
    assert usual(cv2.split(np.full_like(image, 255)), np.zeros_like(texture)).red == 0
    assert found_in(image).ink.mean() < 0.01


def test_the_deviation_of_a_flat_or_sloping_film_is_nothing():
    slope = np.tile(np.linspace(0.2, 0.8, 60, dtype=np.float32), (40, 1))
    assert fine_deviation(slope)[4:-4, 4:-4].max() < 1e-6
    assert fine_deviation(np.tile(np.array([0.2, 0.8], np.float32), (40, 30)))[4:-4, 4:-4].min() > 0.1


@pytest.mark.parametrize(("diameter", "side"), [(0, 1), (1.9, 1), (2, 3), (5, 5), (13, 13)])
def test_a_disc_has_an_odd_side_of_about_its_diameter(diameter, side):
    assert disc(diameter).shape == (side, side)
