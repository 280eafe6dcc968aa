import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.omics.scaling import IMPUTATIONS, METHODS, Scaler

TRAIN = np.float32([[1, 5, np.nan], [3, 5, 2], [np.nan, 5, 4]])


def test_zscore_uses_the_population_sd_and_a_constant_feature_becomes_zero():
    out = Scaler.fit(TRAIN, "zscore").transform(TRAIN)
    np.testing.assert_allclose(out, [[-1, 0, 0], [1, 0, -1], [0, 0, 1]], atol=1e-6)


def test_a_constant_that_floats_cannot_hold_exactly_still_divides_by_one():
    scaler = Scaler.fit(np.full((7, 1), 0.1, dtype=np.float32))
    assert scaler.spread[0] == 1
    assert scaler.transform(np.float32([[1.1]]))[0, 0] == pytest.approx(1)


def test_minmax_is_one_map_for_the_whole_matrix_and_fills_with_the_scaled_mean():
    scaler = Scaler.fit(TRAIN, "minmax_global")
    np.testing.assert_allclose(scaler.transform(TRAIN), [[-1, 1, 0], [0, 1, -0.5], [-0.5, 1, 0.5]], atol=1e-6)
    np.testing.assert_allclose(scaler.transform(np.float32([[9, 1, np.nan]])), [[3, -1, 0]], atol=1e-6)


def test_minmax_maps_the_floor_of_log2_tpm_to_minus_one():
    values = np.float32(np.random.default_rng(0).uniform(np.log2(0.001), 16.6, (40, 30)))
    values[3, 4] = np.float32(np.log2(0.001))
    out = Scaler.fit(values, "minmax_global").transform(values)
    assert out.min() == pytest.approx(-1, abs=1e-6)
    assert out.max() == pytest.approx(1, abs=1e-6)


def test_none_leaves_values_and_fills_with_the_training_mean():
    np.testing.assert_allclose(Scaler.fit(TRAIN, "none").transform(TRAIN), [[1, 5, 3], [3, 5, 2], [2, 5, 4]])


def test_clipping_comes_after_scaling():
    out = Scaler.fit(np.float32([[0], [2]]), clip=1.5).transform(np.float32([[100], [-100], [2], [np.nan]]))
    np.testing.assert_allclose(out[:, 0], [1.5, -1.5, 1, 0])


@pytest.mark.parametrize("method", METHODS)
def test_a_feature_that_no_training_patient_has_becomes_zero_for_everybody(method):
    """Whoever has it would else bring it in on its own scale."""
    scaler = Scaler.fit(np.float32([[1, np.nan], [2, np.nan]]), method)
    np.testing.assert_array_equal(scaler.transform(np.float32([[1, np.nan], [1, 250]]))[:, 1], 0)
    np.testing.assert_array_equal(Scaler.from_dict(scaler.to_dict()).transform(np.float32([[1, 250]]))[:, 1], 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_matrix_stays_finite(method):
    assert np.isfinite(Scaler.fit(np.full((3, 2), 4.0), method).transform(np.full((1, 2), 4.0))).all()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(METHODS), st.floats(-1e6, 1e6, width=32), st.integers(0, 2**16))
def test_what_a_test_patient_holds_changes_nothing_for_the_others(method, value, seed):
    values = np.random.default_rng(seed).normal(size=(12, 5)).astype(np.float32)
    train, test = np.arange(9), np.arange(9, 12)
    changed = values.copy()
    changed[test[0]] = value
    before, after = (Scaler.fit(x[train], method) for x in (values, changed))
    assert before.to_dict() == after.to_dict()
    np.testing.assert_array_equal(np.delete(before.transform(values), test[0], 0), np.delete(after.transform(changed), test[0], 0))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(METHODS), st.permutations(range(8)))
def test_the_order_of_training_rows_does_not_matter(method, order):
    values = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    np.testing.assert_allclose(
        Scaler.fit(values, method).transform(values), Scaler.fit(values[list(order)], method).transform(values), rtol=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clip", [None, 5.0])
@pytest.mark.parametrize("impute", IMPUTATIONS)
def test_a_scaler_survives_yaml_bit_for_bit(method, clip, impute):
    scaler = Scaler.fit(TRAIN, method, clip, impute)
    back = Scaler.from_dict(yaml.safe_load(yaml.safe_dump(scaler.to_dict())))
    np.testing.assert_array_equal(back.transform(TRAIN), scaler.transform(TRAIN))
    assert back.to_dict() == scaler.to_dict()


def test_a_scaler_written_before_imputation_was_a_choice_is_read_as_it_was():
    saved = Scaler.fit(TRAIN).to_dict()
    old = {key: saved[key] for key in ("method", "clip", "center", "spread", "fill")}
    assert Scaler.from_dict(old).to_dict() == saved


def test_minmax_maps_each_training_feature_to_zero_and_one_and_a_constant_to_zero():
    scaler = Scaler.fit(TRAIN, "minmax")
    np.testing.assert_allclose(scaler.transform(TRAIN), [[0, 0, 0.5], [1, 0, 0], [0.5, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(scaler.transform(np.float32([[5, 6, np.nan]])), [[2, 1, 0.5]], atol=1e-6)


def test_minmax_and_its_imputations_agree_with_scikit_learn():
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import MinMaxScaler

    random = np.random.default_rng(3)
    values = random.integers(0, 6, (60, 12)).astype(np.float32)
    values[random.random(values.shape) < 0.2] = np.nan
    train, test = values[:40], values[40:]
    for impute in IMPUTATIONS:
        theirs = SimpleImputer(strategy=impute).fit(train)
        scale = MinMaxScaler().fit(train)
        ours = Scaler.fit(train, "minmax", impute=impute).transform(test)
        np.testing.assert_allclose(ours, scale.transform(theirs.transform(test)), atol=1e-6)


@pytest.mark.parametrize(("impute", "filled"), [("mean", 4.0), ("median", 2.5), ("most_frequent", 1.0)])
def test_a_missing_value_becomes_the_typical_one_and_is_then_scaled(impute, filled):
    train = np.float32([[4], [1], [9], [1], [9], [0], [np.nan]])
    np.testing.assert_allclose(Scaler.fit(train, "none", impute=impute).transform(train)[-1, 0], filled)
    np.testing.assert_allclose(Scaler.fit(train, "minmax", impute=impute).transform(train)[-1, 0], filled / 9, rtol=1e-6)
    assert Scaler.fit(train, "minmax", clip=0.2, impute=impute).transform(train)[-1, 0] <= np.float32(0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (TRAIN, "zscored"),
            "unknown scaling; found 'zscored', expected zscore or minmax or minmax_global or none. Did you mean 'zscore'?",
        ),
        (
            (TRAIN, "none", None, "mode"),
            "unknown imputation; found 'mode', expected mean or median or most_frequent. Did you mean 'mean'?",
        ),
        ((TRAIN, "none", 0), "clip is not positive; found '0', expected a number above 0, or nothing."),
        ((TRAIN * np.nan,), "the training fold has no value to fit the scaling on; expected at least one training patient with a value."),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments, message):
    with pytest.raises(InputError) as error:
        Scaler.fit(*arguments)
    assert str(error.value) == message


def test_rows_of_another_width_are_refused():
    with pytest.raises(InputError, match=r"fitted on other features; found '4', expected 3 features"):
        Scaler.fit(TRAIN).transform(np.zeros((2, 4), np.float32))
