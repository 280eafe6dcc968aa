"""Every variant of the five methods on the demo's files: those that train otherwise are trained, of the others a step is taken."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import study as studies
from pipeline.config import read_yaml
from pipeline.models import load_model_config, model_variants
from pipeline.training.fold import Fold
from pipeline.training.loop import Trainer
from tests.support.demo_study import raw_of, study_of, trained
from tests.workflow.conftest import run

METHODS = ["adamhf", "camlif", "haf", "survq", "hdmoe"]
WIDER = ("hdmoe+token_128", "hdmoe+token_256", "hdmoe+code")  # whose tokens are longer than the demo's 64 numbers
FEW = 4  # patients of the one step


@pytest.fixture
def third(demo, tmp_path, monkeypatch) -> Path:
    """Splits of a third of the patients, in the folder of the demo."""
    monkeypatch.chdir(demo)
    splits = pd.read_csv("results/demo/cohort/splits.tsv", sep="\t").query("fold == 0").iloc[::3]
    splits.to_csv(tmp_path / "splits.tsv", sep="\t", index=False)
    return tmp_path / "splits.tsv"


def study_with(models: list[str]) -> tuple[dict, list[str]]:
    """The demo's study with these models, one epoch each, and those of them that can run; who needs what the demo lacks says so."""
    study = study_of(models=models, training={"epochs": 1}, options={model: {"width": 256} for model in WIDER})
    lacking = studies.not_run(study)
    assert all("tma" in reason or "mri" in reason for reason in lacking.values())
    return study, [model for model in models if model not in lacking]


def own_training(name: str) -> list[str]:
    """The variants that train otherwise or read something else than their method, and the first of the others."""
    usual, found, others = load_model_config(name), [], []
    for variant in model_variants(name):
        settings = load_model_config(name, variant)
        same = settings["training"] == usual["training"] and settings["modalities"] == usual["modalities"]
        (others if same else found).append(f"{name}+{variant}")
    return [*found, *others[:1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_variant_that_trains_otherwise_trains_an_epoch_of_a_fold(demo, third, tmp_path, name):
    study, models = study_with(own_training(name))
    for model in models:
        fold = trained(raw_of(demo, study, model, third), study, model, 0, tmp_path)
        predictions = pd.read_csv(fold / "predictions.tsv", sep="\t")
        assert read_yaml(fold / "model.yaml")["failure"] is None, model
        assert len(predictions) >= 3, model
        assert np.isfinite(predictions["risk"]).all(), model


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_other_variant_takes_a_step_on_real_files(demo, third, tmp_path, name):
    """Built from its YAML for what the demo offers, one step on four patients, two of them predicted."""
    others = [f"{name}+{variant}" for variant in model_variants(name) if f"{name}+{variant}" not in own_training(name)]
    study, models = study_with(others)
    raw = {needs: raw_of(demo, study, model, third) for model in models for needs in [tuple(studies.model_needs(study, model))]}
    for model in models:
        settings = studies.fold_settings(study, model)
        run_of = Fold(settings, 0, raw[tuple(settings["modalities"])], {"seed": 1})
        protocol = replace(run_of.protocol, epochs=1, selection="last")
        trainer = Trainer(run_of.model, run_of.offered.data, protocol, 1)
        labels = run_of.labels(run_of.train_rows.sort_values("event", ascending=False).head(FEW))
        weights = {key: value.clone() for key, value in run_of.model.state_dict().items()}
        (row, *_) = trainer.fit(labels, None, labels.take(np.arange(2)), tmp_path / "checkpoint.pt", model)
        assert math.isfinite(row["train_loss"]), model
        assert any((value != weights[key]).any() for key, value in run_of.model.state_dict().items()), model
        assert trainer.predict(labels.patients[:2]).isfinite().all(), model


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_every_variant_is_a_job_of_the_workflow(demo, tmp_path, name):
    """One epoch of two folds by Snakemake itself, on 24 patients."""
    _, models = study_with([f"{name}+{variant}" for variant in model_variants(name)])
    models = [model for model in models if model not in WIDER]  # the demo's presets do not fit them
    settings = (
        "demo={patients: 24}",
        f"models=[{','.join(models)}]",
        "splits={folds: 2}",
        "training={epochs: 1}",
        "missing={scenarios: []}",
    )
    run(tmp_path, "--config", *settings, "--", "results/demo/summary.tsv")
    table = pd.read_csv(tmp_path / "results/demo/summary.tsv", sep="\t").set_index("model")
    assert list(table.index[:-1]) == models
    assert table["failed_folds"].isna().all(), table["failed_folds"].dropna().to_dict()
