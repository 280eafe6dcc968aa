import warnings
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.cohort.bins import TimeBins
from pipeline.cohort.loader import CohortData
from pipeline.cohort.record import Labels, Patient
from pipeline.errors import InputError
from pipeline.evaluation.concordance import harrell
from pipeline.models import build_model, load_model_config
from pipeline.models.interface import Inputs
from pipeline.nn.cox import _along, fit_elastic_net, fit_ridge, log_partial_likelihood, stratified_parts
from pipeline.omics.scaling import Scaler
from pipeline.training.loop import Trainer
from pipeline.training.losses import cox_partial
from pipeline.training.protocol import Protocol

SEARCH = {"l1_ratio": 0.5, "alpha": None, "alphas": 30, "alpha_min_ratio": 0.05, "folds": 5, "seed": 1}


def cohort(patients=150, features=12, seed=0):
    """x [n, d], times with ties, events; the first two features decide."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((patients, features))
    time = np.ceil(20 * rng.exponential(size=patients) * np.exp(-1.2 * x[:, 0] + 0.8 * x[:, 1])) + 1
    return x, time, rng.binomial(1, 0.6, patients)


def labelled(time, event, ids=None):
    bins = TimeBins.fit(time, event, 4)
    return Labels(ids or [f"p{i:03}" for i in range(len(time))], time, event, bins.assign(time), bins.edges)


def record(**tables):
    """A batch of patients; a row of NaN = the patient lacks the table."""
    present = {name: torch.from_numpy(~np.isnan(x).all(axis=1)) for name, x in tables.items()}
    return Patient(vectors={name: torch.from_numpy(np.nan_to_num(x).astype(np.float32)) for name, x in tables.items()}, present=present)


def build(variant=None, features=12, **options):
    return build_model("coxnet", Inputs(vectors={"omics": features}, bins=1), variant, **options)


def test_the_partial_likelihood_is_the_definition():
    rng = np.random.default_rng(3)
    time, event, risk = rng.integers(1, 8, 25).astype(float), rng.binomial(1, 0.5, 25), rng.standard_normal((25, 3))
    expected = [sum(r[i] - np.log(np.exp(r[time >= time[i]]).sum()) for i in range(25) if event[i]) for r in risk.T]
    np.testing.assert_allclose(log_partial_likelihood(risk, time, event), expected)


@pytest.mark.parametrize("patients, features", [(150, 12), (40, 90)])
def test_ridge_is_where_the_penalised_likelihood_is_flat(patients, features):
    """Also with more features than patients, where the fit runs in another space. Gradient by torch, from the loss the networks use."""
    x, time, event = cohort(patients, features)
    beta = torch.tensor(fit_ridge(x, time, event, 10.0), requires_grad=True)
    loss = cox_partial(torch.from_numpy(x) @ beta, torch.from_numpy(time), torch.from_numpy(event == 1)) * event.sum()
    (loss + 5.0 * beta.square().sum()).backward()
    assert beta.detach().abs().max() > 0.05
    assert beta.grad.abs().max() < 1e-3 * len(time) ** 0.5


def test_ridge_agrees_with_scikit_survival_in_either_space():
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.util import Surv

    x, time, event = cohort(30, 45)
    direct = CoxPHSurvivalAnalysis(alpha=3.0).fit(x, Surv.from_arrays(event == 1, time)).coef_
    np.testing.assert_allclose(fit_ridge(x, time, event, 3.0), direct, atol=1e-5)


def test_the_elastic_net_finds_what_decides():
    x, time, event = cohort()
    beta = fit_elastic_net(x, time, event, **SEARCH)
    assert beta[0] > 0.5 > -0.3 > beta[1]
    assert np.abs(beta[2:]).max() < 0.2
    assert not fit_elastic_net(x, time, event, **SEARCH | {"alpha": 10.0}).any()


def test_the_chosen_penalty_has_the_highest_cross_validated_likelihood():
    """The choice repeated by hand: one fit a penalty and part, likelihood by definition."""
    from sksurv.linear_model import CoxnetSurvivalAnalysis
    from sksurv.util import Surv

    x, time, event = cohort(80, 5)
    path = CoxnetSurvivalAnalysis(n_alphas=8, alpha_min_ratio=0.05, l1_ratio=0.5).fit(x, Surv.from_arrays(event == 1, time))
    score = np.zeros(8)
    for held in stratified_parts(event, 5, seed=1):
        for at, alpha in enumerate(path.alphas_):
            with warnings.catch_warnings(action="ignore"):  # the largest penalty leaves no coefficient
                one = CoxnetSurvivalAnalysis(alphas=[alpha]).fit(x[~held], Surv.from_arrays(event[~held] == 1, time[~held]))
            risk = x @ one.coef_[:, 0]
            for sign, rows in ((1, np.arange(80)), (-1, np.flatnonzero(~held))):
                terms = [risk[i] - np.log(np.exp(risk[rows][time[rows] >= time[i]]).sum()) for i in rows if event[i]]
                score[at] += sign * sum(terms)
    chosen = fit_elastic_net(x, time, event, **SEARCH | {"alphas": 8})
    np.testing.assert_allclose(chosen, path.coef_[:, score.argmax()], atol=1e-4)


def test_a_path_that_starts_above_or_ends_before_the_librarys_has_every_penalty():
    x, time, event = cohort(60, 40)
    alphas = np.geomspace(50.0, 1e-4, 60)  # all zero for many steps, saturated for many more
    found = _along(x, time, event, 0.5, alphas)
    assert found.shape == (40, 60)
    assert not found[:, :10].any()
    assert (found[:, -1] == found[:, -2]).all()
    assert np.isfinite(found).all()


def test_parts_share_patients_and_events_out():
    event = np.repeat([1, 0], [13, 37])
    parts = np.stack(stratified_parts(event, 5, seed=4))
    assert (parts.sum(axis=0) == 1).all()
    assert sorted((parts & (event == 1)).sum(axis=1)) == [2, 2, 3, 3, 3]


@pytest.mark.parametrize("variant", [None, "lasso", "ridge"])
def test_the_order_and_the_batches_of_patients_change_no_bit(variant):
    x, time, event = cohort()
    labels, order = labelled(time, event), np.random.default_rng(1).permutation(150)
    weights = []
    for rows, cuts in ((np.arange(150), [0, 150]), (order, [0, 40, 41, 150])):
        torch.manual_seed(5)
        model = build(variant)
        model.prepare((record(omics=x[rows[a:b]]), labels.take(rows[a:b])) for a, b in pairwise(cuts))
        weights.append(model.linear.weight)
    assert torch.equal(*weights)
    assert weights[0].any()


def test_the_log_risk_is_the_linear_predictor():
    x, time, event = cohort()
    model = build("ridge", alpha=2.0)
    model.prepare([(record(omics=x), labelled(time, event))])
    np.testing.assert_allclose(model(record(omics=x)).logits[:, 0].numpy(), x @ fit_ridge(x, time, event, 2.0), atol=1e-4)
    assert set(model.state_dict()) == {"linear.weight", "linear.bias"}
    assert not list(model.parameters())


def test_several_tables_are_read_side_by_side_and_one_may_be_missing():
    x, time, event = cohort()
    x[::3, 6:] = np.nan  # a third of the patients lacks the second table
    model = build_model("coxnet", Inputs(vectors={"clinical": 6, "blood": 6}, bins=1), "ridge")
    batch = record(clinical=x[:, :6], blood=x[:, 6:])
    model.prepare([(batch, labelled(time, event))])
    assert model.modalities == ("blood", "clinical")  # sorted: no order of a configuration file reaches the weights
    expected = fit_ridge(np.nan_to_num(np.concatenate([x[:, 6:], x[:, :6]], axis=1)).astype(np.float32), time, event, 100.0)
    np.testing.assert_allclose(model.linear.weight, expected, atol=1e-6)
    assert model.refusal({"omics"}) == "has none of blood, clinical"


def test_the_clinical_reference_reads_that_table_alone():
    inputs = Inputs(vectors={"omics": 9, "clinical": 4}, bins=1)
    assert build_model("coxnet", inputs, "clinical").modalities == ("clinical",)
    assert load_model_config("coxnet", "clinical")["modalities"] == ["clinical"]
    with pytest.raises(InputError, match="CoxNet reads 'clinical', a vector a patient, which the cohort does not offer; found 'omics'"):
        build("clinical")


def test_a_fold_trains_it_without_an_epoch(tmp_path):
    x, time, event = cohort()
    data = CohortData({"omics": ({f"p{i:03}": i for i in range(150)}, x.astype(np.float32))})
    labels = labelled(time, event)
    trainer = Trainer(build(), data, Protocol.of(load_model_config("coxnet")["training"]), seed=3)
    train, test = labels.take(np.arange(100)), labels.take(np.arange(100, 150))
    history = trainer.fit(train, None, test, tmp_path / "c.pt", "key")
    assert [row["epoch"] for row in history] == [0]
    assert history[0]["test_c_index"] > 0.7
    assert history[0]["test_c_index"] == harrell(test.time, test.event, trainer.predict(test.patients)[:, 0].numpy()).value


def test_a_fit_that_does_not_converge_says_so():
    """Who has more of the feature dies earlier, without exception: unpenalised, the coefficient has no bound."""
    time = np.arange(20) + 1.0
    with pytest.raises(
        InputError, match=r"ridge Cox with alpha 0 did not converge \(Optimization .* exceeded\)\. Raise alpha, or look for"
    ):
        fit_ridge(-100 * time[:, None], time, np.ones(20, int), 0.0)
    with pytest.raises(InputError, match="search direction contains NaN or infinite values"):
        fit_ridge(-1e200 * time[:, None], time, np.ones(20, int), 0.0)


def test_what_it_cannot_do_is_refused_with_a_way_out():
    x, time, event = cohort()
    with pytest.raises(InputError, match=r"penalty ridge has no strength; found 'alpha: null', expected a number above 0\. State alpha\."):
        build(penalty="ridge")
    with pytest.raises(InputError, match=r"option 'penalty'; found 'rigde', expected one of elastic_net, ridge\. Did you mean 'ridge'\?"):
        build(penalty="rigde")
    with pytest.raises(
        InputError, match=r"CoxNet predicts survival times, and the endpoint is binary; .* Use logistic, forest or tabular_mlp"
    ):
        build().prepare([(record(omics=x), Labels(list(map(str, range(150))), np.ones(150), event, event * 0, (0.0, 1.0)))])
    with pytest.raises(InputError, match=r"CoxNet gives one log-risk; found '4 time bins', expected training\.loss: cox\."):
        build_model("coxnet", Inputs(vectors={"omics": 12}, bins=4)).prepare([(record(omics=x), labelled(time, event))])
    with pytest.raises(InputError, match=r"too few events to choose the penalty .*; found '2 events', expected at least 5\. State alpha"):
        fit_elastic_net(x, time, np.arange(150) < 2, **SEARCH)
    with pytest.raises(InputError, match="no patient to fit the model on"):
        build().prepare([])


@pytest.mark.realdata
@pytest.mark.parametrize(
    "tables, published",
    [("gene", 0.6739), ("path", 0.5441), ("cna", 0.5203), ("gene path", 0.6847), ("gene path cna", 0.6752)],
)
def test_the_brca_vectors_give_the_calibrated_figures(realdata, tables, published):
    """TCGA-BRCA, 1,015 patients, five released folds, ridge with alpha 100 on z-scored columns."""
    table = pd.read_csv(realdata / "gpdbn_brca" / "brca1015.tsv", sep="\t")
    names, found = tables.split(), []
    blocks = {name: table.filter(regex=f"^{name}_").to_numpy(np.float32) for name in names}
    time, event, ids = table["time_months"].to_numpy(), table["event"].to_numpy(), list(table["patient_id"])
    for fold in range(1, 6):
        test = (table["fold"] == fold).to_numpy()
        scaled = {name: Scaler.fit(x[~test]).transform(x) for name, x in blocks.items()}
        model = build_model("coxnet", Inputs(vectors=dict.fromkeys(names, 32), bins=1), "ridge")
        train = labelled(time[~test], event[~test], [p for p, out in zip(ids, test, strict=True) if not out])
        model.prepare([(record(**{name: x[~test] for name, x in scaled.items()}), train)])
        risk = model(record(**{name: x[test] for name, x in scaled.items()})).logits[:, 0].numpy()
        found.append(harrell(time[test], event[test], risk).value)
    assert np.mean(found) == pytest.approx(published, abs=5e-4)
