"""The demo with the follow-up shuffled against everything: nothing is found."""

import shutil

import pandas as pd
import pytest

from pipeline import study as studies
from pipeline.evaluation.model import evaluate_model
from tests.support.demo_study import raw_of, study_of, trained
from tests.workflow.conftest import run

pytestmark = pytest.mark.slow


def test_the_null_cohort_shows_nothing(demo, tmp_path, monkeypatch):
    """The same slides and tables: slides are not made again, every interval of every model holds 0.5."""
    null, study = tmp_path / "null", study_of()
    shutil.copytree(demo, null)
    kept = [*(null / "results/demo").glob("data/slides/*.svs"), *(null / "results/demo").glob("slides/**/*.h5")]
    before = [file.stat().st_mtime_ns for file in kept]
    cohort = null / "results/demo/cohort"
    made = ("results/demo/cohort/splits.tsv", "results/demo/slides/manifest-stain_texture.tsv")
    run(null, "--config", "demo={null: true}", "--", *made)
    assert [file.stat().st_mtime_ns for file in kept] == before
    assert len(kept) > 200
    assert (cohort / "patients.tsv").read_bytes() != (demo / "results/demo/cohort/patients.tsv").read_bytes()
    monkeypatch.chdir(null)
    for model in studies.all_models(study):
        raw = raw_of(null, study, model)
        files = {"patients": cohort / "patients.tsv", "splits": cohort / "splits.tsv", "calibration": tmp_path / "c.tsv"}
        files |= {"folds": [trained(raw, study, model, fold, tmp_path) for fold in range(studies.fold_count(study))]}
        evaluate_model(cohort="demo", model=model, endpoint="os", output=tmp_path / "row.tsv", bootstrap=1000, seed=study["seed"], **files)
        row = pd.read_csv(tmp_path / "row.tsv", sep="\t").iloc[0]
        assert pd.isna(row["failed_folds"]), model
        for kind in ("c_index", "c_index_pooled"):
            assert row[f"{kind}_ci_low"] < 0.5 < row[f"{kind}_ci_high"], (model, kind)
