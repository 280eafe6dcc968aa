from __future__ import annotations

import gzip
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff
from synthetic_mri import affine, ball, points, rotation, write

from pipeline.errors import InputError
from pipeline.imaging.nifti import Volume, foreground, onto_grid, read_volume, same_grid

VALUES = np.random.default_rng(0).integers(0, 2000, (5, 6, 7)).astype(np.int16)


def test_every_orientation_of_a_file_gives_the_same_volume(tmp_path):
    matrix = affine((1, 2, 3), (-10, 5, 40))
    expected = read_volume(write(tmp_path / "ras.nii.gz", VALUES, matrix))
    np.testing.assert_array_equal(expected.values, VALUES)
    for order, flips in list(product(permutations(range(3)), product((1, -1), repeat=3)))[::5]:
        turn = np.column_stack([order, flips])
        path = write(tmp_path / "turned.nii.gz", apply_orientation(VALUES, turn), matrix @ inv_ornt_aff(turn, VALUES.shape))
        found = read_volume(path)
        np.testing.assert_array_equal(found.values, VALUES)
        np.testing.assert_allclose(found.affine, matrix, atol=1e-5)
        assert same_grid(found, expected)


@settings(max_examples=25, deadline=None)
@given(st.floats(-44, 44), st.integers(0, 2), st.tuples(*[st.floats(0.4, 6)] * 3))
def test_the_spacing_of_an_oblique_volume_is_that_of_its_voxels(degrees, axis, spacing):
    volume = Volume(np.zeros((2, 2, 2)), affine(spacing, rotation=rotation(degrees, axis)))
    np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-9)


def test_both_nifti_versions_scaling_and_plain_files_are_read(tmp_path):
    image = nibabel.Nifti2Image(VALUES, affine())
    nibabel.save(image, tmp_path / "two.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "two.nii").values, VALUES)
    scaled = nibabel.Nifti1Image(VALUES * 0.5 + 3, affine())
    scaled.set_data_dtype(np.int16)
    nibabel.save(scaled, tmp_path / "scaled.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "scaled.nii.gz").values, VALUES * 0.5 + 3, atol=0.05)
    big = nibabel.Nifti1Image(VALUES, affine(), nibabel.Nifti1Header(endianness=">"))
    nibabel.save(big, tmp_path / "big.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "big.nii.gz").values, VALUES)


def test_one_point_in_time_is_squeezed_and_two_are_refused(tmp_path):
    np.testing.assert_array_equal(read_volume(write(tmp_path / "one.nii.gz", VALUES[..., None], affine())).values, VALUES)
    for values, shape in ((np.stack([VALUES] * 2, -1), "[5, 6, 7, 2]"), (VALUES[0], "[6, 7]")):
        path = write(tmp_path / "other.nii.gz", values, affine())
        with pytest.raises(InputError) as error:
            read_volume(path)
        assert error.value.reason == f"{path}: is not one volume; found '{shape}', expected [X, Y, Z], or [X, Y, Z, 1]."


def test_voxels_that_are_not_finite_count_as_background(tmp_path, caplog):
    values = VALUES.astype(np.float32)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    volume = read_volume(write(tmp_path / "nan.nii.gz", values, affine()))
    assert (volume.values[0, 0, :3] == 0).all()
    assert "3 of 210 voxels are not finite" in caplog.text


@pytest.mark.parametrize("at", ["tail", "middle", "checksum"])
def test_a_damaged_gz_is_never_taken_for_voxels(tmp_path, at):
    path = write(tmp_path / "x.nii.gz", np.random.default_rng(1).integers(0, 2000, (30, 30, 30)).astype(np.int16), affine())
    raw = bytearray(path.read_bytes())
    if at == "tail":
        raw = raw[: len(raw) // 2]
    elif at == "middle":
        raw[len(raw) // 2] ^= 0xFF
    else:
        raw[-6] ^= 0x01
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="is damaged") as error:
        read_volume(path)
    assert error.value.remedy == "Copy the file again, or leave the sequence out of the manifest."


def test_a_plain_file_that_is_cut_off_is_refused(tmp_path):
    path = write(tmp_path / "x.nii", VALUES, affine())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="is cut off; found '672 bytes', expected 772 bytes by its header"):
        read_volume(path)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 347), st.integers(0, 255))
def test_a_damaged_header_is_told_or_harmless(tmp_path_factory, place, value):
    path = tmp_path_factory.mktemp("header") / "x.nii"
    write(path, VALUES, affine())
    raw = bytearray(path.read_bytes())
    raw[place] = value
    path.write_bytes(bytes(raw))
    told = str(path)
    try:
        assert read_volume(path).values.ndim == 3
    except InputError as error:
        told = str(error)
    assert str(path) in told


def test_other_content_is_refused(tmp_path):
    (tmp_path / "text.nii").write_text("no image")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"no image" * 100))
    (tmp_path / "empty.nii").touch()
    for name in ("text.nii", "text.nii.gz", "empty.nii"):
        with pytest.raises(InputError, match="cannot be read as NIfTI"):
            read_volume(tmp_path / name)
    with pytest.raises(InputError, match="no such image"):
        read_volume(tmp_path / "absent.nii.gz")
    colours = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, affine()), tmp_path / "rgb.nii.gz")
    with pytest.raises(InputError, match="the voxels are no plain numbers"):
        read_volume(tmp_path / "rgb.nii.gz")


