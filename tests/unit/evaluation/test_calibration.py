import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, chisquare, kstest

from pipeline.evaluation.calibration import COLUMNS, calibration_table, d_calibration, decile_counts
from pipeline.evaluation.censored import kaplan_meier
from pipeline.evaluation.folds import Fold, FollowUp

EDGES = np.linspace(2, 200, 100)


def fold(seed: int, n: int = 300, *, number: int = 0, hazard_error: float = 1.0, edges: np.ndarray = EDGES) -> Fold:
    """Exponential times with their true curves, or with hazards wrong by a factor."""
    rng = np.random.default_rng(seed)
    hazard = np.exp(rng.normal(size=n)) / 40
    death, censored = rng.exponential(1 / hazard), rng.uniform(5, 150, n)
    ids = np.array([f"{number}-{i:04d}" for i in range(n)])
    test = FollowUp(ids, np.minimum(death, censored), death <= censored)
    survival = np.exp(-hazard_error * hazard[:, None] * edges)
    return Fold(number, None, None, test, hazard, survival, edges, test, {}, pd.DataFrame(), (), "last", 1, 1)


def test_deciles_are_counted_as_the_paper_spreads_the_censored():
    """One dies at S = 0.35; one is censored at 0.25: 0.05/0.25 of him in [.2, .3), 0.1/0.25 in each decile below; one at S = 0."""
    test = FollowUp(np.array(["a", "b", "c"]), np.array([10.0, 10.0, 10.0]), np.array([True, False, False]))
    one = Fold(0, None, None, test, np.zeros(3), np.array([[0.35], [0.25], [0.0]]), np.array([10.0]), test, {}, None, (), "last", 1, 1)
    np.testing.assert_allclose(decile_counts([one]), [0.4 + 1, 0.4, 0.2, 1, 0, 0, 0, 0, 0, 0], atol=1e-12)
    statistic, p = chisquare(decile_counts([one]))
    assert statistic > 0
    assert d_calibration([one]).value == pytest.approx(p)


def test_who_outlives_the_last_edge_is_spread_below_the_curve_there():
    """The curve ends at 10 months with S = 0.1; death at 30 tells only that S at death is below it."""
    test = FollowUp(np.array(["a"]), np.array([30.0]), np.array([True]))
    one = Fold(0, None, None, test, np.zeros(1), np.array([[0.2]]), np.array([10.0]), test, {}, None, (), "last", 1, 1)
    np.testing.assert_allclose(decile_counts([one]), [0.5, 0.5, *[0] * 8], atol=1e-12)


def test_the_truth_is_d_calibrated_and_doubled_hazards_are_not():
    p = np.array([d_calibration([fold(seed)]).value for seed in range(200)])
    assert np.mean(p < 0.05) <= 0.09, "censored patients are spread, so the test rejects at most as often as nominal"
    assert kstest(p, "uniform", alternative="greater").pvalue > 1e-3
    assert d_calibration([fold(1, hazard_error=2.0)]).value < 1e-6


def test_a_patient_tested_three_times_counts_once():
    once = [fold(1), fold(2, number=1)]
    repeated = [dataclasses.replace(f, number=k) for k, f in enumerate([*once, *once, *once])]
    np.testing.assert_allclose(decile_counts(repeated), decile_counts(once))
    pd.testing.assert_frame_equal(calibration_table(repeated), calibration_table(once))


def test_without_curves_d_calibration_is_nan_with_its_reason_and_the_table_empty():
    bare = dataclasses.replace(fold(1), edges=np.zeros(0), survival=np.zeros((300, 0)))
    assert d_calibration([bare]).note == "predictions.tsv has no survival curve (surv_<t>)"
    assert d_calibration([]).note == "no patient was predicted"
    assert list(calibration_table([bare]).columns) == list(COLUMNS)
    assert calibration_table([bare]).empty


def test_the_table_holds_quintiles_at_the_quartiles_of_follow_up_and_covers_the_truth():
    one = fold(7, 2000)
    table = calibration_table([one])
    np.testing.assert_allclose(table.time.unique(), np.quantile(one.test.time, [0.25, 0.5, 0.75]))
    assert table.groupby("time").patients.sum().eq(2000).all()
    assert table.group.tolist() == [1, 2, 3, 4, 5] * 3
    assert table.groupby("time").predicted.apply(lambda x: x.is_monotonic_increasing).all()
    covered = (table.ci_low <= table.predicted) & (table.predicted <= table.ci_high)
    assert covered.mean() >= 0.8
    wrong = calibration_table([fold(7, 2000, hazard_error=2.0)])
    assert (wrong.ci_low > wrong.predicted).mean() > 0.5


def test_observed_is_kaplan_meier_of_the_group():
    one = fold(3, 100)
    table = calibration_table([one])
    at = table.time[0]
    chance = np.array([np.interp(at, [0, *EDGES], [1, *curve]) for curve in one.survival])
    lowest = np.argsort(chance)[:20]
    curve = kaplan_meier(one.test.time[lowest], one.test.event[lowest])
    assert table.predicted[0] == pytest.approx(chance[lowest].mean())
    assert table.observed[0] == pytest.approx(float(curve.at(at)))
    assert (table.ci_low[0], table.ci_high[0]) == pytest.approx(curve.interval(at))


def test_few_patients_make_few_groups_and_equal_predictions_one():
    assert calibration_table([fold(1, 45)]).group.max() == 2
    flat = fold(1)
    flat = dataclasses.replace(flat, survival=np.tile(flat.survival[:1], (300, 1)))
    assert calibration_table([flat]).group.max() == 1


def test_horizons_stop_where_a_curve_ends():
    one = fold(1)
    short = fold(2, number=1, edges=np.array([np.quantile(one.test.time, 0.5)]))
    assert (calibration_table([one, short]).time <= short.edges[-1]).all()


def test_a_binary_label_is_shown_as_probability_and_share_with_wilsons_interval():
    """30 patients at probability 0.1 of whom 3 have the event, 30 at 0.8 of whom 24 have."""
    ids, label = np.array([f"P{i:02d}" for i in range(60)]), np.r_[np.repeat([1, 0], [3, 27]), np.repeat([1, 0], [24, 6])].astype(bool)
    test, survival = FollowUp(ids, np.full(60, 36.0), label), np.repeat([0.9, 0.2], 30)[:, None]
    one = Fold(0, None, None, test, -survival[:, 0], survival, np.array([36.0]), test, {}, None, (), "last", 1, 1)
    table = calibration_table([one], "binary")
    assert table.time.tolist() == [36, 36]
    assert table.patients.tolist() == [30, 30]
    np.testing.assert_allclose(table[["predicted", "observed"]], [[0.1, 0.1], [0.8, 0.8]])
    wilson = [binomtest(events, 30).proportion_ci(method="wilson") for events in (3, 24)]
    np.testing.assert_allclose(table[["ci_low", "ci_high"]], wilson)
