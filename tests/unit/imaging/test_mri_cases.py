from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_mri import affine, ball, write
from tests.support.bad_nights import apart, obey_permissions, require_obedience

from pipeline.cohort.bags import read_bags, read_rows
from pipeline.contents import Contents
from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.imaging.cases import gather_cases, mri_features
from pipeline.imaging.manifest import read_cases
from pipeline.imaging.mri import MriSettings, read_tumour
from pipeline.imaging.nifti import read_volume
from pipeline.machine import MachineError
from pipeline.study import mri_listing

CPU = {"device": "cpu", "batch_size": 4, "threads": 1}
SHAPE = (16, 16, 6)
VOLUMES = MriSettings(rows="volume", shape=SHAPE)


def made(cases: Path, output: Path, entry: dict | None = None, settings: MriSettings | None = None) -> Path:
    """Run the stage and join its bags; the path of the bags."""
    arguments = {"encoder": "small", "overrides": {"small": entry}} if entry else {}
    mri_features(cases, output / "mri.tsv", settings or MriSettings(), patient_id="case_id", running=CPU, **arguments)
    gather_cases(output / "mri.tsv", output / "mri.h5")
    return output / "mri.h5"


def manifest(path: Path) -> pd.DataFrame:
    return pd.read_csv(path.with_suffix(".tsv"), sep="\t", keep_default_na=False).set_index(["patient_id", "sequence"])


def test_a_bag_has_a_row_for_every_slice_of_the_tumour(cohort, tmp_path, small):
    path = made(cohort, tmp_path / "bags", small[1])
    table, rows = manifest(path), read_rows(path)
    assert list(read_bags(path)) == ["p1", "p2"]
    assert rows.features.shape == (table["rows"].replace("", 0).astype(int).sum(), 128)
    for number, sequence in enumerate(["art", "t2"]):
        for patient in ("p1", "p2"):
            found = rows.columns["slice"][(rows.patients == patient) & (rows.columns["sequence"] == number)]
            assert " ".join(map(str, found)) == table.loc[(patient, sequence), "slices"]
    # a ball of 11 mm around 0 in slices of 4 mm from -30: those at -10, -6 … 10 mm; of 9 mm around 5: at -2 … 14 mm
    assert table.loc["p1", "art"]["slices"] == "5 6 7 8 9 10"
    assert table.loc["p2", "t2"]["slices"] == "7 8 9 10 11"
    assert table.loc["p1", "art"]["box"] == "15:46 18:49 5:11"  # x -10…10 mm are 20…40, 5 more on each side
    assert table.loc["p1"]["mask_grid"].tolist() == ["image", "resampled"]
    assert json.loads(rows.attributes["sequences"]) == ["art", "t2"]
    assert rows.attributes["weights"] == sha256(small[1]["checkpoint"])
    assert rows.attributes["encoder"] == "small"