def test_dicom_is_sent_to_a_converter(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "slice.nii").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 400)
    (tmp_path / "slice.dcm").write_bytes(b"\0" * 200)
    for name in ("series", "slice.nii", "slice.dcm"):
        with pytest.raises(InputError, match="DICOM is not read") as error:
            read_volume(tmp_path / name)
        assert "dcm2niix" in error.value.remedy


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        (affine((1, 1, 0)), "the affine is singular or not finite"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "the affine is singular or not finite"),
        (np.array([[np.nan, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "the affine is singular or not finite"),
        (affine((0.001, 0.001, 0.005)), "the size of a voxel is absurd; found '0.001 × 0.001 × 0.005 mm', expected 0.01 to 100 mm."),
        (affine((500, 500, 3000)), "the size of a voxel is absurd; found '500 × 500 × 3000 mm', expected 0.01 to 100 mm."),
    ],
)
def test_a_wrong_affine_is_refused(tmp_path, matrix, problem):
    image = nibabel.Nifti1Image(VALUES, affine())
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[name] = matrix[row]
    path = tmp_path / "x.nii"
    path.write_bytes(image.header.binaryblock + b"\0" * 4 + VALUES.tobytes(order="F"))
    with pytest.raises(InputError) as error:
        read_volume(path)
    assert problem in error.value.reason


def test_labels_choose_the_tumour():
    mask = Volume(np.array([0, 1, 2, 2.0001, -1, 3]).reshape(6, 1, 1), np.eye(4))
    assert foreground(mask).ravel().tolist() == [False, True, True, True, False, True]
    assert foreground(mask, [2]).ravel().tolist() == [False, False, True, True, False, False]


def test_a_mask_of_another_grid_is_the_nearest_voxel_of_it():
    image = Volume(np.zeros((20, 22, 9), np.float32), affine((1.1, 0.9, 4.0), (-9, -8, -15), rotation(17, 2) @ rotation(9, 0)))
    grid = affine((0.7, 1.3, 2.1), (-12.3, -11.1, -20.7), rotation(-8, 1))
    marked = np.random.default_rng(4).random((30, 18, 20)) < 0.5
    found = onto_grid(marked, grid, image)
    places = (points(image.values.shape, image.affine) - grid[:3, 3]) @ np.linalg.inv(grid[:3, :3]).T
    expected = np.zeros(image.values.shape, bool)
    for at in np.ndindex(expected.shape):
        voxel = np.rint(places[at]).astype(int)
        if (voxel >= 0).all() and (voxel < marked.shape).all():
            expected[at] = marked[tuple(voxel)]
    np.testing.assert_array_equal(found, expected)
    assert 0 < expected.sum() < expected.size


def test_a_ball_drawn_on_another_grid_is_the_same_ball():
    image = Volume(np.zeros((60, 60, 14), np.float32), affine((1, 1, 5), (-30, -30, -30), rotation(20, 2)))
    fine = affine((0.5, 0.5, 0.5), (-30, -30, -30))
    found = onto_grid(ball((120, 120, 120), fine, (1, -2, 3), 12), fine, image)
    surely, perhaps = (ball(image.values.shape, image.affine, (1, -2, 3), 12 + slack) for slack in (-0.45, 0.45))
    assert (found | perhaps).sum() == perhaps.sum()
    assert (found & surely).sum() == surely.sum() > 100
    np.testing.assert_array_equal(onto_grid(found, image.affine, image), found)


def test_a_mask_reaches_half_a_voxel_beyond_the_middles_of_its_border():
    image = Volume(np.zeros((10, 1, 1), np.float32), affine((1, 1, 1), (-1.6, 0, 0)))
    found = onto_grid(np.ones((3, 1, 1), bool), affine((2, 2, 2)), image)  # covers -1…5 mm
    assert np.flatnonzero(found.ravel()).tolist() == [1, 2, 3, 4, 5, 6]  # at -0.6 … 4.4 mm


def test_a_grid_is_the_same_up_to_a_thousandth():
    one = Volume(np.zeros((3, 3, 3)), affine())
    assert same_grid(one, Volume(np.zeros((3, 3, 3)), affine(origin=(0.0009, 0, 0))))
    assert not same_grid(one, Volume(np.zeros((3, 3, 3)), affine(origin=(0.002, 0, 0))))
    assert not same_grid(one, Volume(np.zeros((3, 3, 4)), affine()))
