"""Real patients and a real slide; skipped, saying why, where they are absent."""

import numpy as np
import pandas as pd
import pytest

from pipeline import study as studies
from pipeline.config import read_yaml, validate
from pipeline.evaluation.summary import read_summary
from pipeline.slides.features import read_features
from pipeline.training import fold
from tests.workflow.conftest import ROOT, run

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


def test_permuted_training_labels_predict_nothing_on_blca(tmp_path, realdata, monkeypatch):
    """The reference runs print .51 for the last epoch and .54 for the best one when there is nothing to learn; last in [.44, .58]."""
    results = tmp_path / "results/blca"
    run(tmp_path, "--config", f"data_dir={realdata}", "--", *(f"results/blca/{f}" for f in ("cohort/splits.tsv", "omics/groups.tsv")))
    honest = fold.read_sides

    def permuted(files, number):
        patients, train, test = honest(files, number)
        order = np.random.default_rng(number).permutation(len(train))
        return patients, train.assign(**{c: train[c].to_numpy()[order] for c in ("time", "event")}), test

    monkeypatch.setattr(fold, "read_sides", permuted)
    settings = validate(read_yaml(ROOT / "config/config.yaml"), "config", "config.yaml")
    study = studies.fold_settings(studies.load_study(settings, "blca"), "snn")
    files = {"patients": results / "cohort/patients.tsv", "splits": results / "cohort/splits.tsv"}
    files |= {"matrix": results / "omics/omics.h5", "groups": results / "omics/groups.tsv", "manifest": None}
    for k in range(5):
        folder = results / f"snn/fold{k}"
        folder.mkdir(parents=True)
        names = {"predictions": "predictions.tsv", "history": "history.tsv", "weights": "model.safetensors", "model": "model.yaml"}
        outputs = {key: folder / name for key, name in names.items()}
        fold.train_fold(settings=study, fold=k, files=files, outputs=outputs, code="test")
    histories = [pd.read_csv(results / f"snn/fold{k}/history.tsv", sep="\t")["test_c_index"] for k in range(5)]
    last, best = np.mean([h.iloc[-1] for h in histories]), np.mean([h.max() for h in histories])
    print(f"permuted labels: last {last:.3f}, best {best:.3f}")
    assert 0.44 <= last <= 0.58
    assert best > last
