"""The plan counts a run's jobs from the study alone: as many of each rule as Snakemake's own dry run."""

from pathlib import Path

import pytest

from pipeline import study as studies
from pipeline.config import ROOT as CONFIG
from pipeline.config import read_yaml, validate
from pipeline.plan.jobs import count_jobs
from tests.workflow.conftest import run
from tests.workflow.large import CHUNKS, MODELS, lay_out
from tests.workflow.test_dag import jobs


def of_snakemake(folder: Path, cohort: str, *words: str) -> dict[str, int]:
    targets = (f"results/{cohort}/summary.tsv", f"results/{cohort}/report.html")
    found = jobs(run(folder, "-n", "--quiet", "rules", *words, "--", *targets))
    assert found.pop("total") == sum(found.values())
    return found


def of_plan(cohort: str, folder: Path | None = None, **settings: object) -> dict[str, int]:
    config = validate({**read_yaml(CONFIG / "config.yaml"), **settings}, "config", "config.yaml")
    return count_jobs(studies.load_study(config, cohort, settings, folder))


def test_the_demo(tmp_path):
    assert of_plan("demo") == of_snakemake(tmp_path, "demo")


def test_the_demo_with_controls_and_without_scenarios(tmp_path):
    settings = {"controls": {"shuffled_labels": 2}, "missing": {"scenarios": []}, "models": ["snn", "mcat"]}
    words = ("controls={shuffled_labels: 2}", "missing={scenarios: []}", "models=[snn,mcat]")
    assert of_plan("demo", **settings) == of_snakemake(tmp_path, "demo", "--config", *words)


@pytest.mark.slow
def test_ten_thousand_slides_and_forty_models(tmp_path, monkeypatch):
    config = lay_out(tmp_path)
    monkeypatch.setenv("SLIDE2SURV_CONFIG", str(config))
    found = of_plan("large", config / "cohorts", data_dir=str(tmp_path))
    assert (found["features"], found["evaluate"], found["train_fold"]) == (CHUNKS, MODELS, MODELS)
    assert found == of_snakemake(tmp_path, "large", "--config", f"data_dir={tmp_path}")
