from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_mri import affine, ball

from pipeline.imaging.region import Box, crop, resample, scale_intensity, standardise, tumour_box, tumour_slices

SPACING = (0.5, 1.0, 4.0)


def test_box_and_slices_of_a_ball_in_anisotropic_voxels():
    # radius 10 mm around (30, 40, 60): x 20…40 mm are voxels 40…80, y 30…50 are 30…50, z 52…68 are 13…17
    marked = ball((120, 80, 30), affine(SPACING), (30, 40, 60), 10)
    # the longer side is y's, 21 voxels of 1 mm; x has 41 of 0.5 mm and gets one more, behind
    assert tumour_box(marked, SPACING, 0) == Box((40, 30, 13), (82, 51, 18))
    assert tumour_box(marked, SPACING, 5) == Box((30, 25, 13), (92, 56, 18))
    assert tumour_slices(marked, 32).tolist() == [13, 14, 15, 16, 17]


def test_the_margin_is_rounded_up_to_voxels_and_leaves_the_slices_alone():
    marked = np.zeros((40, 40, 9), bool)
    marked[20, 20, 4:6] = True
    box = tumour_box(marked, (2.0, 2.0, 5.0), 5.0)  # 5 mm are 2.5, so 3 voxels
    assert box == Box((17, 17, 4), (24, 24, 6))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(0.3, 3.0)] * 2, st.floats(0.5, 8.0)),
    st.lists(st.tuples(*[st.integers(0, 19)] * 3), min_size=1, max_size=6),
    st.floats(0, 12),
)
def test_the_box_holds_tumour_and_margin_and_no_more_than_a_square_needs(spacing, marks, margin):
    marked = np.zeros((20, 20, 20), bool)
    marked[tuple(np.transpose(marks))] = True
    box = tumour_box(marked, spacing, margin)
    low, high = np.argwhere(marked).min(0), np.argwhere(marked).max(0) + 1
    for axis in (0, 1):
        assert (low[axis] - box.start[axis]) * spacing[axis] >= margin - 1e-6
        assert (box.stop[axis] - high[axis]) * spacing[axis] >= margin - 1e-6
    sides = [(box.stop[a] - box.start[a]) * spacing[a] for a in (0, 1)]
    assert abs(sides[0] - sides[1]) < max(spacing[:2]) + 1e-6
    needed = max((high[a] - low[a]) * spacing[a] + 2 * (margin + spacing[a]) for a in (0, 1))
    assert max(sides) < needed + max(spacing[:2]) + 1e-6
    for axis in (0, 1):
        assert abs((box.start[axis] + box.stop[axis]) - (low[axis] + high[axis])) <= 1  # half a voxel off the middle at most
    assert (box.start[2], box.stop[2]) == (low[2], high[2])


def test_a_tumour_at_the_border_is_filled_up_with_zeros():
    marked = ball((40, 40, 10), affine((1, 1, 5)), (1, 20, 20), 6)
    values = np.full(marked.shape, 0.7, np.float32)
    box = tumour_box(marked, (1, 1, 5), 5)
    assert box.start[0] < 0
    cut = crop(values, box)
    assert cut.shape == tuple(b - a for a, b in zip(box.start, box.stop, strict=True))
    assert cut.shape[0] == cut.shape[1]
    assert (cut[: -box.start[0]] == 0).all()
    assert (cut[-box.start[0] :] == np.float32(0.7)).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-6, 12), min_size=2, max_size=2), st.lists(st.integers(1, 9), min_size=2, max_size=2))
def test_a_crop_is_what_a_larger_volume_would_give(start, size):
    values = np.arange(1, 9 * 8 * 4 + 1, dtype=np.float32).reshape(9, 8, 4)
    box = Box((*start, 1), (start[0] + size[0], start[1] + size[1], 3))
    inside = all(max(a, 0) < min(b, n) for a, b, n in zip(box.start, box.stop, values.shape, strict=True))
    if inside:  # a tumour's box always holds voxels of the volume
        large = np.pad(values, [(20, 20), (20, 20), (0, 0)])
        expected = large[box.start[0] + 20 : box.stop[0] + 20, box.start[1] + 20 : box.stop[1] + 20, 1:3]
        np.testing.assert_array_equal(crop(values, box), expected)


def test_the_slices_are_those_with_tumour():
    marked = np.zeros((4, 4, 20), bool)
    marked[1, 2, [3, 4, 9]] = True
    assert tumour_slices(marked, 32).tolist() == [3, 4, 9]
    marked[...] = False
    marked[0, 0, 7] = True
    assert tumour_slices(marked, 32).tolist() == [7]


def test_of_too_many_slices_those_at_even_steps_are_taken():
    marked = np.zeros((2, 2, 100), bool)
    marked[0, 0, 10:95] = True
    slices = tumour_slices(marked, 32)
    assert slices.tolist() == np.round(np.linspace(10, 94, 32)).astype(int).tolist()
    marked[0, 0, 40:60] = False  # two tumours: no slice between them
    assert not set(tumour_slices(marked, 32)) & set(range(40, 60))
    assert len(set(tumour_slices(marked, 32))) == 32
    assert tumour_slices(marked, 1).tolist() == [10]


def test_intensities_are_clipped_at_the_percentiles_of_what_is_not_zero():
    values = np.zeros((10, 10, 20), np.float32)
    values.flat[:1001] = np.arange(1000, 2001)
    values.flat[0], values.flat[1000] = 500, 1e6  # one voxel too dark, one too bright
    scaled = scale_intensity(values)
    # of 1001 sorted values the 0.5 % is the 6th (1005), the 99.5 % the 996th (1995)
    np.testing.assert_allclose(scaled.flat[1:1000], (np.clip(np.arange(1001, 2000), 1005, 1995) - 1005) / 990, atol=1e-6)
    assert (scaled.flat[0], scaled.flat[1000]) == (0, 1)
    assert (scaled.flat[1001:] == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 1000))
def test_the_unit_of_the_scanner_changes_nothing(gain):
    values = np.random.default_rng(1).gamma(2, 100, (8, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(scale_intensity(values * np.float32(gain)), scale_intensity(values), atol=1e-5)


@pytest.mark.parametrize("values", [np.zeros((3, 3, 3)), np.full((3, 3, 3), 7.0)])
def test_a_constant_volume_is_zero(values):
    assert (scale_intensity(values) == 0).all()
    assert (standardise(values) == 0).all()


@pytest.mark.parametrize("shape", [(7, 9, 5), (31, 24, 12), (1, 4, 1), (10, 10, 24)])
def test_resampling_agrees_with_torch(shape):
    import torch

    values = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    ours = resample(values, (16, 12, 8))
    theirs = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], (16, 12, 8), mode="trilinear", align_corners=False)
    np.testing.assert_allclose(ours, theirs[0, 0].numpy(), atol=1e-5)


def test_standardising_leaves_the_background_at_zero():
    values = np.random.default_rng(3).gamma(3, 2, (6, 6, 6)).astype(np.float32)
    values[:3] = 0
    z = standardise(values)
    assert (z[:3] == 0).all()
    assert abs(z[3:].mean()) < 1e-5
    assert abs(z[3:].std() - 1) < 1e-5
