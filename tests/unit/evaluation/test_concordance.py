import contextlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation import concordance
from pipeline.evaluation.concordance import bootstrap_intervals, comparable_pairs, draw, harrell, resampled_concordant, resampled_pairs


def follow_up(seed: int, n: int, *, times: int = 12, risks: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Few distinct times and risks, so that every kind of tie occurs."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, times, n).astype(float), rng.integers(0, 2, n), rng.integers(0, risks, n) / 4


def test_c_of_four_patients_computed_by_hand():
    # a dies at 1, b is censored at 2, c dies at 3, d is censored at 4; pairs: ab, ac, ad, cd
    time, event = np.array([1, 2, 3, 4.0]), np.array([1, 0, 1, 0])
    # ab: right, ac: wrong, ad: tie, cd: right -> 2.5 of 4
    result = harrell(time, event, np.array([2, 1, 3, 2.0]))
    assert result == (2.5 / 4, 4, 2, "")


def test_same_time_event_and_censored_is_comparable_but_two_events_are_not():
    time = np.array([5.0, 5.0])
    assert harrell(time, np.array([1, 0]), np.array([1.0, 0.0])) == (1.0, 1, 1, "")
    assert harrell(time, np.array([1, 1]), np.array([1.0, 0.0])).pairs == 0


def test_risks_closer_than_the_tolerance_are_tied():
    time, event = np.array([1.0, 2.0]), np.array([1, 1])
    assert harrell(time, event, np.array([0.0, 0.9e-8])).value == 0.5
    assert harrell(time, event, np.array([0.0, 1.1e-8])).value == 0.0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 40))
def test_c_agrees_with_scikit_survival(seed: int, n: int):
    from sksurv.exceptions import NoComparablePairException
    from sksurv.metrics import concordance_index_censored

    time, event, risk = follow_up(seed, n)
    ours = harrell(time, event, risk)
    theirs = (np.nan, 0, 0, 0)
    with np.errstate(invalid="ignore"), contextlib.suppress(NoComparablePairException, ValueError):  # no pair, or all censored
        theirs = concordance_index_censored(event.astype(bool), time, risk, tied_tol=1e-8)
    assert ours.value == pytest.approx(theirs[0], abs=1e-12, nan_ok=True)
    assert ours.pairs == sum(theirs[1:4])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 30))
def test_c_does_not_depend_on_the_order_nor_on_the_scale_and_turns_over_with_the_sign(seed: int, n: int):
    time, event, risk = follow_up(seed, n)
    order = np.random.default_rng(seed).permutation(n)
    c = harrell(time, event, risk)
    np.testing.assert_equal(harrell(time[order], event[order], risk[order]), c)
    np.testing.assert_equal(harrell(time * 30.4, event, 7 * risk - 3), c)
    np.testing.assert_allclose(harrell(time, event, -risk).value, 1 - c.value)


def test_no_comparable_pair_is_nan_with_a_reason():
    result = harrell(np.array([1.0, 2.0]), np.array([0, 0]), np.array([0.0, 1.0]))
    assert np.isnan(result.value)
    assert result.reason == "no comparable pair (2 patients, 0 events)"
    assert np.isnan(harrell(np.zeros(0), np.zeros(0), np.zeros(0)).value)


def test_a_nan_risk_is_nan_with_a_reason_and_never_dropped():
    result = harrell(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 1]), np.array([0.0, np.nan, 1.0]))
    assert np.isnan(result.value)
    assert result.reason == "the risk of 1 of 3 patients is not a finite number"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.sampled_from([1, 3, 256]))
def test_resampled_pairs_equal_those_of_the_patients_repeated(seed: int, height: int):
    time, event, risk = follow_up(seed, 15)
    pairs, counts = comparable_pairs(time, event), draw(15, 5, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concordance, "BLOCK_ROWS", height)
        concordant = resampled_concordant(pairs, risk, counts[:, pairs.order])
    comparable = resampled_pairs(pairs, counts[:, pairs.order])
    for sample in range(5):
        repeated = harrell(*(np.repeat(x, counts[sample].astype(int)) for x in (time, event, risk)))
        assert comparable[sample] == repeated.pairs
        if repeated.pairs:
            assert concordant[sample] / comparable[sample] == repeated.value


