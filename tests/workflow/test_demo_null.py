"""The demo with the follow-up shuffled against everything: nothing is found."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipeline import study as studies
from pipeline.evaluation.model import evaluate_model
from tests.support.demo_study import raw_of, study_of, trained
from tests.workflow.conftest import run, shared

pytestmark = pytest.mark.slow
MADE = ("results/demo/cohort/splits.tsv", "results/demo/slides/manifest-stain_texture.tsv")


def slides_and_features(folder: Path) -> list[Path]:
    return sorted([*(folder / "results/demo").glob("data/slides/*.svs"), *(folder / "results/demo").glob("slides/**/*.h5")])


@pytest.fixture(scope="session")
def null(demo, tmp_path_factory, worker_id) -> Path:
    """A copy of the demo with another follow-up, and its splits; shared by all processes of the tests."""
    with shared(tmp_path_factory, worker_id, "null") as folder:
        if not (folder / "made").exists():
            shutil.copytree(demo, folder, dirs_exist_ok=True)
            run(folder, "--config", "demo={null: true}", "--", *MADE)
            (folder / "made").touch()
    return folder


def test_slides_and_features_are_not_made_again(demo, null):
    kept = slides_and_features(null)
    assert len(kept) > 200
    assert [file.stat().st_mtime_ns for file in kept] == [file.stat().st_mtime_ns for file in slides_and_features(demo)]
    patients = "results/demo/cohort/patients.tsv"
    assert (null / patients).read_bytes() != (demo / patients).read_bytes()


@pytest.mark.parametrize("model", studies.all_models(study_of()))
def test_the_null_cohort_shows_nothing(null, tmp_path, monkeypatch, model):
    """The whole protocol on five folds: both intervals hold 0.5."""
    monkeypatch.chdir(null)
    study, cohort = study_of(), null / "results/demo/cohort"
    raw = raw_of(null, study, model)
    files = {"patients": cohort / "patients.tsv", "splits": cohort / "splits.tsv", "calibration": tmp_path / "c.tsv"}
    files |= {"folds": [trained(raw, study, model, fold, tmp_path) for fold in range(studies.fold_count(study))]}
    evaluate_model(cohort="demo", model=model, endpoint="os", output=tmp_path / "row.tsv", bootstrap=1000, seed=study["seed"], **files)
    row = pd.read_csv(tmp_path / "row.tsv", sep="\t").iloc[0]
    assert pd.isna(row["failed_folds"])
    for kind in ("c_index", "c_index_pooled"):
        assert row[f"{kind}_ci_low"] < 0.5 < row[f"{kind}_ci_high"], kind