def test_the_features_are_those_of_the_recipe_written_out_with_torch(cohort, tmp_path, small):
    import torch

    path = made(cohort, tmp_path / "bags", small[1])
    image = read_volume(cohort.parent / "p1" / "art.nii.gz").values
    low, high = np.percentile(image[image != 0], (0.5, 99.5))
    cut = ((image.clip(low, high) - low) / (high - low))[15:46, 18:49, 5:11]
    slices = torch.from_numpy(cut).float().permute(2, 0, 1)[:, None]
    slices = torch.nn.functional.interpolate(slices, (64, 64), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(small[1][key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = small[0]((slices - mean) / std)[-1].mean((2, 3)).numpy()
    rows = read_rows(path)
    found = rows.features[(rows.patients == "p1") & (rows.columns["sequence"] == 0)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_row_can_be_the_mean_over_a_sequence(cohort, tmp_path, small):
    slices = read_rows(made(cohort, tmp_path / "slices", small[1]))
    sequences = read_rows(made(cohort, tmp_path / "sequences", small[1], MriSettings(rows="sequence")))
    assert list(sequences.columns) == ["sequence"]
    assert sequences.patients.tolist() == ["p1", "p1", "p2"]
    assert sequences.columns["sequence"].tolist() == [0, 1, 1]
    for row, (patient, number) in enumerate(zip(sequences.patients, sequences.columns["sequence"], strict=True)):
        of_it = slices.features[(slices.patients == patient) & (slices.columns["sequence"] == number)]
        np.testing.assert_allclose(sequences.features[row], of_it.mean(0), rtol=1e-5, atol=1e-6)


def test_volumes_are_standardised_and_a_missing_sequence_is_zero(cohort, tmp_path):
    rows = read_rows(made(cohort, tmp_path / "bags", settings=VOLUMES))
    volumes = rows.features.reshape(2, 2, *SHAPE).astype(np.float32)  # patients, sequences
    assert rows.features.dtype == np.float16
    assert rows.attributes["shape"].tolist() == list(SHAPE)
    assert (volumes[1, 0] == 0).all()
    for volume in (volumes[0, 0], volumes[0, 1], volumes[1, 1]):
        known = volume[volume != 0]
        assert abs(known.mean()) < 1e-2
        assert abs(known.std() - 1) < 1e-2
    # the second patient's tumour lies at the border: his crop is filled up with zeros there
    assert (volumes[1, 1][:, 0] == 0).all()
    assert (volumes[1, 1][:, -1] != 0).any()


def test_a_damaged_file_fails_its_sequence_alone_and_says_why(cohort, tmp_path):
    table = manifest(made(cohort, tmp_path / "bags", settings=VOLUMES))
    assert table["status"].to_dict() == {
        **{("p1", "art"): "ok", ("p1", "t2"): "ok"},
        **{("p2", "art"): "missing", ("p2", "t2"): "ok"},
        **{("p3", "art"): "failed", ("p3", "t2"): "missing"},
    }
    failed = table.loc["p3", "art"]
    assert failed["reason"].startswith(f"{cohort.parent / 'p3' / 'art.nii.gz'}: is damaged (")
    assert failed["remedy"] == "Copy the file again, or leave the sequence out of the manifest."
    assert table.loc["p2", "art"]["reason"] == "not in the table of MRI files."


def test_files_that_may_not_be_read_for_a_night_fail_no_sequence(cohort, tmp_path):
    """The other patients are done; with the permission back the same call ends at the bytes of an undisturbed one."""
    undisturbed = made(cohort, tmp_path / "undisturbed", settings=VOLUMES).read_bytes()

    def night(name: str) -> tuple[str, list[str]]:
        obey_permissions()
        file = cohort.parent / "p2" / name
        mode = file.stat().st_mode
        file.chmod(0)
        try:
            require_obedience(file)
            with pytest.raises(MachineError) as raised:
                made(cohort, tmp_path / "bags", settings=VOLUMES)
        finally:
            file.chmod(mode)
        return str(raised.value), sorted(path.name for path in (tmp_path / "bags").rglob("*.*"))

    for name in ("t2.nii", "mask.nii"):
        told, done = apart(night, name)
        where = cohort.parent / "p2" / name
        assert told.startswith(f"not done for a cause that passes: 1 of 3 patients (p2): permission is denied at {where}. Give it back")
        assert "p1.h5" in done
        assert not any(name.endswith(".tsv") for name in done)
    assert made(cohort, tmp_path / "bags", settings=VOLUMES).read_bytes() == undisturbed


def test_a_sequence_without_a_tumour_is_missing(cohort, tmp_path):
    fine = affine((1, 1, 4), (-30, -30, -30))
    write(cohort.parent / "p2" / "mask.nii", np.zeros((60, 60, 15), np.uint8), fine)
    write(cohort.parent / "p1" / "mask.nii.gz", ball((60, 60, 15), fine, (0, 3, 0), 11), affine((1, 1, 4), (500, 0, 0)))
    mri_features(cohort, tmp_path / "mri.tsv", VOLUMES, patient_id="case_id", running=CPU)
    table = manifest(tmp_path / "mri.tsv")
    assert set(table["status"]) == {"missing", "failed"}
    assert table.loc["p2", "t2"]["reason"].endswith("mask.nii: the mask is empty; found '0', expected voxels above 0.")
    lost = "nothing of the mask lies in the image; found 'image -30…30 × -30…30 × -32…28 mm, mask 500…560 × -0…60 × -2…58 mm'"
    assert lost in table.loc["p1", "art"]["reason"]
    with pytest.raises(InputError, match="no patient has a sequence that can be used"):
        gather_cases(tmp_path / "mri.tsv", tmp_path / "mri.h5")


def test_labels_that_the_mask_lacks_are_told(cohort):
    files = read_cases(cohort, patient_id="case_id").patients["p1"]["art"]
    with pytest.raises(InputError, match=re.escape("the mask is empty; found '0, 1', expected voxels of 2, 3. Leave the sequence out")):
        read_tumour(files, MriSettings(labels=[2, 3]))


def test_a_second_run_makes_nothing_again(cohort, tmp_path, small):
    path = made(cohort, tmp_path / "bags", small[1])
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "bags" / "mri").iterdir()}
    content = path.read_bytes(), path.with_suffix(".tsv").read_bytes()
    assert sorted(file.name for file in before) == ["p1.h5", "p2.h5"]
    made(cohort, tmp_path / "bags", small[1])
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert (path.read_bytes(), path.with_suffix(".tsv").read_bytes()) == content


def test_a_corrected_mask_makes_its_patient_again_and_no_other(cohort, tmp_path):
    path = made(cohort, tmp_path / "bags", settings=VOLUMES)
    before = {file.stem: file.stat().st_mtime_ns for file in (tmp_path / "bags" / "mri").iterdir()}
    told = manifest(path)
    mask = cohort.parent / "p2" / "mask.nii"
    raw = bytearray(mask.read_bytes())
    raw[352 + 30 + 60 * 30 + 3600 * 7] = 1  # one voxel in the middle: neither size nor ends of the file change
    mask.write_bytes(bytes(raw))
    made(cohort, tmp_path / "bags", settings=VOLUMES)
    after = {file.stem: file.stat().st_mtime_ns for file in (tmp_path / "bags" / "mri").iterdir()}
    assert after["p1"] == before["p1"]
    assert after["p2"] != before["p2"]
    now = manifest(path)  # the bags are joined again only if this table changes
    assert now.loc["p1"].equals(told.loc["p1"])
    assert now.loc["p2", "t2"]["slices"] == told.loc["p2", "t2"]["slices"]
    assert now.loc["p2", "t2"]["inputs"] != told.loc["p2", "t2"]["inputs"]


def test_other_settings_make_all_patients_again(cohort, tmp_path):
    first = made(cohort, tmp_path / "bags", settings=VOLUMES).read_bytes()
    assert made(cohort, tmp_path / "bags", settings=MriSettings(rows="volume", shape=SHAPE, margin_mm=8)).read_bytes() != first
    assert made(cohort, tmp_path / "bags", settings=VOLUMES).read_bytes() == first


def test_a_failed_sequence_is_tried_again_once_its_file_is_there(cohort, tmp_path):
    mask = cohort.parent / "p2" / "mask.nii"
    mask.rename(mask.with_name("elsewhere.nii"))
    path = made(cohort, tmp_path / "bags", settings=VOLUMES)
    assert manifest(path).loc["p2", "t2"]["status"] == "failed"
    mask.with_name("elsewhere.nii").rename(mask)
    assert list(read_bags(made(cohort, tmp_path / "bags", settings=VOLUMES))) == ["p1", "p2"]


def test_the_order_of_the_table_changes_no_byte(cohort, tmp_path):
    results = []
    for number, turned in enumerate((False, True)):
        table = pd.read_csv(cohort, sep="\t")
        (table[::-1] if turned else table).to_csv(cohort, sep="\t", index=False)
        path = made(cohort, tmp_path / f"run{number}", settings=VOLUMES)
        results.append((path.read_bytes(), path.with_suffix(".tsv").read_bytes()))
    assert results[0] == results[1]


def test_two_runs_on_a_cpu_give_the_same_bytes(cohort, tmp_path, small):
    one, two = (made(cohort, tmp_path / name, small[1]).read_bytes() for name in ("one", "two"))
    assert one == two


def test_stated_sequences_number_the_rows(cohort, tmp_path):
    settings = MriSettings(rows="volume", shape=SHAPE, sequences=["t2", "dwi", "art"])
    rows = read_rows(made(cohort, tmp_path / "bags", settings=settings))
    assert json.loads(rows.attributes["sequences"]) == ["t2", "dwi", "art"]
    assert (rows.features.reshape(2, 3, -1)[:, 1] == 0).all()
    assert (rows.features.reshape(2, 3, -1)[:, 0] != 0).any(axis=1).all()


def test_a_transposed_file_gives_the_same_volume(cohort, tmp_path):
    """The closest canonical orientation is what is cut, whatever the order of the axes on disk."""
    import nibabel

    first = made(cohort, tmp_path / "one", settings=VOLUMES)
    for name in ("t2.nii", "mask.nii"):
        image = nibabel.load(cohort.parent / "p2" / name)
        values, matrix = image.get_fdata().copy(), image.affine[:, [2, 0, 1, 3]]
        write(cohort.parent / "p2" / name, values.transpose(2, 0, 1), matrix)
    second = made(cohort, tmp_path / "two", settings=VOLUMES)
    np.testing.assert_array_equal(read_bags(first)["p2"], read_bags(second)["p2"])


def test_slices_may_run_along_the_axis_of_the_largest_spacing(tmp_path):
    matrix = affine((4, 1, 1))
    write(tmp_path / "x.nii", np.random.default_rng(0).random((20, 50, 50)).astype(np.float32), matrix)
    write(tmp_path / "m.nii", ball((20, 50, 50), matrix, (40, 25, 25), 10), matrix)
    (tmp_path / "cases.tsv").write_text("case_id\tsequence\timage\tmask\nA\tt1\tx.nii\tm.nii\n")
    files = read_cases(tmp_path / "cases.tsv", patient_id="case_id").patients["A"]["t1"]
    sagittal, axial = read_tumour(files, MriSettings(slice_axis="auto")), read_tumour(files, MriSettings())
    assert (sagittal.axis, sagittal.slices.tolist()) == (0, [8, 9, 10, 11, 12])
    assert sagittal.images().shape == (5, 31, 31, 3)
    assert (axial.axis, axial.slices.tolist()) == (2, list(range(15, 36)))
    assert axial.images().shape == (21, 9, 36, 3)  # 5 mm are 2 voxels of 4 mm: (5 + 4) · 4 = 36 mm


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": "slices"}, "column 'rows': unknown setting of MRI; found 'slices', expected slice, sequence, volume."),
        ({"slice_axis": 3}, "column 'slice_axis': unknown setting of MRI; found '3', expected 0, 1, 2 or auto."),
        ({"margin_mm": -1}, "column 'margin_mm': unknown setting of MRI; found '-1', expected 0 or more."),
        ({"max_slices": 0}, "column 'max_slices': unknown setting of MRI; found '0', expected 1 or more."),
        ({"shape": [8, 8]}, "column 'shape': unknown setting of MRI; found '[8, 8]', expected three numbers of voxels."),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InputError) as error:
        MriSettings(**settings)
    assert str(error.value) == message


def test_what_the_encoder_lacks_is_no_patients_fault(cohort, tmp_path, small):
    with pytest.raises(InputError, match="no such checkpoint"):
        made(cohort, tmp_path, {**small[1], "checkpoint": str(tmp_path / "absent.safetensors")})
    with pytest.raises(InputError, match="the encoder is not one for MRI slices; found 'stain_texture'"):
        mri_features(cohort, tmp_path / "mri.tsv", MriSettings(), "stain_texture", patient_id="case_id")
    assert not (tmp_path / "mri.tsv").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A\tt1\tx.nii\t\n", "row 2, column 'mask': cell is empty; expected a value."),
        ("A\tt1\tx.nii\tm.nii\nA\tt1\ty.nii\tm.nii\n", "row 3, column 'sequence': patient has the sequence twice; found 'A, t1'"),
        ("../A\tt1\tx.nii\tm.nii\n", "row 2, column 'case_id': not a usable patient id; found '../A'"),
        ("A\tT1w\tx.nii\tm.nii\n", "row 2, column 'sequence': no such sequence; found 'T1w', expected t1w, t2w. Did you mean 't1w'?"),
        ("", "names no sequence; expected at least one row."),
    ],
)
def test_a_bad_table_stops_with_row_and_column(tmp_path, text, message):
    table = tmp_path / "cases.tsv"
    table.write_text("case_id\tsequence\timage\tmask\n" + text)
    with pytest.raises(InputError) as error:
        read_cases(table, patient_id="case_id", sequences=["t1w", "t2w"] if "T1w" in text else None)
    assert str(error.value).startswith(str(table))
    assert message in str(error.value)


