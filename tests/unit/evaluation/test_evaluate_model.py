import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score
from synthetic_study import Study

from pipeline.cohort.splits import read_splits, splits_digest
from pipeline.errors import InputError
from pipeline.evaluation.concordance import harrell
from pipeline.evaluation.folds import read_folds
from pipeline.evaluation.metrics import logrank, median_split
from pipeline.evaluation.model import evaluate_model
from pipeline.evaluation.summary import COLUMNS, is_optimistic, read_summary, write_summary
from pipeline.tables import read_table, write_table


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def evaluate(study: Study, model: str, name: str = "evaluation.tsv", **options: object) -> pd.Series:
    output = study.root / model / name
    settings = {"cohort": "demo", "endpoint": "os", "bootstrap": 100, "seed": 1} | options
    evaluate_model(model=model, folds=study.folders(model), patients=study.patients, splits=study.splits, output=output, **settings)
    return read_summary(output).iloc[0]


def edit(path: Path, change) -> None:
    table = read_table(path)
    write_table(change(table), path)


def fold_c(study: Study, model: str, k: int) -> float:
    table = pd.read_csv(study.folder(model, k) / "predictions.tsv", sep="\t")
    return harrell(table.time.to_numpy(), table.event.to_numpy(), table.risk.to_numpy()).value


def test_the_row_holds_the_mean_of_the_folds_its_sd_and_an_interval_around_it(study: Study):
    study.add_model("snn")
    row = evaluate(study, "snn")
    c = [fold_c(study, "snn", k) for k in range(3)]
    assert tuple(row.index) == COLUMNS
    assert row.c_index == pytest.approx(np.mean(c))
    assert row.c_index_std == pytest.approx(np.std(c))
    assert row.c_index_ci_low < row.c_index < row.c_index_ci_high
    assert row.c_index_pooled_ci_low < row.c_index_pooled < row.c_index_pooled_ci_high
    assert (row.modalities, row.endpoint, row.patients, row.folds, row.unpredicted) == ("wsi+omics", "os", 150, 3, 0)
    assert row.events == study.table.event.sum()
    assert (row.params, row.train_seconds, row.failed_folds, row.note) == (123456, 22.5, "", "")
    assert 0 < row.ibs < 0.25
    assert 0.5 < row.c_index_uno < 1
    assert 0.5 < row.auc < 1


def test_pooled_c_weights_the_folds_by_their_pairs_and_never_crosses_them(study: Study):
    study.add_model("snn")
    before = evaluate(study, "snn")
    edit(study.folder("snn", 1) / "predictions.tsv", lambda t: t.assign(risk=t.risk.astype(float) + 1000))
    after = evaluate(study, "snn")
    assert after.c_index_pooled == pytest.approx(before.c_index_pooled)
    metrics = [read_table(study.folder("snn", k) / "metrics.tsv").set_index("metric").value.astype(float) for k in range(3)]
    pooled = sum(m.c_index * m.pairs for m in metrics) / sum(m.pairs for m in metrics)
    assert after.c_index_pooled == pytest.approx(pooled)
    assert after.pairs == sum(m.pairs for m in metrics)


def test_best_epoch_and_optimism_come_from_the_history_of_each_fold(study: Study):
    study.add_model("snn")
    for k, best in enumerate((0.7, 0.8, 0.9)):
        edit(study.folder("snn", k) / "history.tsv", lambda t, best=best: t.assign(test_c_index=[0.5, best, *[0.6] * (len(t) - 2)]))
    row = evaluate(study, "snn")
    assert row.c_index_best_epoch == pytest.approx(0.8)
    assert row.optimism == pytest.approx(0.8 - row.c_index)


def test_a_fold_without_history_leaves_the_habits_figure_empty_and_says_so(study: Study):
    study.add_model("cox")
    (study.folder("cox", 2) / "history.tsv").unlink()
    row = evaluate(study, "cox")
    assert np.isnan(row.c_index_best_epoch)
    assert np.isnan(row.optimism)
    assert row.note == "c_index_best_epoch: no test C-index by epoch in fold 2"


