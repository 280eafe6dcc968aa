from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from shapely.geometry import box

from pipeline.errors import InputError
from pipeline.slides.__main__ import main
from pipeline.slides.contours import read_contours, write_contours
from pipeline.slides.exchange import Export, export_clam, export_trident
from pipeline.slides.features import read_features, write_features
from pipeline.tables import write_table

ENCODER = "stain_texture"


@pytest.fixture
def slides_dir(tmp_path: Path) -> Path:
    """results/<cohort>/slides, as docs/architecture.md lays it down, of two good slides and one that failed in the tissue stage."""
    out, rng = tmp_path / "slides", np.random.default_rng(3)
    slides = pd.DataFrame({"slide_id": ["s1", "s2", "lost"], "patient_id": ["p1", "p2", "p3"], "mpp": np.nan})
    write_table(slides.assign(path="/scans/" + slides["slide_id"] + ".svs"), out / "slides.tsv")
    outcome = slides[["slide_id"]].assign(status=["ok", "ok", "failed"], reason="", remedy="")
    write_table(outcome.assign(width=[3072, 3072, None], height=[2560, 2560, None]), out / "tissue/chunk0.tsv")
    write_table(outcome[:2], out / "features" / ENCODER / "chunk0.tsv")
    coords = np.stack(np.meshgrid(np.arange(4) * 256, np.arange(3) * 256), -1).reshape(-1, 2)
    scale = {"patch_size_level0": 256, "patch_size": 256, "target_mpp": 0.5, "mpp": 0.5, "mpp_source": "header"}
    for slide in ("s1", "s2"):
        write_contours(out / "tissue" / f"{slide}.geojson", [box(0, 0, 1024, 768)], {"settings": "x"})
        origin = {"encoder": ENCODER, "settings": "abc", "slide_fingerprint": slide}
        write_features(out / "features" / ENCODER / f"{slide}.h5", rng.normal(size=(12, 5)), coords, {**scale, **origin})
    return out


def times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.suffix != ".csv"}


def test_clam_reads_what_we_export(slides_dir, tmp_path):
    out = tmp_path / "clam"
    assert export_clam(slides_dir, ENCODER, out) == Export(written=2)
    ours = read_features(slides_dir / "features" / ENCODER / "s1.h5")

    bag = torch.load(out / "pt_files" / "s1.pt", weights_only=True)  # as CLAM's training reads it
    assert isinstance(bag, torch.Tensor)
    assert bag.dtype == torch.float32
    assert np.array_equal(bag.numpy(), ours.features.astype(np.float32))

    with h5py.File(out / "h5_files" / "s1.h5", "r") as file:  # as its evaluation reads it
        features, coords = file["features"][:], file["coords"][:]
    assert (features.dtype, coords.dtype) == (np.float32, np.int32)
    assert np.array_equal(features, bag.numpy())
    assert np.array_equal(coords, ours.coords)

    with h5py.File(out / "patches" / "s1.h5", "r") as file:  # as its feature extraction reads it
        dataset = file["coords"]
        assert np.array_equal(dataset[:], ours.coords)
        assert dataset.attrs["patch_level"] == 0
        assert dataset.attrs["patch_size"] == ours.attributes["patch_size_level0"] == 256
        assert tuple(dataset.attrs["downsample"]) == (1.0, 1.0)
        assert tuple(dataset.attrs["level_dim"]) == tuple(dataset.attrs["downsampled_level_dim"]) == (3072, 2560)
        assert dataset.attrs["name"] == "s1"
        assert dataset.attrs["save_path"] == str(out / "patches")

    processed = pd.read_csv(out / "process_list_autogen.csv")
    assert processed.to_dict("list") == {"slide_id": ["s1.svs", "s2.svs"], "process": [0, 0], "status": ["processed"] * 2}


def test_trident_reads_what_we_export(slides_dir, tmp_path):
    out = tmp_path / "job"
    assert export_trident(slides_dir, ENCODER, out, label="uni_v1") == Export(written=2)
    ours = read_features(slides_dir / "features" / ENCODER / "s2.h5")
    folder = out / "20x_256px_0px_overlap"

    with h5py.File(folder / "features_uni_v1" / "s2.h5", "r") as file:
        features, coords, scale = file["features"][:], file["coords"][:], dict(file["coords"].attrs)
        assert dict(file["features"].attrs) == {"name": "s2", "savetodir": str(folder / "features_uni_v1"), "encoder": "uni_v1"}
    assert (features.dtype, coords.dtype) == (np.float32, np.int64)
    assert np.array_equal(features, ours.features.astype(np.float32))
    assert np.array_equal(coords, ours.coords)
    assert scale == {
        **{"patch_size": 256, "patch_size_level0": 256, "level0_magnification": 20, "target_magnification": 20, "overlap": 0},
        **{"name": "s2", "savetodir": str(folder), "level0_width": 3072, "level0_height": 2560},
    }
    with h5py.File(folder / "patches" / "s2_patches.h5", "r") as file:
        assert np.array_equal(file["coords"][:], ours.coords)
        assert dict(file["coords"].attrs) == scale
    contours = out / "contours_geojson" / "s2.geojson"
    assert contours.read_bytes() == (slides_dir / "tissue" / "s2.geojson").read_bytes()
    assert len(read_contours(contours)[0]) == 1


