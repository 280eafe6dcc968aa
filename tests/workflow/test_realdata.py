"""Real patients and a real slide; skipped, saying why, where they are absent."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.summary import read_summary
from pipeline.slides.features import read_features
from tests.workflow.conftest import run

pytestmark = [pytest.mark.slow, pytest.mark.realdata]


def test_blca_lies_in_the_range_of_the_reference_runs(tmp_path, realdata):
    """SNN on the published folds: last epoch [.55, .61], best epoch [.59, .64]; and the summary says what was not run."""
    run(tmp_path, "--config", f"data_dir={realdata}", "--", "results/blca/summary.tsv")
    table = read_summary(tmp_path / "results/blca/summary.tsv").set_index("model")
    assert table.loc["snn", ["patients", "events", "folds"]].tolist() == [373, 169, 5]
    assert 0.55 <= table.loc["snn", "c_index"] <= 0.61
    assert 0.59 <= table.loc["snn", "c_index_best_epoch"] <= 0.64
    for model in ("abmil", "mcat", "survq"):
        assert "needs slides" in table.loc[model, "note"]
        assert np.isnan(table.loc[model, "c_index"])


def test_the_real_frozen_section_goes_through_tissue_patches_and_features(tmp_path, realdata):
    """It is listed beside a broken file, which fails alone."""
    run(tmp_path, "--config", f"data_dir={realdata}", "--", "results/tcga_frozen/slides/manifest-stain_texture.tsv")
    table = pd.read_csv(tmp_path / "results/tcga_frozen/slides/manifest-stain_texture.tsv", sep="\t").set_index("slide_id")
    real = table.loc["tcga-cr-7395-01a-01-ts1"]
    assert real["status"] == "ok"
    assert real["mpp_source"] == "cohort"
    assert 2.0 < real["tissue_mm2"] < 3.0
    assert 120 <= real["patches"] <= 190
    assert read_features(tmp_path / real["features"]).features.shape == (real["patches"], 82)
    assert table.loc["broken", "status"] == "failed"
