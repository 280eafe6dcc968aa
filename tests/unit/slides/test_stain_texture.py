from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_slides import TISSUE

from pipeline.slides.encoders.stain_texture import STAINS, WIDTH, describe
from pipeline.slides.encoders.table import encoder_spec


@pytest.fixture(scope="module")
def patch(square_picture):
    return np.ascontiguousarray(square_picture[TISSUE[1] : TISSUE[1] + 256, TISSUE[0] : TISSUE[0] + 256])


def stained(haematoxylin: float, eosin: float) -> np.ndarray:
    unit = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    density = haematoxylin * unit[0] + eosin * unit[1]
    return np.broadcast_to(np.round(256 * 10**-density - 1).astype(np.uint8), (64, 64, 3)).copy()


def test_the_width_is_that_of_the_table(patch):
    assert describe(patch[None]).shape == (1, WIDTH)
    assert encoder_spec("stain_texture").width == WIDTH
    assert describe(np.zeros((0, 256, 256, 3), np.uint8)).shape == (0, WIDTH)


@pytest.mark.parametrize(("haematoxylin", "eosin"), [(0.6, 0.2), (0.0, 0.7), (0.3, 0.0)])
def test_the_amounts_of_the_stains_are_found(haematoxylin, eosin):
    (found,) = describe(stained(haematoxylin, eosin)[None])
    assert found[0] == pytest.approx(haematoxylin, abs=0.015)
    assert found[8] == pytest.approx(eosin, abs=0.015)
    assert found[16] == pytest.approx(0, abs=0.015)  # nothing is left over


def test_numbers_are_finite_and_of_order_one(patch):
    found = describe(np.stack([patch, *(np.full_like(patch, grey) for grey in (0, 128, 255))]))
    assert np.isfinite(found).all()
    assert np.abs(found[0]).max() < 4
    assert 0.1 < np.abs(found[0]).mean() < 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["turn", "mirror", "flip"]))
def test_turning_and_mirroring_change_nothing(seed, how):
    noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    noise = cv2.GaussianBlur(noise, (0, 0), 1.5)
    moved = {"turn": np.rot90(noise), "mirror": noise[:, ::-1], "flip": noise[::-1]}[how]
    assert np.allclose(describe(noise[None]), describe(np.ascontiguousarray(moved)[None]), atol=2e-5)


def test_a_patch_has_the_same_numbers_alone_and_in_a_batch(patch):
    other = np.full_like(patch, 240)
    assert np.array_equal(describe(np.stack([other, patch]))[1], describe(patch[None])[0])


def test_more_nuclei_are_counted_as_more():
    image = np.full((256, 256, 3), (225, 140, 190), np.uint8)
    numbers = []
    for count in (4, 8, 16):
        dotted = image.copy()
        for i in range(count):
            cv2.circle(dotted, (30 + 60 * (i % 4), 30 + 60 * (i // 4)), 9, (80, 50, 130), -1)
        numbers.append(describe(dotted[None])[0][36])
    assert np.allclose(numbers, np.array([4, 8, 16]) * 400 / 256**2, rtol=1e-4)
