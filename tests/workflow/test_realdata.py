"""Real patients and a real slide; skipped, saying why, where they are absent."""

import pandas as pd
import pytest

from pipeline.slides.features import read_features
from tests.workflow.conftest import run

pytestmark = pytest.mark.realdata


def evaluated(folder, realdata, cohort: str, model: str, *settings: str) -> pd.Series:
    """The model's row of the summary, after its folds were trained by the workflow."""
    target = f"results/{cohort}/{model}/evaluation.tsv"
    run(folder, "--config", f"data_dir={realdata}", *settings, "--", target)
    return pd.read_csv(folder / target, sep="\t").iloc[0]


@pytest.mark.slow
def test_snn_on_blca_lies_in_the_range_of_the_reference_runs(tmp_path, realdata):
    """Published folds: last epoch [.55, .61], best epoch within one published standard deviation; nothing on permuted labels."""
    row = evaluated(tmp_path, realdata, "blca", "snn", "controls={shuffled_labels: 1}")
    assert row[["patients", "events", "folds"]].tolist() == [373, 169, 5]
    assert 0.55 <= row["c_index"] <= 0.61
    assert abs(row["c_index_best_epoch"] - 0.618) <= 0.022
    assert row["c_index_ci_low"] < row["c_index"] < row["c_index_ci_high"]
    assert 0.44 <= row["c_index_shuffled"] <= 0.58
    assert row["c_index_shuffled"] < row["noise_floor"] < row["c_index_best_epoch"]


@pytest.mark.long
def test_ridge_cox_on_the_vectors_of_gpdbn_equals_the_reference_run(tmp_path, realdata):
    """Gene, pathology and copy number together, five released folds: .6752."""
    row = evaluated(tmp_path, realdata, "brca_gpdbn", "coxnet+ridge")
    assert row[["patients", "events", "folds"]].tolist() == [1015, 146, 5]
    assert row["c_index"] == pytest.approx(0.6752, abs=0.001)


@pytest.mark.long
def test_logistic_regression_on_hancock_reaches_its_calibration(tmp_path, realdata):
    """Five tables, death within three years, patients with public image features, ten folds: AUC .78 ± .02."""
    row = evaluated(tmp_path, realdata, "hancock_3y", "logistic")
    assert row[["patients", "events", "folds"]].tolist() == [430, 84, 10]
    assert row["auc"] == pytest.approx(0.78, abs=0.02)
    assert row["majority"] == pytest.approx(0.805, abs=0.001)
    assert row["majority"] < row["accuracy"] < row["majority"] + 0.05


@pytest.mark.slow
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
