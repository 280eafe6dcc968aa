"""The table of scenarios against its definition: plain loops over pairs, and what must be said of models that nothing can be asked of."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_study import Study

from pipeline.errors import InputError
from pipeline.evaluation.concordance import draw, harrell
from pipeline.evaluation.model import evaluate_model
from pipeline.evaluation.scenarios import SCENARIO_COLUMNS, evaluate_scenarios
from pipeline.evaluation.summary import COLUMNS, OPTIMISTIC
from pipeline.seeds import seed_from
from pipeline.tables import read_table, write_table

DRAWS, REPLICATES, SEED = 3, 120, 7


class Scenarios:
    """A model on three folds of sixty patients, and what it predicts under `without wsi` and three draws of `drop 0.4`."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.study = Study(root, patients=60)
        self.folders = self.study.add_model("both", drop=("P004",), **settings)
        rng, parts = np.random.default_rng(5), []
        for k, folder in enumerate(self.folders):
            complete = read_table(folder / "predictions.tsv").astype({"risk": float})
            for scenario, draws in (("without wsi", 1), ("drop 0.4", DRAWS)):
                for number in range(draws):
                    table = complete[["patient_id"]].assign(scenario=scenario, fill="native", draw=number, fold=k, lacks="wsi", reason="")
                    table["risk"] = complete.risk + rng.normal(size=len(complete))
                    lost = np.zeros(len(table), bool) if draws == 1 else rng.random(len(table)) < 0.2
                    table.loc[lost, ["risk", "reason"]] = [np.nan, "has none of wsi, omics"]
                    parts.append(table)
                    if "P004" in set(self.study.table.patient_id[self.study.fold == k]):
                        parts.append(table[:1].assign(patient_id="P004", risk=np.nan, reason="lacks omics"))
        self.table, self.file = pd.concat(parts, ignore_index=True), root / "both/scenarios.tsv"

    def evaluate(self, table: pd.DataFrame | None = None) -> pd.DataFrame:
        """The rows, by scenario."""
        write_table(self.table if table is None else table, self.file)
        root = self.study.root
        evaluate_scenarios(
            cohort="demo",
            folders={"both": self.folders},
            predictions={"both": self.file},
            patients=self.study.patients,
            splits=self.study.splits,
            output=root / "scenarios.tsv",
            bootstrap=REPLICATES,
            seed=SEED,
        )
        found = read_table(root / "scenarios.tsv", SCENARIO_COLUMNS).set_index("scenario")
        figures = [column for column in found if column not in ("model", "fill", "note")]
        return found.fillna({"note": "", "fill": ""}).astype(dict.fromkeys(figures, float))

    def complete_risks(self, fold: int) -> pd.Series:
        return read_table(self.folders[fold] / "predictions.tsv").set_index("patient_id").risk.astype(float)


@pytest.fixture
def made(tmp_path: Path) -> Scenarios:
    return Scenarios(tmp_path)


def weighted_c(time, event, risk, weight) -> float:
    """Harrell's C by its definition, each pair counted as often as a resample holds it."""
    won = pairs = 0.0
    for i, j in permutations(range(len(time)), 2):
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            pairs += weight[i] * weight[j]
            won += weight[i] * weight[j] * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
    return won / pairs if pairs else np.nan


def by_definition(made: Scenarios, scenario: str, weights: dict[str, float]) -> tuple[float, float]:
    """C-index and complete C-index of a scenario: mean over draws, then over folds, with plain loops."""
    follow_up, both = made.study.table.set_index("patient_id"), []
    rows = made.table[(made.table.scenario == scenario) & made.table.risk.notna()]
    for fold, part in rows.groupby("fold"):
        known, c = made.complete_risks(fold), []
        for _, block in part.groupby("draw"):
            ids = list(block.patient_id)
            time, event = follow_up.time[ids].to_numpy(), follow_up.event[ids].to_numpy()
            weight = [weights[patient] for patient in ids]
            c.append([weighted_c(time, event, risk, weight) for risk in (block.risk.to_numpy(), known[ids].to_numpy())])
        both.append(np.mean(c, axis=0))
    return tuple(np.mean(both, axis=0))


@pytest.mark.parametrize("scenario", ["without wsi", "drop 0.4"])
def test_the_figures_are_those_of_the_definition(made, scenario):
    row = made.evaluate().loc[scenario]
    c, complete = by_definition(made, scenario, dict.fromkeys(made.study.table.patient_id, 1.0))
    assert (row.c_index, row.complete, row.difference) == pytest.approx((c, complete, c - complete), abs=1e-9)
    assert row.draws == (DRAWS if scenario == "drop 0.4" else 1)
    tested = made.table[(made.table.scenario == scenario)]
    assert row.patients == pytest.approx(tested.risk.notna().sum() / row.draws)
    assert row.patients + row.unpredicted == 60


def test_both_intervals_come_from_the_same_resamples_of_patients(made):
    rows = made.table[(made.table.scenario == "drop 0.4") & made.table.risk.notna()]
    patients = np.unique(rows.patient_id)
    counts = draw(len(patients), REPLICATES, seed_from("demo", SEED))
    replicates = np.array([by_definition(made, "drop 0.4", dict(zip(patients, row, strict=True))) for row in counts])
    row = made.evaluate().loc["drop 0.4"]
    assert (row.ci_low, row.ci_high) == pytest.approx(np.percentile(replicates[:, 0], [2.5, 97.5]), abs=1e-9)
    paired = np.percentile(replicates[:, 0] - replicates[:, 1], [2.5, 97.5])
    assert (row.difference_ci_low, row.difference_ci_high) == pytest.approx(paired, abs=1e-9)