def test_permuting_the_rows_of_every_table_changes_no_byte(study: Study):
    study.add_model("snn")
    evaluate(study, "snn")
    files = [study.root / "snn/evaluation.tsv", *(study.folder("snn", k) / "metrics.tsv" for k in range(3))]
    before = [path.read_bytes() for path in files]
    for path in (study.patients, study.splits, *(study.folder("snn", k) / "predictions.tsv" for k in range(3))):
        edit(path, lambda t: t.sample(frac=1, random_state=3))
    evaluate(study, "snn")
    assert [path.read_bytes() for path in files] == before


def test_another_seed_moves_the_intervals_only(study: Study):
    study.add_model("snn")
    one, two = evaluate(study, "snn"), evaluate(study, "snn", seed=2)
    differing = {column for column in COLUMNS if one[column] != two[column] and not pd.isna(one[column])}
    assert differing == {"c_index_ci_low", "c_index_ci_high", "c_index_pooled_ci_low", "c_index_pooled_ci_high"}


def test_a_failed_fold_is_named_and_its_patients_are_counted(study: Study):
    study.add_model("snn")
    study.change("snn", 1, failure="the loss is not finite\nin epoch 4")
    for name in ("predictions.tsv", "history.tsv"):
        (study.folder("snn", 1) / name).unlink()
    row = evaluate(study, "snn")
    assert row.failed_folds == "1 (the loss is not finite in epoch 4)"
    assert (row.folds, row.patients, row.unpredicted) == (2, 100, 50)
    assert row.c_index == pytest.approx(np.mean([fold_c(study, "snn", k) for k in (0, 2)]))
    metrics = read_table(study.folder("snn", 1) / "metrics.tsv").set_index("metric")
    assert metrics.value["patients"] == "0"
    assert pd.isna(metrics.value["c_index"])


def test_predictions_of_a_failed_fold_are_not_read(study: Study):
    study.add_model("snn")
    study.change("snn", 1, failure="stopped")
    assert evaluate(study, "snn").patients == 100


@pytest.mark.parametrize("cell", ["", "nan", "inf", "-inf"])
@pytest.mark.parametrize("column", ["risk", "surv_24"])
def test_a_prediction_that_is_not_finite_fails_its_fold(study: Study, cell: str, column: str):
    study.add_model("snn")
    edit(study.folder("snn", 0) / "predictions.tsv", lambda t: t.assign(**{column: [cell, *t[column][1:]]}))
    row = evaluate(study, "snn")
    assert row.failed_folds == "0 (the predictions of 1 of 50 patients are not finite numbers)"
    assert row.folds == 2


def test_all_folds_failed_gives_a_row_without_figures(study: Study):
    study.add_model("snn")
    for k in range(3):
        study.change("snn", k, failure="out of memory")
    row = evaluate(study, "snn")
    assert row.failed_folds == "0 (out of memory), 1 (out of memory), 2 (out of memory)"
    assert (row.folds, row.patients, row.unpredicted) == (0, 0, 150)
    assert row[["c_index", "c_index_ci_low", "c_index_uno", "ibs", "auc", "logrank_p"]].isna().all()


def test_a_fold_without_comparable_pairs_is_left_out_of_the_mean_aloud(study: Study):
    tested = study.table.patient_id[study.fold == 0]
    edit(study.patients, lambda t: t.assign(event=t.event.where(~t.patient_id.isin(tested), "0")))
    study.table.loc[study.fold == 0, "event"] = 0
    study.add_model("snn")
    row = evaluate(study, "snn")
    assert row.folds == 2
    assert row.patients == 150
    assert "c_index without fold 0: no comparable pair (50 patients, 0 events)" in row.note
    assert "ibs without fold 0: no event in the test fold" in row.note
    assert row.failed_folds == ""


