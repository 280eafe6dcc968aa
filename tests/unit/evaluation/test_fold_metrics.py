import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sksurv import metrics as sksurv_metrics
from sksurv.util import Surv
from synthetic_study import EDGES, Study

from pipeline.evaluation.folds import Fold, FollowUp, read_folds
from pipeline.evaluation.metrics import fold_metrics, horizon, logrank, median_split, survival_at, time_grid


@pytest.fixture
def folds(tmp_path: Path) -> list[Fold]:
    study = Study(tmp_path)
    return read_folds(study.add_model("snn"), study.patients, study.splits)


def censored(fold: Fold) -> np.ndarray:
    return Surv.from_arrays(fold.train.event, fold.train.time)


def test_curves_are_linear_between_the_edges_and_start_at_one(folds: list[Fold]):
    fold = folds[0]
    curves = survival_at(fold, np.array([0.0, 6.0, 12.0, 36.0]))
    np.testing.assert_allclose(curves[:, 0], 1)
    np.testing.assert_allclose(curves[:, 1], (1 + fold.survival[:, 0]) / 2)
    np.testing.assert_allclose(curves[:, 2], fold.survival[:, 0])
    np.testing.assert_allclose(curves[:, 3], (fold.survival[:, 1] + fold.survival[:, 2]) / 2)


def test_column_order_of_the_edges_does_not_matter(folds: list[Fold]):
    turned = dataclasses.replace(folds[0], edges=folds[0].edges[::-1], survival=folds[0].survival[:, ::-1])
    assert fold_metrics(turned) == fold_metrics(folds[0])


def test_grid_lies_inside_what_training_and_test_fold_identify(folds: list[Fold]):
    for fold in folds:
        grid = time_grid(fold)
        assert (np.diff(grid) > 0).all()
        assert fold.test.time[fold.test.event].min() <= grid[0]
        assert grid[-1] < min(horizon(fold.train), fold.test.time.max())
        assert grid[-1] <= max(EDGES)


def test_uno_is_that_of_scikit_survival_truncated_at_the_horizon(folds: list[Fold]):
    fold = folds[0]
    test = Surv.from_arrays(fold.test.event, fold.test.time)
    tau = np.nextafter(horizon(fold.train), np.inf)
    expected = sksurv_metrics.concordance_index_ipcw(censored(fold), test, fold.risk, tau=tau)[0]
    assert fold_metrics(fold)[1]["c_index_uno"].value == pytest.approx(expected, abs=1e-12)


def test_ibs_and_auc_are_those_of_scikit_survival_on_the_same_grid(folds: list[Fold]):
    fold, grid = folds[0], time_grid(folds[0])
    inside = fold.test.time <= horizon(fold.train)  # weights do not exist for events beyond; the package raises on them
    test = Surv.from_arrays(fold.test.event & inside, fold.test.time)
    _, figures = fold_metrics(fold)
    ibs = sksurv_metrics.integrated_brier_score(censored(fold), test, survival_at(fold, grid), grid)
    assert figures["ibs"].value == pytest.approx(ibs, abs=1e-9)
    scores, _ = sksurv_metrics.cumulative_dynamic_auc(censored(fold), test, fold.risk, grid)
    assert scores.min() <= figures["auc"].value <= scores.max()
    assert 0.5 < figures["auc"].value < 1


def test_brier_score_without_censoring_is_the_mean_squared_error():
    """One patient dies at 10, one at 30 months; S is 0.75 for both throughout: IBS = mean of .75² and .25² where they differ."""
    ids, every = np.array(["a", "b"]), np.array([True, True])
    train = FollowUp(np.array([str(i) for i in range(40)]), np.arange(1.0, 41), np.ones(40, bool))
    survival, edges = np.full((2, 2), 0.75), np.array([1.0, 50.0])
    test = FollowUp(ids, np.array([10.0, 30.0]), every)
    fold = Fold(0, None, None, test, np.array([1.0, 0.0]), survival, edges, train, {}, None, (), "last", 1, 1)
    assert fold_metrics(fold)[1]["ibs"].value == pytest.approx((0.75**2 + 0.25**2) / 2)
    assert fold_metrics(fold)[1]["auc"].value == 1.0


def test_the_training_fold_is_the_reference_for_censoring(folds: list[Fold]):
    other = dataclasses.replace(folds[0], train=dataclasses.replace(folds[0].train, event=~folds[0].train.event))
    assert fold_metrics(other)[1]["c_index_uno"].value != fold_metrics(folds[0])[1]["c_index_uno"].value


def test_horizon_is_a_time_at_which_censoring_is_still_known(folds: list[Fold]):
    time = np.array([5, 8, 11, 20, 25, 60, 60, 60, 60, 60.0])
    event = np.isin(time, [5, 11, 25])
    administrative = FollowUp(np.arange(10).astype(str), time, event)
    assert horizon(administrative) == 25, "everybody is censored at 60, where the censoring survival is 0"
    everybody_at_once = FollowUp(np.arange(3).astype(str), np.full(3, 60.0), np.zeros(3, bool))
    assert np.isnan(horizon(everybody_at_once))


@pytest.mark.parametrize(
    "change, metric, reason",
    [
        ({"event": False}, "ibs", "no event in the test fold"),
        ({"edges": 0}, "ibs", "predictions.tsv has no survival curve (surv_<t>)"),
        ({"train_time": 60.0}, "c_index_uno", "the training fold has no time at which patients are still under observation"),
    ],
)
def test_what_cannot_be_computed_is_nan_with_its_reason(folds: list[Fold], change: dict, metric: str, reason: str):
    fold = folds[0]
    if "event" in change:
        fold = dataclasses.replace(fold, test=dataclasses.replace(fold.test, event=np.zeros(len(fold.risk), bool)))
    if "edges" in change:
        fold = dataclasses.replace(fold, edges=fold.edges[:0], survival=fold.survival[:, :0])
    if "train_time" in change:
        n = len(fold.train.time)
        fold = dataclasses.replace(fold, train=FollowUp(fold.train.patient_id, np.full(n, 60.0), np.zeros(n, bool)))
    figure = fold_metrics(fold)[1][metric]
    assert np.isnan(figure.value)
    assert figure.note == reason


def test_median_split_is_made_within_folds(folds: list[Fold]):
    """Shifting all risks of one fold moves nobody into the other group."""
    shifted = [dataclasses.replace(fold, risk=fold.risk + 100 * fold.number) for fold in folds]
    np.testing.assert_array_equal(median_split(shifted)[2], median_split(folds)[2])
    assert logrank(shifted) == logrank(folds)
    assert logrank(folds).value < 1e-3


def test_logrank_of_equal_risks_is_nan_with_its_reason(folds: list[Fold]):
    flat = [dataclasses.replace(fold, risk=np.zeros_like(fold.risk)) for fold in folds]
    assert logrank(flat).note == "one of the risk groups is empty"
    assert np.isnan(logrank(flat).value)


def test_the_majority_is_guessed_from_the_training_fold(folds: list[Fold]):
    """Most training patients have no event, most test patients have one: guessing is then wrong more often than right."""
    fold = folds[0]
    label, known = np.arange(len(fold.risk)) % 4 > 0, np.arange(len(fold.train.time)) % 4 == 0
    turned = dataclasses.replace(fold, test=dataclasses.replace(fold.test, event=label), train=dataclasses.replace(fold.train, event=known))
    assert fold_metrics(turned, "binary")[1]["majority"].value == pytest.approx(1 - label.mean())
