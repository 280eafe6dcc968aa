import time as clock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, pearsonr

from pipeline.errors import InputError
from pipeline.omics.selection import Selection, score_test


def cohort(seed, patients=60, features=8, ties=False, missing=0.0):
    rng = np.random.default_rng(seed)
    values = rng.normal(3, 2, (patients, features)).astype(np.float32)
    values[:, -2] = rng.random(patients) < 0.3
    values[:, -1] = rng.integers(-2, 3, patients)
    values[rng.random(values.shape) < missing] = np.nan
    time = rng.exponential(20, patients)
    return values, np.ceil(time / 8) if ties else time, (rng.random(patients) < 0.5).astype(int)


def brute_force(x, time, event):
    """U²/V of one feature, patient by patient."""
    keep = ~np.isnan(x)
    x, time, event = x[keep].astype(float), time[keep], event[keep]
    score = information = 0.0
    for t in sorted(set(time[event == 1])):
        risk = x[time >= t]
        died = x[(time == t) & (event == 1)]
        n, d = len(risk), len(died)
        score += (died - risk.mean()).sum()
        if n > 1:
            information += d * (n - d) / (n - 1) * risk.var()
    return score**2 / information if information > 1e-9 else 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0.0, 0.2]))
def test_the_score_test_agrees_with_a_sum_patient_by_patient(seed, ties, missing):
    values, time, event = cohort(seed, 40, 6, ties, missing)
    expected = [brute_force(values[:, j], time, event) for j in range(values.shape[1])]
    np.testing.assert_allclose(score_test(values, time, event), expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_without_ties_it_is_the_score_test_of_the_partial_likelihood_in_scikit_survival(seed):
    from sksurv.linear_model.coxph import CoxPHOptimizer

    values, time, event = cohort(seed)
    found = score_test(values, time, event)
    for j in range(values.shape[1]):
        x = values[:, [j]].astype(float)
        optimizer = CoxPHOptimizer(x, event.astype(bool), time, np.zeros(1), "breslow")
        optimizer.update(np.zeros(1))  # gradient and Hessian of the mean negative log likelihood at β = 0
        n = len(time)
        assert found[j] == pytest.approx((n * optimizer.gradient[0]) ** 2 / (n * optimizer.hessian[0, 0]), rel=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_for_a_mutation_it_is_the_log_rank_test(ties):
    from lifelines.statistics import logrank_test
    from sksurv.compare import compare_survival
    from sksurv.util import Surv

    values, time, event = cohort(5, 120, ties=ties)
    mutated = values[:, -2] == 1
    found = score_test(values, time, event)[-2]
    result = logrank_test(time[mutated], time[~mutated], event[mutated], event[~mutated])
    assert found == pytest.approx(result.test_statistic, rel=1e-6)
    assert chi2.sf(found, 1) == pytest.approx(result.p_value, rel=1e-5)
    assert found == pytest.approx(compare_survival(Surv.from_arrays(event, time), mutated)[0], rel=1e-6)


def test_for_a_binary_label_it_is_the_test_for_trend_and_ranks_as_the_logistic_score_test():
    values, _, label = cohort(7)
    found = score_test(values, np.ones(len(label)), label)
    trend = [(len(label) - 1) * pearsonr(values[:, j].astype(float), label)[0] ** 2 for j in range(values.shape[1])]
    np.testing.assert_allclose(found, trend, rtol=1e-6)
    p = label.mean()
    centred = values.astype(float) - values.astype(float).mean(axis=0)
    logistic = (centred * (label - p)[:, None]).sum(axis=0) ** 2 / (p * (1 - p) * (centred**2).sum(axis=0))
    np.testing.assert_array_equal(np.argsort(found), np.argsort(logistic))


def test_constant_and_absent_features_score_nothing():
    values, time, event = cohort(1)
    values[:, 0], values[:, 1] = 0.1, np.nan
    found = score_test(values, time, event)
    assert found[:2].tolist() == [0, 0]
    assert (found[2:] > 0).all()


def test_the_planted_feature_is_found():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 500))
    time = rng.exponential(np.exp(-1.0 * values[:, 123] + 0.8 * values[:, 7]))
    chosen = Selection.fit(values, time, np.ones(200), "univariate", 2)
    assert chosen.columns.tolist() == [7, 123]


def test_variance_takes_the_widest_features_of_what_is_known():
    values = np.array([[0, 5, np.nan, 1, np.nan], [0, -5, 3, 2, np.nan], [0, np.nan, -3, 3, np.nan]])
    chosen = Selection.fit(values, np.ones(3), np.ones(3), "variance", 2)
    assert chosen.columns.tolist() == [1, 2]
    assert Selection.fit(values, np.ones(3), np.ones(3), "variance", 4).columns.tolist() == [0, 1, 2, 3]