def test_unpredicted_patients_are_counted_and_silent_ones_reported(study: Study):
    study.add_model("snn", drop=("P000", "P003", "P001"))
    row = evaluate(study, "snn")
    assert (row.patients, row.unpredicted, row.note) == (147, 3, "")
    study.change("snn", 0, unpredicted={"P000": "lacks omics"})
    assert evaluate(study, "snn").note == "fold 0: 1 test patients have neither a prediction nor a reason"


def test_an_epoch_chosen_on_the_test_fold_is_called_optimistic(study: Study):
    study.add_model("snn", selection="best_val")
    row = evaluate(study, "snn")
    assert row.note == "epoch chosen on the test fold (best_val) in fold 0, 1, 2: c_index is optimistic"
    assert is_optimistic(row)
    assert row.c_index_best_epoch == pytest.approx(row.c_index, abs=0.2)
    assert np.isnan(row.optimism), "it has no honest figure to compare with"


def test_time_bins_of_the_whole_cohort_are_noted(study: Study):
    study.add_model("snn", protocol={"bins_from": "cohort"})
    assert evaluate(study, "snn").note == "time bins fitted with the test patients (bins_from: cohort)"


def test_one_fold_has_no_spread(study: Study):
    study.add_model("snn")
    study.k = 1
    row = evaluate(study, "snn")
    assert np.isfinite(row.c_index)
    assert np.isnan(row.c_index_std)


def test_a_changed_follow_up_is_an_error_that_names_the_cell(study: Study):
    study.add_model("snn")
    path = study.folder("snn", 0) / "predictions.tsv"
    known = float(study.table.time[3])
    edit(path, lambda t: t.assign(time=t.time.where(t.patient_id != "P003", "999")))
    with pytest.raises(InputError) as caught:
        evaluate(study, "snn")
    assert str(caught.value) == (
        f"{path}, row 3, column 'time': follow-up changed since training; found '999.0', expected {known:g} as in patients.tsv. "
        "Train the fold again."
    )


def test_a_patient_of_the_training_set_among_the_predictions_is_an_error(study: Study):
    study.add_model("snn")
    path = study.folder("snn", 0) / "predictions.tsv"
    edit(path, lambda t: t.assign(patient_id=t.patient_id.replace("P003", "P001")))
    with pytest.raises(InputError, match=r"row 3, column 'patient_id': patient is not in the test set of this fold; found 'P001'"):
        evaluate(study, "snn")


def test_a_broken_settings_file_is_an_error_that_names_it(study: Study):
    study.add_model("snn")
    path = study.folder("snn", 0) / "model.yaml"
    path.write_text("failure: [")
    with pytest.raises(InputError, match=r"model.yaml.*: not valid YAML.*Delete the model's folds_"):
        evaluate(study, "snn")
    path.write_text("")
    with pytest.raises(InputError, match=r"model.yaml: holds no mapping; found 'NoneType'"):
        evaluate(study, "snn")


def test_missing_predictions_without_a_failure_are_an_error(study: Study):
    study.add_model("snn")
    (study.folder("snn", 2) / "predictions.tsv").unlink()
    with pytest.raises(InputError, match=r"fold2/predictions.tsv: no such table"):
        evaluate(study, "snn")


def test_summary_keeps_the_order_the_bytes_and_the_models_that_were_not_run(study: Study, tmp_path: Path):
    rows = []
    for model, signal in (("snn", 0.5), ("adamhf+no_atsa", 1.5)):
        study.add_model(model, signal=signal)
        evaluate(study, model)
        rows.append(study.root / model / "evaluation.tsv")
    write_summary(rows, {"transmil": "needs wsi"}, tmp_path / "summary.tsv", endpoint="os")
    lines = (tmp_path / "summary.tsv").read_text().splitlines()
    assert lines[0].split("\t") == list(COLUMNS)
    assert lines[1:3] == [path.read_text().splitlines()[1] for path in rows]
    table = read_summary(tmp_path / "summary.tsv").set_index("model")
    assert table.note["transmil"] == "not run: needs wsi"
    assert table.loc["transmil"].drop(["modalities", "endpoint", "splits", "failed_folds", "note"]).isna().all()