def test_a_draw_holds_as_many_patients_as_there_are_and_takes_each_equally_often():
    counts = draw(50, 4000, seed=3)
    assert (counts.sum(1) == 50).all()
    np.testing.assert_allclose(counts.mean(0), 1, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(counts.var(0), 1 - 1 / 50, atol=0.15)


def continuous(seed: int, n: int = 80, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hazard = rng.normal(size=n)
    death, censored = rng.exponential(np.exp(-hazard)), rng.exponential(2, n)
    return np.minimum(death, censored), death <= censored, signal * hazard + rng.normal(size=n)


def named(folds: list) -> list:
    """The folds with ids; every patient is tested once."""
    return [(np.array([f"{k}-{i:05d}" for i in range(len(fold[0]))]), *fold) for k, fold in enumerate(folds)]


def test_intervals_are_ordered_hold_the_estimate_and_repeat_exactly():
    folds = [continuous(seed) for seed in range(4)]
    first = bootstrap_intervals(named(folds), replicates=500, seed=1)
    mean = np.mean([harrell(*fold).value for fold in folds])
    assert first.mean.low < mean < first.mean.high
    assert first.pooled.low < mean < first.pooled.high
    widths = [interval.high - interval.low for interval in first.folds]
    assert min(widths) > first.mean.high - first.mean.low, "a mean over four folds must be known better than one fold"
    assert bootstrap_intervals(named(folds), replicates=500, seed=1) == first
    assert bootstrap_intervals(named(folds), replicates=500, seed=2) != first


def test_the_interval_covers_the_true_c_in_about_95_of_100_studies():
    truth = harrell(*continuous(999, n=4000)).value
    hits = 0
    for study in range(100):
        interval = bootstrap_intervals(named([continuous(10 * study + k, n=60) for k in range(3)]), replicates=300, seed=study).mean
        hits += interval.low <= truth <= interval.high
    assert 88 <= hits <= 100


def test_pooled_interval_never_compares_patients_of_two_folds():
    """Perfect order within each fold, risks of the folds on opposite scales: C is 1 in every replicate."""
    time, event = np.arange(1.0, 21), np.ones(20)
    folds = [(time, event, -time), (time, event, 1000 - time)]
    result = bootstrap_intervals(named(folds), replicates=100, seed=0)
    assert result.pooled[:2] == result.mean[:2] == (1.0, 1.0)


def test_replicates_without_a_pair_are_counted():
    fold = (np.array([1.0, 2.0]), np.array([1, 0]), np.array([1.0, 0.0]))  # half the samples draw one patient twice
    interval = bootstrap_intervals(named([fold]), replicates=400, seed=0).mean
    assert 150 < interval.lost < 250
    assert interval[:2] == (1.0, 1.0)


def test_ten_repetitions_of_the_same_test_are_known_no_better_than_one():
    """The same patients tested ten times over: resampling folds one by one would make the interval three times too narrow."""
    fold = named([continuous(5)])[0]
    once, often = (bootstrap_intervals([fold] * times, replicates=400, seed=1).mean for times in (1, 10))
    assert often == pytest.approx(once)


def test_repeated_folds_give_an_interval_that_covers_in_about_95_of_100_studies():
    """Five random splits in halves, both halves tested: each patient counts in five folds, together with others each time."""
    truth, hits = harrell(*continuous(999, n=4000)).value, 0
    for study in range(100):
        (ids, *columns), rng = named([continuous(20_000 + study, n=120)])[0], np.random.default_rng(study)
        halves = [np.sort(half) for _ in range(5) for half in np.split(rng.permutation(120), 2)]
        result = bootstrap_intervals([(ids[half], *(x[half] for x in columns)) for half in halves], replicates=200, seed=study).mean
        hits += result.low <= truth <= result.high
    assert 88 <= hits <= 100


def test_no_fold_gives_an_empty_interval():
    assert np.isnan(bootstrap_intervals([], replicates=10, seed=0).mean.low)


def test_concordance_imports_neither_torch_nor_pandas_nor_sksurv():
    heavy = "{'torch', 'pandas', 'sksurv', 'scipy', 'matplotlib', 'lifelines'}"
    code = f"import sys, pipeline.evaluation.concordance; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert out.stdout.strip() == "[]"
