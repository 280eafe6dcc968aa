"""The figures of censored data against scikit-survival, lifelines and brute force, on random data with every kind of tie."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import CoxPHFitter
from lifelines.statistics import logrank_test
from sksurv import metrics
from sksurv.nonparametric import CensoringDistributionEstimator, kaplan_meier_estimator
from sksurv.util import Surv

from pipeline.evaluation.censored import (
    brier_scores,
    dynamic_auc,
    event_table,
    hazard_ratio,
    inverse_weights,
    kaplan_meier,
    logrank_p,
    mean_auc,
)
from pipeline.evaluation.concordance import harrell_and_uno


def uno(time: np.ndarray, event: np.ndarray, risk: np.ndarray, weight: np.ndarray) -> float:
    return harrell_and_uno(time, event, risk, weight)[1]


SEEDS = st.integers(0, 2**31)


def sample(seed: int, n: int, distinct: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """time, event, risk with few distinct values; the first two patients die, the last is followed longest."""
    rng = np.random.default_rng(seed)
    time, event = rng.integers(1, distinct, n).astype(float), rng.random(n) < 0.6
    event[:2], time[-1], event[-1] = True, distinct + 1.0, False
    return time, event, rng.integers(0, 8, n) / 4


def train_and_test(seed: int) -> tuple[tuple, tuple, np.ndarray]:
    """Training (time, event), test (time, event, risk) without events at the very end, and times where all is identifiable."""
    train, test = sample(seed, 60), sample(seed + 1, 40)
    return train[:2], test, np.linspace(np.sort(test[0][test[1]])[0], 14.5, 9)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_kaplan_meier_and_its_interval_are_those_of_scikit_survival(seed: int):
    time, event, _ = sample(seed, 30)
    ours = kaplan_meier(time, event)
    times, survival, (low, high) = kaplan_meier_estimator(event, time, conf_type="log-log")
    np.testing.assert_array_equal(ours.times, times)
    np.testing.assert_allclose(ours.survival, survival, atol=1e-12)
    inside = (survival < 1) & (survival > 0)
    np.testing.assert_allclose([ours.interval(t) for t in times[inside]], np.column_stack([low, high])[inside], atol=1e-9)
    assert ours.at(np.array([0.0]))[0] == 1
    _, censoring = kaplan_meier_estimator(event, time, reverse=True)
    np.testing.assert_allclose(kaplan_meier(time, event, censoring=True).survival, censoring, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_uno_brier_and_auc_are_those_of_scikit_survival(seed: int):
    (time, event), (test_time, test_event, risk), times = train_and_test(seed)
    train, test = Surv.from_arrays(event, time), Surv.from_arrays(test_event, test_time)
    observed = kaplan_meier(time, event, censoring=True)
    weights = CensoringDistributionEstimator().fit(train).predict_ipcw(test)
    np.testing.assert_allclose(inverse_weights(observed, test_time, test_event), weights, rtol=1e-12)
    c = metrics.concordance_index_ipcw(train, test, risk)[0]
    assert uno(test_time, test_event, risk, weights**2) == pytest.approx(c, abs=1e-10)
    survival = np.random.default_rng(seed).random((40, len(times)))
    _, brier = metrics.brier_score(train, test, survival, times)
    np.testing.assert_allclose(brier_scores(observed, test_time, test_event, survival, times), brier, atol=1e-12)
    auc, mean = metrics.cumulative_dynamic_auc(train, test, risk, times)
    ours = dynamic_auc(observed, test_time, test_event, risk, times)
    np.testing.assert_allclose(ours, auc, atol=1e-12)
    assert mean_auc(ours, kaplan_meier(test_time, test_event).at(times)) == pytest.approx(mean, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_uno_is_the_weighted_share_of_pairs_counted_one_by_one(seed: int):
    time, event, risk = sample(seed, 20)
    weight = np.random.default_rng(seed).random(20)
    won = total = 0.0
    for i in np.flatnonzero(event):
        for j in range(20):
            if time[j] > time[i] or (time[j] == time[i] and not event[j]):
                won += weight[i] * (0.5 if risk[i] == risk[j] else risk[i] > risk[j])
                total += weight[i]
    assert uno(time, event, risk, weight) == pytest.approx(won / total, abs=1e-12)


def test_uno_without_a_weighted_pair_does_not_exist():
    c, uno = harrell_and_uno(np.array([1.0, 2.0]), np.array([1, 1]), np.zeros(2), np.zeros(2))
    assert c.value == 0.5
    assert np.isnan(uno)


def halves(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    time, event, risk = sample(seed, n)
    return time, event, risk > 0.8, np.random.default_rng(seed).integers(0, 3, n)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_logrank_of_one_stratum_is_that_of_lifelines(seed: int):
    time, event, high, _ = halves(seed)
    ours = logrank_p(event_table(time, event, high, np.zeros(len(time), int)))
    theirs = logrank_test(time[high], time[~high], event[high], event[~high]).p_value
    assert ours == pytest.approx(theirs, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_stratified_logrank_adds_up_what_is_observed_and_expected_in_each_stratum(seed: int):
    time, event, high, stratum = halves(seed)
    excess = variance = 0.0
    for s in np.unique(stratum):
        for t in np.unique(time[event & (stratum == s)]):
            at_risk, dead = (stratum == s) & (time >= t), (stratum == s) & (time == t) & event
            n, n1, d = at_risk.sum(), (at_risk & high).sum(), dead.sum()
            excess += (dead & high).sum() - d * n1 / n
            variance += d * n1 * (n - n1) * (n - d) / (n * n * (n - 1)) if n > 1 else 0
    assert logrank_p(event_table(time, event, high, stratum)) == pytest.approx(math.erfc(abs(excess) / math.sqrt(2 * variance)), rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("strata", [False, True])
def test_hazard_ratio_is_that_of_lifelines(seed: int, strata: bool):
    time, event, high, stratum = halves(seed, 80)
    stratum = stratum if strata else np.zeros(80, int)
    table = pd.DataFrame({"time": time, "event": event, "high": high.astype(float), "stratum": stratum})
    fitted = CoxPHFitter().fit(table, "time", "event", strata=["stratum"], fit_options={"precision": 1e-12})
    ours = hazard_ratio(event_table(time, event, high, stratum))
    theirs = [fitted.hazard_ratios_["high"], *np.exp(fitted.confidence_intervals_.loc["high"])]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_swapping_the_groups_inverts_the_hazard_ratio_and_keeps_p():
    time, event, high, stratum = halves(3, 80)
    one, two = (event_table(time, event, group, stratum) for group in (high, ~high))
    assert logrank_p(one) == pytest.approx(logrank_p(two))
    value, low, upper = hazard_ratio(two)
    np.testing.assert_allclose(hazard_ratio(one), (1 / value, 1 / upper, 1 / low))


def test_a_hazard_ratio_without_maximum_says_so():
    time, event = np.array([1.0, 2, 3, 4]), np.array([True, True, False, False])
    table = event_table(time, event, time < 3, np.zeros(4, int))
    with pytest.raises(ValueError, match="every event that tells the groups apart lies in one of them"):
        hazard_ratio(table)
    with pytest.raises(ValueError, match="the two risk groups are never at risk together"):
        logrank_p(event_table(time, event, time < 3, (time < 3).astype(int)))