def test_the_complete_row_is_the_row_of_the_summary(made, tmp_path):
    row = made.evaluate().loc["complete"]
    files = {"patients": made.study.patients, "splits": made.study.splits, "output": tmp_path / "evaluation.tsv"}
    evaluate_model(cohort="demo", model="both", endpoint="os", folds=made.folders, bootstrap=REPLICATES, seed=SEED, **files)
    summary = read_table(tmp_path / "evaluation.tsv", COLUMNS).iloc[0]
    ours = row[["c_index", "c_index_std", "ci_low", "ci_high", "patients", "unpredicted", "folds"]].to_numpy(float)
    names = ["c_index", "c_index_std", "c_index_ci_low", "c_index_ci_high", "patients", "unpredicted", "folds"]
    np.testing.assert_allclose(ours, summary[names].to_numpy(float), atol=1e-9)
    assert np.isnan(row.difference)
    assert row.note == "without a prediction: lacks omics"


def test_a_scenario_that_takes_nothing_differs_by_nothing_and_says_so(made):
    table = made.table.assign(lacks="clinical")
    for k in range(3):
        rows = (table.fold == k) & table.risk.notna()
        table.loc[rows, "risk"] = made.complete_risks(k)[list(table.patient_id[rows])].to_numpy()
    for _, row in made.evaluate(table).iloc[1:].iterrows():
        assert (row.difference, row.difference_ci_low, row.difference_ci_high) == (0, 0, 0)
        assert row.note.startswith("unchanged: those that it predicts lack nothing that it reads")


def test_a_model_whose_only_modality_is_taken_has_no_figures(tmp_path):
    made = Scenarios(tmp_path, modalities=["wsi"])
    row = made.evaluate(made.table.assign(risk=np.nan, reason="has none of wsi")).loc["without wsi"]
    assert np.isnan([row.c_index, row.ci_low, row.complete, row.difference]).all()
    assert (row.folds, row.patients, row.unpredicted) == (0, 0, 60)
    assert row.note == "not applicable: it reads nothing but wsi"


def test_a_model_that_refuses_everybody_tells_its_reason(made):
    row = made.evaluate(made.table.assign(risk=np.nan, reason="lacks wsi")).loc["without wsi"]
    assert (row.folds, row.note) == (0, "nobody is predicted: lacks wsi")


def test_constant_risks_are_half_and_are_named(made):
    table = made.table.copy()
    table.loc[table.risk.notna() & (table.fold == 1), "risk"] = 0.25
    row = made.evaluate(table).loc["without wsi"]
    assert "constant risks in fold 1: 0.5 there says nothing" in row.note
    table.loc[table.risk.notna(), "risk"] = 0.25
    row = made.evaluate(table).loc["without wsi"]
    assert (row.c_index, row.ci_low, row.ci_high) == (0.5, 0.5, 0.5)
    assert "constant risks in fold 0, 1, 2" in row.note


def test_a_risk_that_is_not_finite_leaves_no_figure_rather_than_a_smaller_cohort(made):
    table = made.table.copy()
    one = table.index[(table.scenario == "without wsi") & table.risk.notna()][:2]
    table.loc[one, ["risk", "reason"]] = [np.nan, "the risk is not a finite number"]
    rows = made.evaluate(table)
    assert np.isnan(rows.c_index["without wsi"])
    assert rows.note["without wsi"] == "the risk of 2 patients is not a finite number"
    assert np.isfinite(rows.c_index["drop 0.4"])


def test_a_failed_fold_is_left_out_of_both_figures(made):
    made.study.change("both", 1, failure="the loss is not finite")
    failed = made.table.assign(risk=made.table.risk.where(made.table.fold != 1))
    failed.loc[failed.fold == 1, "reason"] = "the fold failed: the loss is not finite"
    row = made.evaluate(failed).loc["without wsi"]
    expected = [harrell_of(made, k) for k in (0, 2)]
    assert (row.folds, row.c_index) == (2, pytest.approx(np.mean(expected)))
    assert "the fold failed: the loss is not finite" in row.note


def harrell_of(made: Scenarios, fold: int) -> float:
    rows = made.table[(made.table.scenario == "without wsi") & (made.table.fold == fold) & made.table.risk.notna()]
    known = made.study.table.set_index("patient_id").loc[rows.patient_id]
    return harrell(known.time.to_numpy(), known.event.to_numpy(), rows.risk.to_numpy()).value


def test_an_epoch_chosen_on_the_test_fold_is_told_here_as_well(tmp_path):
    rows = Scenarios(tmp_path, selection="best_val").evaluate()
    assert rows.note.str.contains(f"{OPTIMISTIC} in fold 0, 1, 2", regex=False).all()


def without_a_row(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(index=table.index[0])


def with_a_row_twice(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table[:1]])


def with_an_unpredicted_patient(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(risk=table.risk.where(table.patient_id != "P004", 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_row, "other patients than the folds test; found '59 rows in draw 0 of 'without wsi'', expected 60, each once"),
        (with_a_row_twice, "other patients than the folds test; found '61 rows in draw 0 of 'without wsi''"),
        (with_an_unpredicted_patient, "patient has no complete prediction; found 'P004'"),
    ],
)
def test_predictions_of_other_patients_are_refused(made, change, message):
    with pytest.raises(InputError) as error:
        made.evaluate(change(made.table))
    assert message in str(error.value).replace('"', "'")