def test_equal_features_are_taken_in_column_order_and_too_few_are_all_taken():
    column = np.random.default_rng(0).normal(size=(30, 1))
    values = np.repeat(column, 6, axis=1)
    labels = np.arange(30.0), np.ones(30)
    for method in ("variance", "univariate"):
        assert Selection.fit(values, *labels, method, 3).columns.tolist() == [0, 1, 2]
        assert Selection.fit(values, *labels, method, 99).columns.tolist() == list(range(6))
    assert Selection.fit(values, *labels).columns.tolist() == list(range(6))


@pytest.mark.parametrize("method", ["variance", "univariate"])
def test_features_are_counted_by_kind_where_asked(method):
    values, time, event = cohort(2, 80, 30)
    kinds = ["rnaseq"] * 10 + ["cnv"] * 10 + ["mut"] * 10
    chosen = Selection.fit(values, time, event, method, {"rnaseq": 4, "cnv": 0}, kinds=kinds)
    assert [sum(kinds[c] == kind for c in chosen.columns) for kind in ("rnaseq", "cnv", "mut")] == [4, 0, 10]
    assert (chosen.columns[:4] == Selection.fit(values[:, :10], time, event, method, 4).columns).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["variance", "univariate"]), st.booleans())
def test_the_order_of_the_rows_changes_nothing_even_among_mutations_that_tie(seed, method, binary):
    rng = np.random.default_rng(seed)
    values = (rng.random((50, 40)) < 0.2).astype(float) if binary else rng.normal(10, 1, (50, 40))
    time = np.ones(50) if binary else np.ceil(rng.exponential(5, 50))
    event = np.arange(50) % 3 == 0
    order = rng.permutation(50)
    chosen = Selection.fit(values, time, event, method, 15)
    again = Selection.fit(values[order], time[order], event[order], method, 15)
    np.testing.assert_array_equal(chosen.columns, again.columns)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-100, 100))
def test_the_score_test_does_not_depend_on_a_features_unit_or_on_the_clock(seed, factor, shift):
    values, time, event = cohort(seed)
    values = values.astype(float)
    expected = score_test(values, time, event)
    np.testing.assert_allclose(score_test(values * factor + shift, time, event), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(score_test(values, np.log(time), event), expected, rtol=1e-9)


def test_a_selection_survives_yaml():
    import yaml

    values, time, event = cohort(3)
    chosen = Selection.fit(values, time, event, "univariate", 3)
    back = Selection.from_dict(yaml.safe_load(yaml.safe_dump(chosen.to_dict())))
    np.testing.assert_array_equal(back.columns, chosen.columns)
    np.testing.assert_array_equal(back.apply(values), values[:, chosen.columns])
    assert (back.method, back.total) == ("univariate", 8)


VALUES, TIME, EVENT = cohort(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("variances", 3), "unknown selection; found 'variances', expected none or variance or univariate. Did you mean 'variance'?"),
        (("variance", 0), "number of features to select is not positive; found '0', expected 1 or more."),
        (("variance", {"cnv": 3}), "features are to be selected by kind, and have none; found 'cnv', expected a number."),
        (
            ("variance", {"rna": 3}, ["rnaseq"] * 8),
            "no feature of this kind to select; found 'rna', expected rnaseq. Did you mean 'rnaseq'?",
        ),
        (("variance", {"cnv": -1}, ["cnv"] * 8), "number of cnv features to select is negative; found '-1', expected 0 or more."),
        (
            ("variance", {"cnv": 0}, ["cnv"] * 8),
            "no feature is to be selected; found \"{'cnv': 0}\", expected a number above 0 for at least one kind.",
        ),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(arguments, message):
    with pytest.raises(InputError) as error:
        Selection.fit(VALUES, TIME, EVENT, *arguments)
    assert str(error.value) == message


def test_labels_without_an_event_rank_nothing_and_other_features_are_refused():
    with pytest.raises(
        InputError, match="the training labels rank no feature; found '0 events', expected events at which others are at risk"
    ):
        Selection.fit(VALUES, TIME, np.zeros(60), "univariate", 3)
    with pytest.raises(InputError, match="the features were chosen among others; found '7', expected 8 features"):
        Selection.fit(VALUES, TIME, EVENT, "variance", 3).apply(VALUES[:, 1:])


def test_three_hundred_patients_and_twenty_thousand_genes_take_less_than_two_seconds():
    values, time, event = cohort(0, 300, 20_000)
    for method in ("variance", "univariate"):
        start = clock.process_time()
        Selection.fit(values, time, event, method, 1000)
        assert clock.process_time() - start < 2  # 0.3 and 0.9 s alone