def test_a_replaced_file_changes_the_digest_of_the_listing(cohort):
    first = mri_listing({"manifest": cohort}, Contents())
    assert mri_listing({"manifest": cohort}, Contents()) == first
    path = cohort.parent / "p1" / "t2.nii.gz"
    path.write_bytes(path.read_bytes() + b"\0")
    second = mri_listing({"manifest": cohort}, Contents())
    path.unlink()
    assert len({first, second, mri_listing({"manifest": cohort}, Contents())}) == 3


def test_the_encoder_of_the_recipe_gives_1024_numbers_a_slice(cohort, tmp_path):
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("resnet50", pretrained=False, features_only=True, out_indices=[3])
    save_file(model.state_dict(), tmp_path / "resnet50.safetensors")
    running, overrides = {"device": "cpu", "batch_size": 1}, {"resnet50_cut": {"checkpoint": str(tmp_path / "resnet50.safetensors")}}
    mri_features(cohort, tmp_path / "mri.tsv", MriSettings(max_slices=1), patient_id="case_id", overrides=overrides, running=running)
    gather_cases(tmp_path / "mri.tsv", tmp_path / "mri.h5")
    rows = read_rows(tmp_path / "mri.h5")
    assert rows.features.shape == (3, 1024)
    assert rows.features.dtype == np.float32
    assert np.isfinite(rows.features).all()
    assert rows.features.std(axis=0).max() > 0
