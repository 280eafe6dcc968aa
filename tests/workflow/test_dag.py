"""What would run, and what a wrong configuration is answered with: nothing is computed here."""

import re
import subprocess

import pytest

from tests.workflow.conftest import run
from tests.workflow.large import CHUNKS, MODELS, finish, lay_out, snakemake


def jobs(text: str) -> dict[str, int]:
    """Rule → number of jobs, from Snakemake's table of jobs."""
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", text, flags=re.MULTILINE)}


def test_the_demo_is_chunks_folds_and_models(tmp_path):
    found = jobs(run(tmp_path, "-n", "--quiet", "rules", "--", "results/demo/report.html"))
    slides = {"demo_slides": 2, "tissue": 2, "patches": 2, "features": 2}
    models = {"train_fold": 9, "evaluate": 9, "predict_scenarios": 9}
    assert found.items() >= {**slides, **models, "summary": 1, "scenarios": 1}.items()


def test_a_cohort_without_its_slides_runs_only_what_it_can(tmp_path, realdata):
    text = run(tmp_path, "-n", "--quiet", "rules", "--config", f"data_dir={realdata}", "--", "results/blca/summary.tsv")
    found = jobs(text)
    assert found["train_fold"] == 6  # five models of omics and the clinical reference
    assert "tissue" not in found


def test_a_wrong_key_is_named_with_the_nearest_right_one(tmp_path):
    """As Snakemake says it; the other messages are those of tests/unit/test_config_messages.py."""
    text = run(tmp_path, "-n", "--config", "slides={encodr: uni}", "--", "results/demo/summary.tsv", fails=True)
    message = r"config/config.yaml or --config: unknown key 'slides.encodr'.*Did you mean 'encoder'\?"
    assert re.search(message, text), text[-2000:]
    assert "Traceback" not in text


def test_a_misspelt_cohort_names_the_nearest(tmp_path):
    text = run(tmp_path, "-n", "--", "results/blcaa/summary.tsv", fails=True)
    assert "unknown cohort 'blcaa'" in text
    assert "Did you mean 'blca'?" in text


def test_slides_without_follow_up_say_what_to_ask_for(tmp_path):
    text = run(tmp_path, "-n", "--", "results/tcga_frozen/summary.tsv", fails=True)
    assert "the cohort has no follow-up" in text
    assert "results/tcga_frozen/slides/manifest-stain_texture.tsv" in text


def test_ten_thousand_slides_and_forty_models_are_hundreds_of_jobs(tmp_path):
    """How fast that is decided, and in how much memory: benchmarks/large_cohort.py."""
    lay_out(tmp_path)
    slides = {"list_slides": 1, "tissue": CHUNKS, "patches": CHUNKS, "features": CHUNKS, "slide_manifest": 1}
    tables = {"omics_matrix": 1, "gene_groups": 1, "patients": 1, "splits": 1}
    models = {"train_fold": MODELS, "evaluate": MODELS, "summary": 1}
    assert decided(tmp_path) == {**slides, **tables, **models, "total": 7 + 3 * CHUNKS + 2 * MODELS}


@pytest.mark.slow
def test_of_a_finished_large_cohort_nothing_is_to_be_done_and_a_new_slide_asks_for_its_chunk_alone(tmp_path):
    lay_out(tmp_path)
    finish(tmp_path)
    assert decided(tmp_path) == {}
    (tmp_path / "results/large/slides/tissue/chunk7.tsv").write_text("a slide more")
    found = decided(tmp_path)
    assert found.items() >= {"patches": 1, "features": 1, "train_fold": MODELS}.items()
    assert "tissue" not in found


def decided(folder) -> dict[str, int]:
    """The jobs of a dry run of the large cohort; none when Snakemake says that nothing is to be done."""
    line, environment = snakemake(folder, "-n", "--quiet", "rules")
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    found = jobs(text)
    assert found or "Nothing to be done" in text
    return found
