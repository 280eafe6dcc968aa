"""The page of a label: its C-index is an AUC and is called so, nothing speaks of survival."""

import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.model import evaluate_model
from pipeline.evaluation.summary import write_summary
from pipeline.report.page import write_report
from pipeline.tables import write_table

Study = runpy.run_path(str(Path(__file__).parents[1] / "evaluation/synthetic_study.py"))["Study"]
WINDOW = 36.0


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("binary")
    study = Study(root, patients=120)
    study.table["event"] = (study.hazard > 0.8).astype(int)
    study.table["time"] = WINDOW
    write_table(study.table, study.patients)
    rows = []
    for model, signal in (("mlp", 3.0), ("noise", 0.0)):
        for folder in study.add_model(model, signal=signal):
            table = pd.read_csv(folder / "predictions.tsv", sep="\t")[["patient_id", "time", "event", "risk"]]
            write_table(table.assign(surv_36=1 / (1 + np.exp(table.risk - 0.8 * signal))), folder / "predictions.tsv")
        rows.append(root / model / "evaluation.tsv")
        options = {"bootstrap": 50, "seed": 1, "kind": "binary", "calibration": root / model / "calibration.tsv"}
        paths = {"patients": study.patients, "splits": study.splits, "output": rows[-1]}
        evaluate_model(cohort="label", model=model, endpoint="y_3y", folds=study.folders(model), **options, **paths)
    write_summary(rows, {}, root / "summary.tsv")
    write_table(pd.DataFrame([("cohort", 120, 0, "")], columns=["step", "patients", "dropped", "reason"]), root / "flow.tsv")
    write_table(pd.DataFrame(columns=["kind", "id", "stage", "reason", "remedy"]), root / "excluded.tsv")
    models = {model: study.folders(model) for model in ("mlp", "noise")}
    calibration = {model: root / model / "calibration.tsv" for model in models}
    files = {"summary": root / "summary.tsv", "flow": root / "flow.tsv", "excluded": root / "excluded.tsv", "calibration": calibration}
    files |= {"patients": study.patients, "splits": study.splits, "output": root / "report.html", "figures": root / "figures"}
    write_report(cohort="label", title="A label", models=models, kind="binary", **files)
    assert not list((root / "figures").glob("km-*")), "no survival curves of a label"
    return (root / "report.html").read_text()


@pytest.fixture(scope="module")
def text(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r'src="[^"]+"|<style>.*?</style>', "", page, flags=re.DOTALL)).split())


def test_a_label_is_spoken_of_as_auc(text: str):
    assert "mlp has the highest AUC:" in text
    assert "Honest AUC" in text
    assert "C-index" not in text
    for word in ("Kaplan", "Uno", "Log-rank", "months observed", "Hazard ratio", "IBS"):
        assert word not in text


def test_accuracy_stands_beside_the_majority_rate(text: str):
    assert "Accuracy Majority rate Brier ↓" in text
    assert "Accuracy not above that of giving everybody the more frequent label: noise" in text


def test_positives_are_counted(text: str):
    assert re.search(r"120 patients \d+ positive", text)
