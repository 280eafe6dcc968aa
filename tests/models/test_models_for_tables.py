"""logistic, forest and tabular_mlp: any number of tables side by side."""

import numpy as np
import pytest
import torch

from pipeline.cohort.record import Labels, Patient
from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.interface import Inputs
from pipeline.models.reference import parameters
from pipeline.nn.concatenation import Concatenation
from pipeline.nn.dropout import Dropout
from pipeline.training.losses import discrete_nll

PATIENTS = 90
WIDTHS = {"blood": 3, "clinical": 4}


def cohort(seed=0):
    """Tables x [n, 3 + 4] and labels; the first column of each decides."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((PATIENTS, 7)).astype(np.float32)
    event = (x[:, 0] + x[:, 3] + rng.standard_normal(PATIENTS) > 0.4).astype(int)
    window = np.full(PATIENTS, 36.0)
    return x, Labels([f"p{i:02}" for i in range(PATIENTS)], window, event, np.zeros(PATIENTS, int), (0.0, 36.0))


def record(x, lacks_blood=None):
    lacks = np.zeros(len(x), bool) if lacks_blood is None else lacks_blood
    vectors = {"blood": torch.from_numpy(np.where(lacks[:, None], 0, x[:, :3])), "clinical": torch.from_numpy(x[:, 3:])}
    return Patient(vectors=vectors, present={"blood": torch.from_numpy(~lacks), "clinical": torch.ones(len(x), dtype=torch.bool)})


def prepared(name, x, labels, seed=7, **options):
    torch.manual_seed(seed)
    model = build_model(name, Inputs(vectors=WIDTHS, bins=1), **options)
    model.prepare([(record(x), labels)])
    return model


def follow_up(labels):
    """The same patients with survival times."""
    time = np.arange(PATIENTS) + 1.0
    return Labels(labels.patients, time, labels.event, (time > 45).astype(int), (0.0, 45.0, 91.0))


# --- tables side by side ---


def test_tables_stand_in_the_order_of_their_names_or_as_listed():
    x, _ = cohort()
    inputs = Inputs(vectors={"clinical": 4, "blood": 3})
    np.testing.assert_array_equal(Concatenation(inputs, None, "M")(record(x)), x)
    np.testing.assert_array_equal(Concatenation(inputs, ["clinical", "blood"], "M")(record(x)), x[:, [3, 4, 5, 6, 0, 1, 2]])
    np.testing.assert_array_equal(Concatenation(inputs, ["clinical"], "M")(record(x)), x[:, 3:])


def test_a_missing_table_is_zeros_whatever_stands_there_and_may_be_flagged():
    x, _ = cohort()
    join = Concatenation(Inputs(vectors=WIDTHS), None, "M", flags=True)
    batch = record(x[:3])
    absent = Patient(vectors=batch.vectors, present={**batch.present, "blood": torch.tensor([True, False, True])})
    rows = join(absent)
    assert join.width == rows.shape[1] == 9
    assert rows[:, 7:].tolist() == [[0, 0], [1, 0], [0, 0]]
    assert not rows[1, :3].any()
    alone = Patient(vectors={"clinical": batch.vectors["clinical"][1:2]}, present={"clinical": torch.tensor([True])})
    assert torch.equal(join(alone)[0], rows[1])


def test_a_table_that_the_cohort_does_not_offer_is_named():
    with pytest.raises(InputError, match="Logistic reads 'icd', a vector a patient, which the cohort does not offer; found 'blood, clin"):
        build_model("logistic", Inputs(vectors=WIDTHS, bins=1), modalities=["blood", "icd"])
    with pytest.raises(InputError, match=r"RandomForest reads 'tables', .* found 'none'"):
        build_model("forest", Inputs(bins=1))


# --- logistic ---


def test_logistic_regression_takes_the_strength_with_the_lowest_log_loss_of_the_inner_folds():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    x, labels = cohort()
    torch.manual_seed(7)
    parts = list(StratifiedKFold(3, shuffle=True, random_state=int(torch.randint(2**31 - 1, ()))).split(x, labels.event))
    fit = lambda c, rows: LogisticRegression(C=c, max_iter=10_000, tol=1e-8).fit(x[rows].astype(float), labels.event[rows])  # noqa: E731
    strengths = np.logspace(-4, 4, 10)
    losses = [np.mean([log_loss(labels.event[b], fit(c, a).predict_proba(x[b])[:, 1]) for a, b in parts]) for c in strengths]
    best = fit(strengths[int(np.argmin(losses))], np.arange(PATIENTS))
    model = prepared("logistic", x, labels)
    np.testing.assert_allclose(model.linear.weight, best.coef_[0], atol=2e-3)
    np.testing.assert_allclose(model(record(x)).logits[:, 0], best.decision_function(x), atol=1e-2)


def test_too_few_of_a_label_and_a_single_label_are_refused():
    x, labels = cohort()
    for events, message in (
        (2, r"too few patients to choose the penalty of Logistic; found '2 patients of the rarer label', expected at least 3\."),
        (0, r"Logistic cannot be fitted: all training patients have the same label; found '90 patients with label 0'"),
    ):
        with pytest.raises(InputError, match=message):
            prepared(
                "logistic", x, Labels(labels.patients, labels.time, (np.arange(PATIENTS) < events).astype(int), labels.y, labels.edges)
            )


# --- forest ---


def test_the_forest_gives_scikit_learns_probabilities():
    from sklearn.ensemble import RandomForestClassifier

    x, labels = cohort()
    torch.manual_seed(7)
    seed = int(torch.randint(2**31 - 1, ()))
    theirs = RandomForestClassifier(40, random_state=seed).fit(x, labels.event)
    model, new = prepared("forest", x, labels, trees=40), cohort(seed=1)[0]
    np.testing.assert_allclose(model(record(new)).logits.sigmoid()[:, 0], theirs.predict_proba(new)[:, 1], atol=2e-6)
    assert all(not p.requires_grad for p in model.state_dict().values())


def test_a_forest_that_is_sure_stays_finite():
    x = np.repeat(np.float32([[0], [1]]), 45, axis=0) * np.ones((1, 7), np.float32)
    labels = cohort()[1]
    sure = Labels(labels.patients, labels.time, np.repeat([0, 1], 45), labels.y, labels.edges)
    logits = prepared("forest", x, sure, trees=5)(record(x)).logits[:, 0]
    assert torch.isfinite(logits).all()
    assert (logits[:45] < -13).all()
    assert (logits[45:] > 13).all()


# --- both ---


@pytest.mark.parametrize("name, reader", [("logistic", "Logistic"), ("forest", "RandomForest")])
def test_survival_endpoints_are_refused_and_binary_ones_are_learned(name, reader):
    from sklearn.metrics import roc_auc_score

    (x, labels), (new, truth) = cohort(), cohort(seed=1)
    assert roc_auc_score(truth.event, prepared(name, x, labels)(record(new)).logits[:, 0]) > 0.75
    message = f"{reader} predicts a binary label, and the endpoint is survival; found '2 time bins', .* Use coxnet, rsf or tabular_mlp"
    with pytest.raises(InputError, match=message):
        prepared(name, x, follow_up(labels))


@pytest.mark.parametrize("name", ["logistic", "forest"])
def test_the_order_of_patients_changes_no_bit(name):
    x, labels = cohort()
    order = np.random.default_rng(1).permutation(PATIENTS)
    first, second = prepared(name, x, labels).state_dict(), prepared(name, x[order], labels.take(order)).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["logistic", "forest", "tabular_mlp"])
def test_a_patient_needs_one_of_the_tables(name):
    x, labels = cohort()
    model = prepared(name, x, labels).eval()
    lacks = np.arange(PATIENTS) % 2 == 0
    assert torch.isfinite(model(record(x, lacks)).logits).all()
    assert model.refusal({"omics", "wsi"}) == "has none of blood, clinical"
    with pytest.raises(InputError, match="cannot predict patient 0 of the batch: has none of blood, clinical"):
        model(record(x, lacks).without("clinical"))


# --- tabular_mlp ---


def test_one_bin_is_logistic_loss_and_four_are_survival():
    x, labels = cohort()
    model = build_model("tabular_mlp", Inputs(vectors=WIDTHS, bins=1))
    logits = model(record(x)).logits
    event = torch.from_numpy(labels.event)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], event.float(), reduction="none")
    torch.testing.assert_close(discrete_nll(logits, torch.zeros(PATIENTS, dtype=torch.long), event.bool()), expected)
    assert build_model("tabular_mlp", Inputs(vectors=WIDTHS, bins=4))(record(x)).logits.shape == (PATIENTS, 4)


def test_widths_flags_and_dropout_are_as_told():
    inputs = Inputs(vectors=WIDTHS, bins=1)
    assert parameters(build_model("tabular_mlp", inputs)) == 7 * 128 + 128 + 128 * 128 + 128 + 129
    assert parameters(build_model("tabular_mlp", inputs, "flags")) == 9 * 128 + 128 + 128 * 128 + 128 + 129
    small = build_model("tabular_mlp", inputs, hidden=[5], dropout=0.3)
    assert parameters(small) == 7 * 5 + 5 + 6
    assert {m.probability for m in small.modules() if isinstance(m, Dropout)} == {0.3}
    x, _ = cohort()
    flagged, lacks = build_model("tabular_mlp", inputs, "flags"), np.ones(PATIENTS, bool)
    zeros = x.copy()
    zeros[:, :3] = 0
    assert not torch.allclose(flagged(record(x, lacks)).logits, flagged(record(zeros)).logits)  # missing is not zero
