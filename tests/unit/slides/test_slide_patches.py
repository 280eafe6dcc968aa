from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box
from synthetic_slides import HOLE, TISSUE

from pipeline.errors import InputError
from pipeline.slides.patches import PatchSettings, lay_patches, level0_size

SQUARE = [box(*TISSUE).difference(box(*HOLE))]


def test_patches_fill_the_square_in_row_order_and_leave_out_the_hole():
    coords, side = lay_patches(SQUARE, (3072, 2560), 0.5, PatchSettings())
    assert (side, coords.dtype) == (256, np.int32)
    expected = [(x, y) for y in range(512, 2048, 256) for x in range(512, 2304, 256)]
    expected = [(x, y) for x, y in expected if not (1024 <= x < 1536 and 1024 <= y < 1536)]
    assert [tuple(c) for c in coords.tolist()] == expected


def test_at_twice_the_resolution_the_same_tissue_gives_the_same_patches():
    from shapely.affinity import scale

    coarse, side = lay_patches(SQUARE, (3072, 2560), 0.5, PatchSettings())
    doubled = [scale(p, 2, 2, origin=(0, 0)) for p in SQUARE]
    fine, double_side = lay_patches(doubled, (6144, 5120), 0.25, PatchSettings())
    assert double_side == 2 * side
    assert np.array_equal(fine, 2 * coarse)


def test_a_scan_with_an_odd_resolution_gets_patches_of_the_asked_width():
    coords, side = lay_patches(SQUARE, (3072, 2560), 0.2527, PatchSettings(target_mpp=0.5, scale_tolerance=0))
    assert side * 0.2527 == pytest.approx(128, abs=0.2527)
    assert (coords % side == 0).all()


def test_a_step_of_half_a_patch_overlaps():
    coords, _ = lay_patches([box(0, 0, 1024, 256)], (1024, 256), 0.5, PatchSettings(step=128))
    assert coords[:, 0].tolist() == list(range(0, 1024 - 255, 128))


def test_the_tissue_share_decides():
    half = [box(0, 0, 128, 256)]
    assert len(lay_patches(half, (512, 512), 0.5, PatchSettings(min_tissue=0.4))[0]) == 1
    assert len(lay_patches(half, (512, 512), 0.5, PatchSettings(min_tissue=0.6))[0]) == 0


def test_patches_never_leave_the_slide_even_a_tiny_one():
    for size in ((255, 3000), (300, 200), (257, 256)):
        coords, side = lay_patches([box(-50, -50, 5000, 5000)], size, 0.5, PatchSettings())
        assert coords.shape[1] == 2
        assert (coords + side <= size).all()


def test_a_scan_coarser_than_the_target_is_refused():
    with pytest.raises(InputError) as error:
        lay_patches(SQUARE, (3072, 2560), 0.5, PatchSettings(target_mpp=0.25), "s1")
    assert str(error.value) == (
        "slide s1: the scan is coarser than the target; found '0.5 µm per pixel', expected at most 0.3125. "
        "Raise `patches.target_mpp`, or leave out the slide."
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 900), st.integers(0, 900), st.integers(40, 900), st.integers(40, 900), st.floats(0.15, 0.6))
def test_every_patch_has_its_share_of_tissue_by_exact_geometry(left, top, width, height, mpp):
    tissue = box(left, top, left + width, top + height)
    coords, side = lay_patches([tissue], (2000, 2000), mpp, PatchSettings(patch_size=64))
    chosen = {tuple(c) for c in coords.tolist()}
    for x in range(0, 2000 - side + 1, side):
        for y in range(0, 2000 - side + 1, side):
            share = tissue.intersection(box(x, y, x + side, y + side)).area / side**2
            if abs(share - 0.5) > 0.13:  # the mask has 16 × 16 pixels a patch
                assert ((x, y) in chosen) == (share > 0.5)


@pytest.mark.parametrize(
    ("mpp", "side"), [(0.25, 512), (0.2525, 512), (0.2431, 512), (0.2271, 564), (0.5017, 256), (0.49, 256), (0.125, 1024)]
)
def test_a_scan_close_to_a_half_or_a_quarter_of_the_target_is_read_without_interpolation(mpp, side):
    assert level0_size(256, mpp, PatchSettings()) == side
    assert level0_size(256, mpp, PatchSettings(scale_tolerance=0)) == round(256 * 0.5 / mpp)


def test_overlapping_patches_keep_their_step_in_the_same_proportion():
    coords, side = lay_patches(SQUARE, (3072, 2560), 0.2525, PatchSettings(step=128))
    assert side == 512
    assert set(np.diff(np.unique(coords[:, 0]))) == {256}
