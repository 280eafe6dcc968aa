"""What would run, and what a wrong configuration is answered with: nothing is computed here."""

import re

import pytest

from tests.workflow.conftest import run


def jobs(text: str) -> dict[str, int]:
    """Rule → number of jobs, from Snakemake's table of jobs."""
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", text, flags=re.MULTILINE)}


def test_the_demo_is_chunks_folds_and_models(tmp_path):
    found = jobs(run(tmp_path, "-n", "--quiet", "rules", "--", "results/demo/report.html"))
    slides = {"demo_slides": 4, "tissue": 4, "patches": 4, "features": 4}
    models = {"train_fold": 45, "evaluate": 9, "predict_scenarios": 9}
    assert found.items() >= {**slides, **models, "summary": 1, "scenarios": 1}.items()


def test_a_cohort_without_its_slides_runs_only_what_it_can(tmp_path, realdata):
    text = run(tmp_path, "-n", "--quiet", "rules", "--config", f"data_dir={realdata}", "--", "results/blca/summary.tsv")
    found = jobs(text)
    assert found["train_fold"] == 30  # five models of omics and the clinical reference
    assert "tissue" not in found


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("slide={}", r"unknown key 'slide'.*Did you mean 'slides'\?"),
        ("slides={encodr: uni}", r"unknown key 'slides.encodr'.*Did you mean 'encoder'\?"),
        ("training={selection: lost}", r"'training.selection' has an unknown value; found 'lost'.*Did you mean 'last'\?"),
        ("training={epochs: 0}", r"'training.epochs' has an unusable value; found '0', expected minimum 1"),
        ("demo={patients: many}", r"'demo.patients' has an unusable value; found 'many', expected a value of type integer"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_right_one(tmp_path, setting, message):
    text = run(tmp_path, "-n", "--config", setting, "--", "results/demo/summary.tsv", fails=True)
    assert re.search(r"config/config.yaml or --config: " + message, text), text[-2000:]
    assert "Traceback" not in text


def test_a_misspelt_cohort_names_the_nearest(tmp_path):
    text = run(tmp_path, "-n", "--", "results/blcaa/summary.tsv", fails=True)
    assert "unknown cohort 'blcaa'" in text
    assert "Did you mean 'blca'?" in text


def test_slides_without_follow_up_say_what_to_ask_for(tmp_path):
    text = run(tmp_path, "-n", "--", "results/tcga_frozen/summary.tsv", fails=True)
    assert "the cohort has no follow-up" in text
    assert "results/tcga_frozen/slides/manifest-stain_texture.tsv" in text
