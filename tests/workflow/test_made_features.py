"""A cohort that starts from features made elsewhere: no slide is opened, and what cannot be used is listed."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from pipeline.slides.features import read_features
from pipeline.tables import read_table
from tests.workflow.conftest import ROOT, run

MANIFEST = "results/made/slides/manifest-conch.tsv"


@pytest.fixture
def clam(tmp_path, monkeypatch) -> Path:
    """A folder as CLAM leaves it: three slides with coordinates, one as a tensor alone, one cut off; and a cohort that names it."""
    folder, rng = tmp_path / "clam", np.random.default_rng(0)
    for sub in ("h5_files", "pt_files"):
        (folder / sub).mkdir(parents=True)
    for name in ("P1-A", "P1-B", "P2-A"):
        with h5py.File(folder / "h5_files" / f"{name}.h5", "w") as file:
            file["features"] = rng.normal(size=(6, 8)).astype(np.float32)
            file["coords"] = rng.integers(0, 9000, (6, 2))
    torch.save(torch.ones(4, 8), folder / "pt_files" / "P3-A.pt")
    (folder / "h5_files" / "P4-A.h5").write_bytes((folder / "h5_files" / "P1-A.h5").read_bytes()[:900])
    config = tmp_path / "config"
    shutil.copytree(ROOT / "config", config)
    slides = {"features": {"folder": str(folder)}, "encoder": "conch", "patient_id_pattern": "^([^-]+)", "chunks": 2}
    (config / "cohorts" / "made.yaml").write_text(yaml.safe_dump({"title": "Made", "models": ["abmil"], "slides": slides}))
    monkeypatch.setenv("SLIDE2SURV_CONFIG", str(config))
    return folder


def test_features_of_clam_become_the_cohorts_own(clam, tmp_path):
    text = run(tmp_path, "--", MANIFEST)
    assert "rule tissue" not in text
    assert "rule patches" not in text
    manifest = read_table(tmp_path / MANIFEST).set_index("slide_id")
    assert manifest["status"].to_dict() == {"P1-A": "ok", "P1-B": "ok", "P2-A": "ok", "P3-A": "ok", "P4-A": "failed"}
    assert manifest["patient_id"].tolist() == ["P1", "P1", "P2", "P3", "P4"]
    assert (manifest.loc["P4-A", "stage"], "P4-A.h5: cannot be read" in manifest.loc["P4-A", "reason"]) == ("import", True)
    with h5py.File(clam / "h5_files" / "P2-A.h5") as file:
        found = read_features(tmp_path / manifest.loc["P2-A", "features"])
        assert np.array_equal(found.features, file["features"][()].astype(np.float16))
        assert np.array_equal(found.coords, file["coords"][()])
    assert "Nothing to be done" in run(tmp_path, "--", MANIFEST)


def test_a_new_file_of_features_is_noticed(clam, tmp_path):
    run(tmp_path, "--", MANIFEST)
    shutil.copy(clam / "h5_files" / "P1-A.h5", clam / "h5_files" / "P5-A.h5")
    run(tmp_path, "--", MANIFEST)
    assert "P5-A" in read_table(tmp_path / MANIFEST)["slide_id"].tolist()
