"""The whole workflow on the synthetic cohort, as `make demo` runs it."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.summary import COLUMNS, read_summary
from tests.workflow.conftest import TARGETS, run

pytestmark = pytest.mark.slow
METHODS = ["adamhf", "camlif", "haf", "survq", "hdmoe"]
UNIMODAL, MULTIMODAL, REFERENCE = ["snn", "abmil"], ["mcat", *METHODS], "coxnet+clinical"


def summary(folder: Path) -> pd.DataFrame:
    return read_summary(folder / "results/demo/summary.tsv").set_index("model")


def test_the_planted_truth_is_recovered(demo):
    table = summary(demo)
    assert list(table.index) == [*UNIMODAL, *MULTIMODAL, REFERENCE]
    assert list(table.reset_index().columns) == list(COLUMNS)
    assert (table.loc[UNIMODAL, "c_index_pooled_ci_low"] > 0.5).all()
    assert (table.loc[MULTIMODAL, "c_index_pooled_ci_low"] > 0.5).all()
    steady = [model for model in MULTIMODAL if model != "adamhf"]  # it needs more steps than a demo has
    assert (table.loc[steady, "c_index_pooled"] > table.loc[UNIMODAL, "c_index_pooled"].max()).all()
    assert (
        table.loc[REFERENCE, "c_index_ci_low"] < 0.5 < table.loc[REFERENCE, "c_index_ci_high"]
    )  # nothing is planted in age, sex and stage
    assert (table["optimism"] >= 0).all()
    assert (table["failed_folds"] == "").all()


def test_without_slides_the_methods_know_what_genes_tell_and_not_more(demo):
    """Nobody's morphology factor is seen: they fall, to the model of genes alone and not to chance (docs/results.md has all of them)."""
    table = pd.read_csv(demo / "results/demo/scenarios.tsv", sep="\t").set_index(["model", "scenario"])
    genes = table.loc[("snn", "complete"), "c_index"]
    without = pd.DataFrame({model: table.loc[(model, "without wsi")] for model in MULTIMODAL}).T
    assert without["c_index"].between(0.53, genes + 0.1).all()
    assert abs(without["c_index"].mean() - genes) < 0.08
    assert without["difference"].mean() < -0.03


def test_nobody_is_lost_and_bad_slides_are_listed_with_a_remedy(demo):
    results = demo / "results/demo"
    patients = pd.read_csv(results / "cohort/patients.tsv", sep="\t")
    table = summary(demo)
    assert (table["patients"] + table["unpredicted"] == len(patients)).all()
    assert table.loc["snn", "patients"] == patients["has_omics"].sum()
    assert table.loc["abmil", "patients"] == patients["has_wsi"].sum()
    assert (table.loc[MULTIMODAL, "unpredicted"] == 0).all()
    excluded = pd.read_csv(results / "excluded.tsv", sep="\t").set_index("id")
    assert set(excluded.loc[excluded["kind"] == "slide"].index) == {"DEMO-013-B", "DEMO-001-A"}
    assert "mpp" in excluded.loc["DEMO-001-A", "remedy"]
    for model in table.index:
        predicted = [pd.read_csv(f, sep="\t") for f in (results / model).glob("fold*/predictions.tsv")]
        ids = pd.concat(predicted)["patient_id"]
        assert ids.is_unique
        assert len(ids) == table.loc[model, "patients"]


def test_a_second_run_does_nothing_and_one_parameter_reruns_only_what_uses_it(demo):
    assert "Nothing to be done" in run(demo, "-n", "--", *TARGETS, cores=8)  # whatever the number of cores
    text = run(demo, "-n", "--quiet", "rules", "--config", "evaluation={bootstrap: 500}", "--", *TARGETS)
    found = dict(re.findall(r"^(\w+) +(\d+)$", text, flags=re.MULTILINE))
    assert found.keys() == {"evaluate", "compare", "scenarios", "summary", "resources", "report_page", "total"}


def test_a_trained_fold_can_be_loaded_and_predicts_what_it_printed(demo):
    import torch

    from pipeline.cohort.loader import BagStore, CohortData
    from pipeline.nn.hazards import risk_score
    from pipeline.omics.matrix import read_matrix
    from pipeline.slides.features import read_features
    from pipeline.tables import read_table
    from pipeline.training.artifacts import load_fold
    from pipeline.training.dataset import group_columns

    results = demo / "results/demo"
    fold = results / "mcat/fold0"
    model, scalers, facts = load_fold(fold / "model.safetensors", fold / "model.yaml")
    matrix, groups = read_matrix(results / "omics/omics.h5"), read_table(results / "omics/groups.tsv")
    assert list(matrix.features) == facts["columns"]["omics"]
    columns = {name: c for name, (c, _) in group_columns(groups, matrix.features).items()}
    patients = pd.read_csv(results / "cohort/patients.tsv", sep="\t").set_index("patient_id")
    printed = pd.read_csv(fold / "predictions.tsv", sep="\t").set_index("patient_id")
    whole = [p for p in printed.index if patients.loc[p, "has_wsi"] and patients.loc[p, "has_omics"]]
    slides = {p: patients.loc[p, "slides"].split(";") for p in whole}
    bags = {p: [read_features(results / f"slides/features/stain_texture/{s}.h5").features for s in slides[p]] for p in whole}
    rows = {p: i for i, p in enumerate(matrix.patients)}
    vectors = {"omics": (rows, scalers["omics"].transform(matrix.values))}
    data = CohortData(vectors, columns, {"wsi": BagStore(82, bags, scalers["wsi"])})
    with torch.no_grad():
        risk = risk_score(model(data.batch(whole)).logits).numpy()
    np.testing.assert_allclose(risk, printed.loc[whole, "risk"], atol=1e-4)


def test_the_report_is_one_file_without_the_network(demo):
    page = (demo / "results/demo/report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    for word in ("Kaplan", "DEMO-013-B", "mcat", "survq", "Hours and memory"):
        assert word in page


def test_snakemakes_own_report_opens_offline(demo):
    run(demo, "--report", "snakemake-report.html", "--", *TARGETS)
    assert (demo / "snakemake-report.html").stat().st_size > 100_000
