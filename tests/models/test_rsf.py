import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohort.bins import TimeBins
from pipeline.cohort.record import Labels, Patient
from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.interface import Inputs
from pipeline.models.rsf import coarsened, hazard_logits
from pipeline.nn.hazards import survival

PATIENTS, FEATURES = 120, 9


def cohort(seed=0):
    """x [n, d] with ties among values, times with ties; the first feature decides."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.standard_normal((PATIENTS, FEATURES)), 1).astype(np.float32)
    time = np.ceil(20 * rng.exponential(size=PATIENTS) * np.exp(-1.5 * x[:, 0])) + 1
    event = rng.binomial(1, 0.6, PATIENTS)
    bins = TimeBins.fit(time, event, 4)
    return x, Labels([f"p{i:03}" for i in range(PATIENTS)], time, event, bins.assign(time), bins.edges)


def record(x):
    return Patient(vectors={"omics": torch.from_numpy(x)}, present={"omics": torch.ones(len(x), dtype=torch.bool)})


def build(bins=4, **options):
    return build_model("rsf", Inputs(vectors={"omics": FEATURES}, bins=bins), **{"trees": 20, "min_samples_leaf": 4, **options})


def prepared(x, labels, **options):
    torch.manual_seed(7)
    model = build(**options)
    model.prepare([(record(x), labels)])
    return model


@pytest.mark.parametrize("time_points", [None, 12])
def test_survival_at_the_ends_of_the_bins_is_scikit_survivals(time_points):
    from sksurv.ensemble import RandomSurvivalForest
    from sksurv.util import Surv

    x, labels = cohort()
    ends = np.array(labels.edges[1:])
    torch.manual_seed(7)
    seed = int(torch.randint(2**31 - 1, ()))
    time = labels.time if time_points is None else coarsened(labels.time, ends, time_points)
    theirs = RandomSurvivalForest(20, min_samples_leaf=4, min_samples_split=8, max_features="sqrt", random_state=seed)
    theirs.fit(x, Surv.from_arrays(labels.event == 1, time))
    new = cohort(seed=1)[0]
    steps = theirs.predict_survival_function(new, return_array=True)
    expected = steps[:, np.searchsorted(theirs.unique_times_, ends, side="right") - 1]
    found = survival(prepared(x, labels, time_points=time_points)(record(new)).logits)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert expected.std(axis=0).min() > 0.01


def test_before_the_first_time_everybody_is_alive():
    x, labels = cohort()
    early = Labels(labels.patients, labels.time, labels.event, labels.y, (0.0, 0.5, *labels.edges[2:]))
    found = survival(prepared(x, early, time_points=None)(record(x)).logits)
    torch.testing.assert_close(found[:, 0], torch.ones(PATIENTS), atol=1e-5, rtol=0)


def test_it_learns_what_decides_and_is_honest_about_noise():
    from pipeline.evaluation.concordance import harrell
    from pipeline.nn.hazards import risk_score

    (x, labels), (new, truth) = cohort(), cohort(seed=1)
    found = harrell(truth.time, truth.event, risk_score(prepared(x, labels)(record(new)).logits).numpy()).value
    assert found > 0.7
    rng = np.random.default_rng(0)
    shuffled = labels.take(rng.permutation(PATIENTS))
    blind = prepared(x, Labels(labels.patients, shuffled.time, shuffled.event, shuffled.y, labels.edges))
    assert abs(harrell(truth.time, truth.event, risk_score(blind(record(new)).logits).numpy()).value - 0.5) < 0.2


def test_the_order_of_patients_changes_no_bit_and_the_seed_does():
    x, labels = cohort()
    order = np.random.default_rng(1).permutation(PATIENTS)
    first, second = prepared(x, labels).state_dict(), prepared(x[order], labels.take(order)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(8)
    other = build()
    other.prepare([(record(x), labels)])
    assert not torch.equal(other(record(x)).logits, prepared(x, labels)(record(x)).logits)


def test_weights_of_another_size_load_into_a_new_model():
    x, labels = cohort()
    model, new = prepared(x, labels), build(trees=3)
    new.load_state_dict(model.state_dict())
    assert torch.equal(new(record(x)).logits, model(record(x)).logits)
    assert len(new.forest.roots) == 20
    nested = torch.nn.ModuleDict({"rsf": build()})
    nested.load_state_dict(torch.nn.ModuleDict({"rsf": model}).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"forest.value\""):
        new.load_state_dict({name: value for name, value in model.state_dict().items() if name != "forest.value"})


@given(st.lists(st.integers(1, 40), min_size=5, max_size=60), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_coarser_times_stay_in_their_bin_and_are_few(times, count):
    time = np.array(times, dtype=float)
    edges = np.unique([time.min() - 1e-6, *np.quantile(time, [0.3, 0.7]), time.max() + 1e-6])
    raised = coarsened(time, edges[1:], count)
    assert (raised >= time).all()
    assert len(np.unique(raised)) <= count + len(edges) - 2
    for end in edges[1:]:
        assert ((raised <= end) == (time <= end)).all()
    assert (np.diff(raised[np.argsort(time, kind="stable")]) >= 0).all()
    np.testing.assert_array_equal(coarsened(time, edges[1:], 10_000), time)


def test_hazards_of_certain_death_and_of_certain_survival_stay_finite():
    logits = hazard_logits(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.8, 0.4, 0.4, 0.1]], dtype=torch.float64))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(survival(logits)[1], torch.tensor([0.8, 0.4, 0.4, 0.1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(survival(logits)[0], torch.tensor([1.0, 1.0, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_what_it_cannot_do_is_refused_with_a_way_out():
    x, labels = cohort()
    binary = Labels(labels.patients, np.full(PATIENTS, 36.0), labels.event, labels.y * 0, (0.0, 36.0))
    with pytest.raises(InputError, match=r"RandomSurvivalForest predicts survival times, and the endpoint is binary; found 'one time"):
        build(bins=1).prepare([(record(x), binary)])
    with pytest.raises(InputError, match=r"at the ends of time bins; found '1 outputs, 4 time bins', expected training\.loss: nll\."):
        build(bins=1).prepare([(record(x), labels)])
    lacking = record(x).without("omics", torch.arange(PATIENTS) == 2)
    with pytest.raises(InputError, match="RandomSurvivalForest cannot predict patient 2 of the batch: has none of omics"):
        prepared(x, labels)(lacking)