def test_summary_of_nothing_but_absent_models_can_be_read(tmp_path: Path):
    write_summary([], {"a": "x"}, tmp_path / "summary.tsv")
    assert read_summary(tmp_path / "summary.tsv").note.tolist() == ["not run: x"]
    write_summary([], {}, tmp_path / "empty.tsv")
    assert read_summary(tmp_path / "empty.tsv").empty


def test_the_row_holds_calibration_logrank_hazard_ratio_and_the_digest_of_the_split(study: Study):
    study.add_model("snn", signal=2.0)
    row = evaluate(study, "snn")
    assert row.splits == splits_digest(read_splits(study.splits))[:12]
    assert 0 <= row.d_calibration_p <= 1
    assert row.logrank_p < 1e-4
    assert 1 < row.hazard_ratio_ci_low < row.hazard_ratio < row.hazard_ratio_ci_high
    assert row[["brier", "accuracy", "majority", "c_index_shuffled", "noise_floor"]].isna().all()
    metrics = read_table(study.folder("snn", 0) / "metrics.tsv").set_index("metric")
    assert float(metrics.ci_low["hazard_ratio"]) < float(metrics.value["hazard_ratio"]) < float(metrics.ci_high["hazard_ratio"])
    assert metrics.index.tolist()[:2] == ["c_index", "c_index_uno"]


def test_the_calibration_table_is_written_where_it_is_asked_for(study: Study):
    study.add_model("snn")
    evaluate(study, "snn", calibration=study.root / "snn/calibration.tsv")
    table = read_table(study.root / "snn/calibration.tsv").astype(float)
    assert table.groupby("time").patients.sum().eq(150).all()
    assert table.predicted.between(0, 1).all()


def repeat_folds(study: Study) -> None:
    """The three folds once more under the numbers 3 to 5: every patient is tested twice."""
    table = read_table(study.splits)
    again = table.assign(fold=table.fold.astype(int) + study.k)
    write_table(pd.concat([table, again]), study.splits)
    study.k *= 2


def test_a_patient_tested_in_two_folds_counts_once_in_what_is_pooled(study: Study):
    study.add_model("snn")
    once = evaluate(study, "snn")
    repeat_folds(study)
    for k in range(3):
        shutil.copytree(study.folder("snn", k), study.folder("snn", k + 3))
    twice = evaluate(study, "snn")
    assert (twice.folds, twice.patients, twice.events, twice.unpredicted) == (6, 150, once.events, 0)
    same = ["c_index", "c_index_pooled", "c_index_ci_low", "c_index_ci_high", "d_calibration_p", "c_index_uno", "ibs"]
    np.testing.assert_allclose(twice[same].astype(float), once[same].astype(float))
    assert twice.pairs == 2 * once.pairs
    study.change("snn", 4, failure="stopped")
    assert evaluate(study, "snn").unpredicted == 0, "his other fold predicts him"


def test_the_group_of_most_folds_wins_and_a_tie_is_high(study: Study):
    folds = read_folds(study.add_model("snn"), study.patients, study.splits)
    one = folds[0]
    turned = dataclasses.replace(one, number=1, risk=-one.risk)
    both = median_split([one, turned])[2]
    assert both.all(), "high in one of two folds each"
    third = median_split([one, turned, dataclasses.replace(one, number=2)])[2]
    np.testing.assert_array_equal(third, median_split([one])[2])
    assert logrank([one, turned, dataclasses.replace(one, number=2)]) == logrank([one])


