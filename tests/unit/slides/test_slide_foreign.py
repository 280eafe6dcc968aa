from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cohort.loader import BagStore
from pipeline.errors import InputError
from pipeline.slides import foreign
from pipeline.slides.features import read_features
from pipeline.slides.foreign import REMEDY, import_chunk, list_foreign
from pipeline.slides.sealing import sealed_checksum
from pipeline.tables import read_table

RNG = np.random.default_rng(5)
COORDS = np.stack(np.meshgrid(np.arange(3) * 512, np.arange(2) * 512), -1).reshape(-1, 2)  # [6, 2]
FEATURES = RNG.normal(size=(6, 4)).astype(np.float32)
CLAM_SCALE = {
    **{"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0), "downsampled_level_dim": np.array([4000, 3000])},
    **{"level_dim": (4000, 3000), "name": "s", "save_path": "patches"},
}
TRIDENT_SCALE = {
    **{"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20, "overlap": 0, "name": "s"},
    **{"savetodir": "x", "level0_width": 8000, "level0_height": 6000},
}


def write_growing(path: Path, arrays: dict[str, np.ndarray], rows: int, attributes: dict | None = None) -> None:
    """HDF5 as both tools write it: chunked, resizable, in several appends; `attributes` on `coords`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            shape = values.shape[1:]
            dataset = file.create_dataset(name, (0, *shape), values.dtype, maxshape=(None, *shape), chunks=(rows, *shape))
            for start in range(0, len(values), 4):
                part = values[start : start + 4]
                dataset.resize(len(dataset) + len(part), axis=0)
                dataset[-len(part) :] = part
        for key, value in (attributes or {}).items():
            file["coords"].attrs[key] = value


def clam(root: Path, *slides: str, features: np.ndarray = FEATURES, coords: np.ndarray = COORDS) -> Path:
    for slide in slides:
        write_growing(root / "patches" / f"{slide}.h5", {"coords": coords.astype(np.int64)}, 32, CLAM_SCALE)
        write_growing(root / "h5_files" / f"{slide}.h5", {"features": features, "coords": coords.astype(np.int32)}, 32)
        (root / "pt_files").mkdir(exist_ok=True)
        torch.save(torch.from_numpy(features), root / "pt_files" / f"{slide}.pt")
    return root


def trident(root: Path, *slides: str, encoder: str = "uni_v1") -> Path:
    folder = root / "20x_256px_0px_overlap"
    for slide in slides:
        write_growing(folder / "patches" / f"{slide}_patches.h5", {"coords": COORDS}, 1, TRIDENT_SCALE)
        path = folder / f"features_{encoder}" / f"{slide}.h5"
        write_growing(path, {"features": FEATURES, "coords": COORDS}, 1, TRIDENT_SCALE)
        with h5py.File(path, "a") as file:
            file["features"].attrs.update({"name": slide, "savetodir": "x", "encoder": encoder})
    return root


def convert(slides: pd.DataFrame, out: Path, **options: object) -> pd.DataFrame:
    import_chunk(slides, out, out / "chunk0.tsv", "uni", **options)
    return read_table(out / "chunk0.tsv").set_index("slide_id")


def listed(*paths: Path) -> pd.DataFrame:
    return pd.DataFrame({"slide_id": [p.stem for p in paths], "patient_id": [p.stem for p in paths], "path": map(str, paths)})


def test_clams_files_become_ours(tmp_path):
    slides = list_foreign(clam(tmp_path / "clam", "P1-a", "P2-a"), patient_regex="^([^-]+)")
    assert slides[["slide_id", "patient_id"]].to_numpy().tolist() == [["P1-a", "P1"], ["P2-a", "P2"]]
    assert slides["path"].tolist() == [str(tmp_path / "clam/h5_files" / f"{s}.h5") for s in ("P1-a", "P2-a")]
    manifest = convert(slides, tmp_path / "out")
    assert manifest.reset_index().to_dict("records")[0] == {
        **{"slide_id": "P1-a", "status": "ok", "reason": np.nan, "remedy": np.nan},
        **{"patches": "6", "unreadable": "0", "width": "4", "checksum": sealed_checksum(tmp_path / "out/P1-a.h5")},
    }
    found = read_features(tmp_path / "out/P1-a.h5")
    assert np.array_equal(found.features, FEATURES.astype(np.float16))
    assert np.array_equal(found.coords, COORDS)
    facts = dict(found.attributes)
    assert facts["source"] == "P1-a.h5"
    assert (facts["source_format"], facts["encoder"], facts["unreadable"]) == ("clam", "uni", 0)
    assert (facts["patch_size"], facts["patch_size_level0"]) == (256, 512)  # 256 px of level 1, where a pixel is two of level 0
    with h5py.File(tmp_path / "out/P1-a.h5") as file:
        assert file["features"].chunks is None


def test_tridents_files_become_ours(tmp_path):
    slides = list_foreign(trident(tmp_path / "job", "TCGA-AA.x", "TCGA-BB.x"), patient_regex="^([^.]+)")
    assert slides["patient_id"].tolist() == ["TCGA-AA", "TCGA-BB"]
    assert set(convert(slides, tmp_path / "out")["status"]) == {"ok"}
    found = read_features(tmp_path / "out/TCGA-AA.x.h5")
    assert np.array_equal(found.features, FEATURES.astype(np.float16))
    assert np.array_equal(found.coords, COORDS)
    wanted = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    assert {key: found.attributes[key] for key in wanted} == wanted
    assert found.attributes["source_format"] == "trident"
    assert "mpp" not in found.attributes


def test_training_reads_the_imported_features(tmp_path):
    convert(list_foreign(clam(tmp_path / "clam", "a", "b")), tmp_path / "out")
    store = BagStore.open({"p": [tmp_path / "out/a.h5", tmp_path / "out/b.h5"]})
    assert np.array_equal(store.bag("p"), np.concatenate([FEATURES, FEATURES]).astype(np.float16).astype(np.float32))


def test_a_leading_axis_of_one_is_taken_off(tmp_path):
    path = tmp_path / "in" / "s.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = FEATURES[None], COORDS[None]
    torch.save(torch.from_numpy(FEATURES[None]), tmp_path / "in/t.pt")
    assert set(convert(listed(path, tmp_path / "in/t.pt"), tmp_path / "out")["status"]) == {"ok"}
    assert np.array_equal(read_features(tmp_path / "out/s.h5").coords, COORDS)
    for slide in "st":
        assert np.array_equal(read_features(tmp_path / "out" / f"{slide}.h5").features, FEATURES.astype(np.float16))


def test_a_tensor_takes_its_coordinates_from_the_file_beside_it(tmp_path):
    root = clam(tmp_path / "clam", "same", "other", "alone")
    write_growing(root / "h5_files/other.h5", {"features": FEATURES[:5], "coords": COORDS[:5]}, 32)
    for name in ("patches", "h5_files"):
        (root / name / "alone.h5").unlink()
    (root / "patches/other.h5").write_bytes(b"no HDF5")
    manifest = convert(list_foreign(root / "pt_files"), tmp_path / "out")
    assert manifest["patches"].to_dict() == {"same": "6", "other": "6", "alone": "6"}
    same, other, alone = (read_features(tmp_path / "out" / f"{s}.h5") for s in ("same", "other", "alone"))
    assert np.array_equal(same.coords, COORDS)
    assert same.attributes["patch_size_level0"] == 512
    assert other.coords is None
    assert alone.coords is None
    assert np.array_equal(alone.features, FEATURES.astype(np.float16))


@pytest.mark.parametrize(
    "content",
    [
        FEATURES,  # TRIDENT puts arrays into its .pt files
        torch.from_numpy(FEATURES),
        torch.from_numpy(FEATURES).requires_grad_(),
        torch.from_numpy(FEATURES).half(),
        torch.from_numpy(FEATURES).bfloat16(),
        torch.from_numpy(FEATURES).double().T.contiguous().T,
        {"features": torch.from_numpy(FEATURES), "coords": torch.from_numpy(COORDS)},
    ],
    ids=["array", "float32", "parameter", "float16", "bfloat16", "transposed", "mapping"],
)
def test_every_kind_of_tensor_is_read(tmp_path, content):
    torch.save(content, tmp_path / "s.pt")
    assert convert(listed(tmp_path / "s.pt"), tmp_path / "out").at["s", "status"] == "ok"
    found = read_features(tmp_path / "out/s.h5")
    np.testing.assert_allclose(found.features, FEATURES, rtol=1e-2)
    assert (found.coords is not None) == isinstance(content, dict)


class Trap:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.victim),)


def test_a_pickle_of_something_else_is_never_executed(tmp_path):
    torch.save(Trap(tmp_path / "harm"), tmp_path / "trap.pt")
    with open(tmp_path / "plain.pt", "wb") as handle:
        pickle.dump(Trap(tmp_path / "harm"), handle)
    torch.save(torch.from_numpy(FEATURES), tmp_path / "good.pt")
    manifest = convert(listed(*(tmp_path / f"{s}.pt" for s in ("trap", "plain", "good"))), tmp_path / "out")
    assert manifest["status"].to_dict() == {"trap": "failed", "plain": "failed", "good": "ok"}
    what = "is a pickle of something other than a tensor (posix.mkdir) and was not loaded."
    assert manifest.at["trap", "reason"] == f"{tmp_path / 'trap.pt'}: {what}"
    assert manifest.at["plain", "reason"].startswith(f"{tmp_path / 'plain.pt'}: is ")
    assert manifest.at["plain", "reason"].endswith(" and was not loaded.")
    assert manifest.at["trap", "remedy"] == REMEDY
    assert not (tmp_path / "harm").exists()


def spoiled(values: np.ndarray, row: int, by: float) -> np.ndarray:
    values = values.copy()
    values[row, 1] = by
    return values


CONTENTS = {
    "nan": {"features": spoiled(FEATURES, 4, np.nan), "coords": COORDS},
    "inf": {"features": spoiled(FEATURES, 0, np.inf), "coords": COORDS},
    "too large": {"features": spoiled(FEATURES, 2, 1e5), "coords": COORDS},
    "vector": {"features": FEATURES[0], "coords": COORDS},
    "no patch": {"features": FEATURES[:0], "coords": COORDS[:0]},
    "rows": {"features": FEATURES, "coords": COORDS[:4]},
    "coords only": {"coords": COORDS},
    "text": {"features": np.array([[b"a", b"b"]] * 6), "coords": COORDS},
}


def spoil(path: Path, fault: str) -> None:
    whole = path.read_bytes()
    with h5py.File(path, "w") as file:
        for name, values in CONTENTS.get(fault, {}).items():
            file[name] = values
        if fault == "group":
            file.create_group("features")
    if fault in ("cut", "empty"):
        path.write_bytes(whole[:-40] if fault == "cut" else b"")


FAULTS = {
    "nan": "row 4: 1 of 6 patches have a feature that is not finite as float32.",
    "inf": "row 0: 1 of 6 patches have a feature that is not finite as float32.",
    "too large": "row 2: 1 of 6 patches have a feature that is not finite as float16.",
    "vector": "dataset '/features' has another shape; found '[4]', expected [N, d].",
    "no patch": "has no patch; found '[0, 4]', expected [N, d].",
    "rows": "features and coordinates do not match; found '6 rows of features, 4 of coordinates', expected as many.",
    "coords only": "has no features; expected a dataset 'features' [N, d].",
    "text": "cannot be read (TypeError: ",
    "group": "has no features; expected a dataset 'features' [N, d].",
    "cut": "cannot be read as HDF5 (",
    "empty": "cannot be read as HDF5 (",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_fails_alone_and_says_why(tmp_path, fault):
    root = clam(tmp_path / "clam", "a", "b")
    spoil(root / "h5_files/a.h5", fault)
    (root / "pt_files/a.pt").unlink()
    manifest = convert(list_foreign(root), tmp_path / "out")
    assert manifest["status"].to_dict() == {"a": "failed", "b": "ok"}
    place, _, what = manifest.at["a", "reason"].partition(str(root / "h5_files/a.h5"))
    assert place == ""
    assert what.lstrip(":, ").startswith(FAULTS[fault])
    assert manifest.at["a", "remedy"] == REMEDY
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.h5", "chunk0.tsv"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch.zeros(4), "the tensor has another shape; found '[4]', expected [N, d]."),
        (torch.zeros(2, 3, 4), "the tensor has another shape; found '[2, 3, 4]', expected [N, d]."),
        (torch.zeros(0, 4), "has no patch; found '[0, 4]', expected [N, d]."),
        (torch.full((3, 4), torch.nan), "row 0: 3 of 3 patches have a feature that is not finite as float16."),
        ({"state": torch.zeros(3)}, "has no features; found 'state', expected a tensor [N, d]."),
        ([torch.zeros(3, 4)], "holds no tensor; found 'list', expected a tensor [N, d]."),
        ("text", "holds no tensor; found 'str', expected a tensor [N, d]."),
    ],
)
def test_a_tensor_file_that_cannot_be_used_says_why(tmp_path, content, reason):
    torch.save(content, tmp_path / "s.pt")
    found = convert(listed(tmp_path / "s.pt"), tmp_path / "out").loc["s"]
    assert found["reason"].removeprefix(str(tmp_path / "s.pt")).lstrip(":, ") == reason


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1), length=st.integers(1, 200), cut=st.booleans(), kind=st.sampled_from(["h5", "pt"]))
def test_damage_anywhere_never_stops_the_chunk(tmp_path, monkeypatch, where, length, cut, kind):
    monkeypatch.setattr(foreign, "PATIENCE", 3.0)  # some damage makes HDF5 run for ever
    path = tmp_path / f"s.{kind}"
    if kind == "h5":
        write_growing(path, {"features": FEATURES, "coords": COORDS}, 1, TRIDENT_SCALE)
    else:
        torch.save(torch.from_numpy(FEATURES), path)
    whole = path.read_bytes()
    at = int(where * (len(whole) - 1))
    path.write_bytes(whole[:at] if cut else whole[:at] + bytes(255 - b for b in whole[at : at + length]) + whole[at + length :])
    manifest = convert(listed(path), tmp_path / "out")
    assert manifest.at["s", "status"] in ("ok", "failed")
    if manifest.at["s", "status"] == "failed":
        assert str(path) in manifest.at["s", "reason"] or "nothing was heard of it" in manifest.at["s", "reason"]


def test_slides_of_another_width_fail_however_they_are_ordered(tmp_path):
    root = clam(tmp_path / "clam", "b", "c")
    clam(root, "a", features=FEATURES[:, :3])
    manifest = convert(list_foreign(root), tmp_path / "out")
    assert manifest["status"].to_dict() == {"a": "failed", "b": "ok", "c": "ok"}
    assert manifest.at["a", "reason"] == "slide a: the features have another width than those of most slides; found '3', expected 4."
    assert manifest.at["a", "remedy"] == f"Were they made with another encoder? {REMEDY}"
    assert manifest["width"].fillna("").tolist() == ["", "4", "4"]
    manifest = convert(list_foreign(root), tmp_path / "out", width=3)
    assert manifest["status"].to_dict() == {"a": "ok", "b": "failed", "c": "failed"}
    assert manifest.at["b", "reason"] == "slide b: the features have another width; found '4', expected 3."


def test_a_second_run_converts_only_what_changed(tmp_path):
    root, out = clam(tmp_path / "clam", "a", "b"), tmp_path / "out"
    convert(list_foreign(root), out)
    before = {s: (out / f"{s}.h5").stat().st_mtime_ns for s in "ab"}
    clam(root, "a", features=FEATURES * 2)
    manifest = convert(list_foreign(root), out)
    assert set(manifest["patches"]) == {"6"}
    assert (out / "b.h5").stat().st_mtime_ns == before["b"]
    assert np.array_equal(read_features(out / "a.h5").features, (FEATURES * 2).astype(np.float16))
    (root / "patches/b.h5").unlink()  # its coordinates' scale is no longer told
    convert(list_foreign(root), out)
    assert "patch_size_level0" not in read_features(out / "b.h5").attributes


def test_the_slide_table_decides_which_slides_there_are(tmp_path):
    root = clam(tmp_path / "clam", "a", "b", "c")
    table = tmp_path / "slides.tsv"
    table.write_text("slide_id\tpatient_id\tfile\na\tP1\ta.svs\nc\tP1\tc.svs\nlost\tP2\tlost.svs\n")
    slides = list_foreign(root, table=table)
    assert slides[["slide_id", "patient_id"]].to_numpy().tolist() == [["a", "P1"], ["c", "P1"], ["lost", "P2"]]
    manifest = convert(slides, tmp_path / "out")
    assert manifest["status"].to_dict() == {"a": "ok", "c": "ok", "lost": "failed"}
    assert manifest.at["lost", "reason"] == f"{root / 'h5_files/lost.h5'}, slide lost: no such file of features."


def test_slides_with_a_tensor_only_join_those_with_hdf5(tmp_path):
    root = clam(tmp_path / "clam", "a", "b")
    (root / "h5_files/b.h5").unlink()
    assert [Path(p).name for p in list_foreign(root)["path"]] == ["a.h5", "b.pt"]


def test_the_folder_of_a_trident_job_may_be_named_at_any_depth(tmp_path):
    job = trident(tmp_path / "job", "a")
    folder = job / "20x_256px_0px_overlap"
    expected = [str(folder / "features_uni_v1/a.h5")]
    for at in (job, folder, folder / "features_uni_v1"):
        assert list_foreign(at)["path"].tolist() == expected
    trident(job, "a", encoder="conch_v15")
    assert list_foreign(job, encoder="uni_v1")["path"].tolist() == expected
    with pytest.raises(InputError, match="not one folder of features; found '20x_256px_0px_overlap/features_conch_v15, 20x_256px"):
        list_foreign(job)


def test_slide_vectors_of_trident_are_not_taken_for_patches(tmp_path):
    path = tmp_path / "slide_features_titan" / "a.h5"
    write_growing(path, {"features": FEATURES[0], "coords": COORDS}, 1)
    found = convert(list_foreign(path.parent), tmp_path / "out").loc["a"]
    assert found["reason"] == f"{path}: dataset '/features' has another shape; found '[4]', expected [N, d]."


@pytest.mark.parametrize(
    ("format", "made", "message"),
    [
        ("clam", [], r"no features found; expected .*h5_files/\*\.h5 or .*pt_files/\*\.pt\. Check `slides\.features\.folder`"),
        ("h5", ["a.pt"], r"no features found; expected .*\*\.h5\."),
        ("tridnet", [], r"no such format of features; found 'tridnet', expected auto, clam, trident, h5, pt\."),
        ("trident", ["a.h5"], r"not one folder of features; expected one folder features_<encoder>\."),
    ],
)
def test_a_folder_without_features_is_named(tmp_path, format, made, message):
    for name in made:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        list_foreign(tmp_path, format)
    with pytest.raises(InputError, match="no such folder of features"):
        list_foreign(tmp_path / "none")