@pytest.mark.parametrize("mpp", [0.2528, 0.2271, 0.25, 0.4942])
def test_tridents_patch_covers_the_very_same_region(mpp, slides_dir, tmp_path):
    path = slides_dir / "features" / ENCODER / "s1.h5"
    ours = read_features(path)
    side = round(256 * 0.5 / mpp)
    write_features(path, ours.features, ours.coords, {**ours.attributes, "mpp": mpp, "patch_size_level0": side, "step": 192})
    export_trident(slides_dir, ENCODER, tmp_path / "job")
    with h5py.File(tmp_path / "job/20x_256px_64px_overlap/patches/s1_patches.h5") as file:
        scale = file["coords"].attrs
        # how TRIDENT gets from magnifications to the pixels that it reads
        assert round(scale["patch_size"] * (10 / scale["target_magnification"]) / (10 / scale["level0_magnification"])) == side
        assert (scale["patch_size_level0"], scale["overlap"]) == (side, 64)


@pytest.mark.parametrize("export", [export_clam, export_trident])
def test_what_is_valid_is_kept_and_what_is_stale_or_gone_is_written_again(export, slides_dir, tmp_path):
    out = tmp_path / "out"
    export(slides_dir, ENCODER, out)
    before = times(out)
    assert export(slides_dir, ENCODER, out) == Export(kept=2)
    assert times(out) == before
    gone = next(p for p in sorted(out.rglob("*s2*")) if "patches" in str(p.parent))
    gone.unlink()
    assert export(slides_dir, ENCODER, out) == Export(written=1, kept=1)
    assert set(times(out)) == set(before)
    path = slides_dir / "features" / ENCODER / "s1.h5"
    ours = read_features(path)
    write_features(path, ours.features + 1, ours.coords, {**ours.attributes, "settings": "new"})
    assert export(slides_dir, ENCODER, out) == Export(written=1, kept=1)
    exported = next(p for p in sorted(out.rglob("s1.h5")) if "features" in p.parent.name or p.parent.name == "h5_files")
    assert np.array_equal(read_features(exported).features, read_features(path).features.astype(np.float32))


def test_an_export_that_was_killed_between_two_files_is_finished(slides_dir, tmp_path):
    export_clam(slides_dir, ENCODER, tmp_path)
    first = tmp_path / "h5_files" / "s1.h5"
    late = first.stat().st_mtime_ns + 10**9  # written anew, the tensor not yet
    os.utime(first, ns=(late, late))
    assert export_clam(slides_dir, ENCODER, tmp_path) == Export(written=1, kept=1)


@pytest.mark.parametrize("name", ["h5_files/s1.h5", "pt_files/s1.pt", "patches/s1.h5"])
def test_what_clam_made_itself_is_never_overwritten(name, slides_dir, tmp_path):
    path = tmp_path / name
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((2, 3))
    theirs = path.read_bytes()
    outcome = export_clam(slides_dir, ENCODER, tmp_path)
    assert (outcome.written, outcome.kept) == (1, 0)
    assert outcome.failed == {
        "s1": f"{path}, slide s1: was not written by this export. Give an empty folder: what another tool made is never overwritten."
    }
    assert path.read_bytes() == theirs


def test_a_broken_feature_file_fails_alone(slides_dir, tmp_path):
    path = slides_dir / "features" / ENCODER / "s1.h5"
    path.write_bytes(path.read_bytes()[:500])
    outcome = export_clam(slides_dir, ENCODER, tmp_path / "out")
    assert outcome.written == 1
    assert outcome.failed["s1"].startswith(f"{path}: cannot be read as HDF5")
    assert list(pd.read_csv(tmp_path / "out/process_list_autogen.csv")["slide_id"]) == ["s2.svs"]


def test_features_of_unknown_scale_are_not_exported(slides_dir, tmp_path):
    path = slides_dir / "features" / ENCODER / "s1.h5"
    ours = read_features(path)
    write_features(path, ours.features, ours.coords, {k: v for k, v in ours.attributes.items() if k != "mpp"})
    outcome = export_trident(slides_dir, ENCODER, tmp_path / "out")
    assert outcome.failed["s1"] == (
        f"{path}: the scale of the patches is not known; expected mpp. "
        "Features that were made elsewhere are exported by the tool that made them."
    )


def test_an_encoder_without_features_names_those_that_have_some(slides_dir, tmp_path):
    with pytest.raises(InputError, match=r"no features of this encoder; found 'stain_textur', expected one of stain_texture\."):
        export_clam(slides_dir, "stain_textur", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verb_says_how_many(slides_dir, tmp_path, capsys):
    def call(*words: str) -> int:
        return main(["export", *words, str(slides_dir), str(tmp_path / "out")])

    assert call("--to", "clam", "--encoder", ENCODER) == 0
    assert call("--to", "clam", "--encoder", ENCODER) == 0
    lines = capsys.readouterr().out.splitlines()
    out = tmp_path / "out"
    assert lines == [f"{out}: 2 slides written, 0 already there, 0 failed", f"{out}: 0 slides written, 2 already there, 0 failed"]
    (slides_dir / "features" / ENCODER / "s2.h5").unlink()
    assert call("--to", "trident", "--encoder", ENCODER) == 1
    said = capsys.readouterr()
    assert said.out == f"{out}: 1 slides written, 0 already there, 1 failed\n"
    assert "s2.h5: no such HDF5 file" in said.err
    assert call("--to", "trident", "--encoder", "resnet") == 1
    assert "no features of this encoder" in capsys.readouterr().err