def test_shuffled_runs_give_the_noise_floor_of_the_habit(study: Study):
    study.add_model("snn")
    repetitions = [study.add_model(f"snn/shuffled{r}", signal=0.0, seed=50 + r) for r in range(2)]
    row = evaluate(study, "snn", shuffled=repetitions)
    honest = [np.mean([fold_c(study, f"snn/shuffled{r}", k) for k in range(3)]) for r in range(2)]
    best = [np.mean([read_table(f / "history.tsv").test_c_index.astype(float).max() for f in folders]) for folders in repetitions]
    assert row.c_index_shuffled == pytest.approx(np.mean(honest))
    assert row.noise_floor == pytest.approx(np.mean(best))
    assert 0.4 < row.c_index_shuffled < 0.6 < row.c_index
    study.change("snn/shuffled1", 2, failure="diverged")
    assert evaluate(study, "snn", shuffled=repetitions).note == "shuffled labels: 1 folds without a C-index"


@pytest.fixture
def labelled(tmp_path: Path) -> Study:
    """The study with a label in a window of 36 months instead of times; `add_model` then writes one probability."""
    study = Study(tmp_path)
    study.table["event"], study.table["time"] = (study.table.time < 25).astype(int), 36.0
    write_table(study.table, study.patients)
    study.add_model("snn", signal=1.5)
    for folder in study.folders("snn"):
        edit(
            folder / "predictions.tsv",
            lambda t: t[["patient_id", "time", "event", "risk", "surv_24"]].rename(columns={"surv_24": "surv_36"}),
        )
    return study


def test_a_binary_label_gets_auc_accuracy_majority_and_brier(labelled: Study):
    row = evaluate(labelled, "snn", kind="binary", calibration=labelled.root / "snn/calibration.tsv")
    auc, accuracy, majority, brier = [], [], [], []
    for folder in labelled.folders("snn"):
        table = pd.read_csv(folder / "predictions.tsv", sep="\t")
        auc.append(roc_auc_score(table.event, table.risk))
        brier.append(brier_score_loss(table.event, 1 - table.surv_36))
        accuracy.append(accuracy_score(table.event, table.surv_36 < 0.5))
        others = labelled.table.event[~labelled.table.patient_id.isin(table.patient_id)]
        majority.append((table.event == others.mode()[0]).mean())
    expected = [np.mean(x) for x in (auc, auc, brier, accuracy, majority)]
    np.testing.assert_allclose(row[["c_index", "auc", "brier", "accuracy", "majority"]].astype(float), expected)
    assert row[["c_index_uno", "ibs", "d_calibration_p", "logrank_p", "hazard_ratio", "hazard_ratio_ci_low"]].isna().all()
    assert (row.note, row.events) == ("", labelled.table.event.sum())
    assert row.c_index_ci_low < row.auc < row.c_index_ci_high
    assert read_table(labelled.root / "snn/calibration.tsv").time.unique().tolist() == ["36"]
    assert "logrank_p" not in read_table(labelled.folder("snn", 0) / "metrics.tsv").metric.tolist()


def test_a_binary_label_with_follow_up_times_is_refused(study: Study):
    study.add_model("snn")
    with pytest.raises(InputError, match=r"patients.tsv, column 'time': a binary label has follow-up times; found '\d+ times, "):
        evaluate(study, "snn", kind="binary")
    with pytest.raises(InputError, match=r"unknown kind of endpoint; found 'ordinal', expected survival or binary\."):
        evaluate(study, "snn", kind="ordinal")


def test_a_binary_label_without_probabilities_keeps_the_auc(labelled: Study):
    for folder in labelled.folders("snn"):
        edit(folder / "predictions.tsv", lambda t: t.drop(columns="surv_36"))
    row = evaluate(labelled, "snn", kind="binary")
    assert 0.5 < row.auc < 1
    assert np.isnan(row.accuracy)
    assert "accuracy without fold 0, 1, 2: predictions.tsv has no probability (one column surv_<window>)" in row.note


def test_evaluation_and_report_never_import_torch():
    code = "import sys, pipeline.evaluation.model, pipeline.evaluation.summary, pipeline.report.page; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert out.stdout.strip() == "False"
