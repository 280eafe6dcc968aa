import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.cohort.loader import BagStore, CohortData
from pipeline.cohort.record import Bag, Labels, Patient
from pipeline.errors import InputError
from pipeline.evaluation.concordance import harrell
from pipeline.models import build_model
from pipeline.models.haf import TABLES, random_subset
from pipeline.models.interface import Inputs, Target
from pipeline.models.reference import forward_flops, parameters, reference_patient
from pipeline.nn.hazards import risk_score
from pipeline.training.loop import NonFiniteLossError, Trainer
from pipeline.training.losses import discrete_nll
from pipeline.training.protocol import Protocol

REFERENCE = Inputs(bags={"wsi": 1024, "tma": 1024}, vectors=TABLES, bins=1)
BAGS, VECTORS = {"tma": 10, "wsi": 10}, {"blood": 5, "clinical": 3}
ALL = [*BAGS, *VECTORS]
SMALL = {"d1": 8, "d2": 4, "d_out": 16, "phi_hidden": 12, "fusion_hidden": 12}


@pytest.fixture
def inputs():
    return Inputs(bags=BAGS, vectors=VECTORS, bins=1)


def build(inputs, variant=None, seed=0, **options):
    torch.manual_seed(seed)
    return build_model("haf", inputs, variant, **{**SMALL, **options})


def batch(size=6, lacks=()):
    """`size` patients with bags of different lengths; lacks: pairs of row and modality."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(3, 20, (size, 2), generator=generator)
    bags = {}
    for at, (name, width) in enumerate(BAGS.items()):
        mask = torch.arange(21) < lengths[:, at, None]
        bags[name] = Bag(torch.randn(size, 21, width, generator=generator) * mask[..., None], mask)
    vectors = {name: torch.randn(size, width, generator=generator) for name, width in VECTORS.items()}
    patients = Patient(bags, vectors, {}, {name: torch.ones(size, dtype=torch.bool) for name in ALL})
    for row, name in lacks:
        patients = patients.without(name, torch.arange(size) == row)
    return patients


def target(event=(1, 0, 0, 1, 0, 1), y=None):
    event = torch.tensor(event, dtype=torch.bool)
    y = torch.zeros(len(event), dtype=torch.long) if y is None else torch.tensor(y)
    return Target(y, event, lambda logits: discrete_nll(logits, y, event))


def terms(model, patients, labels, seed=3):
    """All losses of eq. 12 by name; `full` is the trainer's."""
    torch.manual_seed(seed)
    output = model.train()(patients)
    return {"full": labels.loss(output.logits).mean(), **output.losses, **model.supervised(output, labels)}


def reached(model, loss):
    """Which parts of the model a loss sends a gradient to."""
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    parts = {"encoders": model.encoders, "phi": model.phi, "fusion": model.fusion}
    return {name for name, part in parts.items() if any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())}


# --- acceptance figures ---


def test_parameters_are_those_of_the_specification_part_by_part():
    model = build_model("haf", REFERENCE)
    assert parameters(model) == 401_487
    phi = {"wsi": 24_832, "tma": 24_832, "clinical": 17_536, "pathological": 21_376, "blood": 18_688, "icd": 21_760}
    assert {name: parameters(part) for name, part in model.phi.items()} == {**phi, "cell_density": 17_152}
    assert [parameters(part) for part in (*model.encoders.values(), model.fusion)] == [70_183, 70_183, 114_945]


@pytest.mark.parametrize(
    "variant, expected",
    [("clam_wsi", 70_183), ("clam_tma", 70_183), ("clam_wsi_tma", 70_183), ("mlp_wsi_tma", 223_055)]
    + [(name, 790_791) for name in ("clam_small", "clam_official", "clam_official_tma", "clam_official_wsi_tma")]
    + [(name, 401_487) for name in ("mlp_all", "ga", "clip", "drop", "clip_drop", "no_detach", "sequential")],
)
def test_parameters_of_the_rows_of_table_1_are_those_of_the_specification(variant, expected):
    assert parameters(build_model("haf", REFERENCE, variant)) == expected


def flops(wsi, tma, variant=None):
    """Operations of one forward pass at the reference widths, bags of so many patches."""
    patient = reference_patient(REFERENCE, max(wsi, tma))
    bags = {m: Bag(patient.bags[m].features[:, :n], patient.bags[m].mask[:, :n]) for m, n in (("wsi", wsi), ("tma", tma))}
    return forward_flops(build_model("haf", REFERENCE, variant), replace(patient, bags=bags))


def test_operations_are_those_of_the_specification():
    assert round(flops(4096, 16) / 1e6, 2) == 573.96
    assert round(flops(4096, 1, "clam_wsi") / 1e6, 2) == 571.21  # the encoder of the slide


def test_operations_grow_with_the_number_of_patches_and_by_the_encoder_alone():
    score_and_sum = 2 * (32 + 64)
    assert flops(300, 16) - flops(100, 16) == 200 * (2 * (1024 * 64 + 2 * 64 * 32) + score_and_sum)


def test_shapes_are_those_of_the_specification():
    model = build_model("haf", REFERENCE).eval()
    model.explain = True
    output = model(reference_patient(REFERENCE, 5))
    assert (output.logits.shape, output.details["aligned"].shape) == ((1, 1), (1, 7, 128))


# --- the equations, restated patient by patient ---


def by_hand(model, patients, labels, keep):
    """The losses of eq. 12, one patient and one modality at a time, with a singular value decomposition. keep [B, M]: ŷ⁻'s modalities."""
    bce = functional.binary_cross_entropy_with_logits
    size, y = patients.size, labels.event
    found = {f"{m}_{kind}": [] for m in BAGS for kind in ("bag", "instances")}
    full, reduced, hinge, emphasis, directions = [], [], [], [], []
    for row in range(size):
        mine = [m for m in ALL if patients.has(m)[row]]
        u = {}
        for m in mine:
            z = patients.vectors[m][row] if m in VECTORS else None
            if m in BAGS:
                x = patients.bags[m].features[row][patients.bags[m].mask[row]]
                encoder = model.encoders[m]
                h = encoder.project[0](x)
                a = encoder.pool.score(
                    torch.mul(*(f(part) for f, part in zip((torch.tanh, torch.sigmoid), gates(encoder, h), strict=True)))
                )
                z = a.softmax(dim=0)[:, 0] @ h
                found[f"{m}_bag"].append(functional.cross_entropy(encoder.head(z)[None], y[row, None].long()))
                k = min(8, len(x) // 2)
                order = a[:, 0].argsort(descending=True)
                logits = encoder.instance_heads(h[torch.cat([order[:k], order[-k:]])]).unflatten(1, (2, 2))[:, int(y[row])]
                found[f"{m}_instances"].append(functional.cross_entropy(logits, torch.tensor([1] * k + [0] * k)))
            u[m] = model.phi[m](z)
        v = torch.stack([u[m] / u[m].norm() for m in mine], dim=1)  # [d_out, k]
        left, sigma, _ = torch.linalg.svd(v, full_matrices=False)
        emphasis.append(-(sigma / 0.1).log_softmax(dim=0)[0])
        q, towards = left[:, 0], left[:, 0] @ v.sum(dim=1)
        directions.append(q * (towards if towards.abs() > 1e-5 else q[q.abs().argmax()]).sign())

        def predict(those, u=u):
            return model.fusion(torch.cat([u[m] if m in those else torch.zeros(16) for m in ALL]))[0]

        both = [bce(predict(those), y[row].float()) for those in (mine, [m for at, m in enumerate(ALL) if keep[row, at]])]
        full.append(both[0])
        reduced.append(both[1])
        hinge.append((both[0] - both[1]).clamp(min=0))
    similarity = torch.stack([torch.stack([a @ b for b in directions]) for a in directions]) / 0.1
    means = {name: torch.stack(rows).mean() for name, rows in found.items()}
    means |= {"full": torch.stack(full).mean(), "reduced": torch.stack(reduced).mean(), "monotonicity": 0.1 * torch.stack(hinge).mean()}
    means["singular_emphasis"] = torch.stack(emphasis).mean()
    means["discriminability"] = 0.01 * -similarity.log_softmax(dim=1).diagonal().mean()
    return means


def gates(encoder, h):
    return encoder.pool.project(h).chunk(2, dim=1)


def test_every_loss_is_the_equation_worked_out_patient_by_patient(inputs):
    patients, labels, model = batch(lacks=[(0, "tma"), (2, "clinical"), (3, "wsi"), (3, "blood")]), target(), build(inputs)
    found = terms(model, patients, labels)
    torch.manual_seed(3)
    keep = random_subset(torch.stack([patients.has(m) for m in ALL], dim=1), 0.5)
    expected = by_hand(model, patients, labels, keep)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert expected["monotonicity"] > 0


def test_two_classes_of_the_bag_head_have_the_cross_entropy_of_their_difference(inputs):
    model, labels = build(inputs, "clam_wsi"), target()
    output = model(batch())
    encoded = model.encoders["wsi"](*vars(batch().bags["wsi"]).values())
    two = functional.cross_entropy(model.encoders["wsi"].head(encoded.vector), labels.event.long())
    torch.testing.assert_close(labels.loss(output.logits).mean(), two)
    assert set(model.supervised(output, labels)) == {"wsi_instances"}


@pytest.mark.parametrize("variant", [None, "clip_drop"])
def test_half_precision_keeps_every_loss(inputs, variant):
    lacks = [(1, "clinical"), (2, "tma"), *((3, m) for m in ALL if m != "blood")]
    model, patients, labels = build(inputs, variant), batch(lacks=lacks), target()
    exact = terms(model, patients, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = terms(model, patients, labels)
    for name, value in exact.items():
        torch.testing.assert_close(rough[name].float(), value, atol=0.02, rtol=0.05, msg=name)
    torch.stack([x.float() for x in rough.values()]).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# --- invariances ---


def test_the_order_of_patches_and_padding_change_nothing(inputs):
    model, patients = build(inputs).eval(), batch()
    alone = torch.cat([model(patients.single(row)).logits for row in range(6)])
    torch.testing.assert_close(model(patients).logits, alone, atol=1e-5, rtol=1e-5)
    one = patients.single(0)
    turned = {m: Bag(bag.features.flip(1), bag.mask) for m, bag in one.bags.items()}
    torch.testing.assert_close(model(replace(one, bags=turned)).logits, model(one).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [None, "clip_drop", "drop", "mlp_all_no_phi"])
def test_what_is_stored_of_an_absent_modality_is_never_read(inputs, variant):
    model, labels = build(inputs, variant), target()
    patients = batch(lacks=[(1, "clinical"), (2, "wsi")])
    noisy_table, noisy_bag = patients.vectors["clinical"].clone(), patients.bags["wsi"].features.clone()
    noisy_table[1], noisy_bag[2] = 100.0, 100.0
    noisy = replace(
        patients,
        vectors={**patients.vectors, "clinical": noisy_table},
        bags={**patients.bags, "wsi": Bag(noisy_bag, patients.bags["wsi"].mask | (torch.arange(6) == 2)[:, None])},
    )
    before, after = terms(model, patients, labels), terms(model, noisy, labels)
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name])


def test_a_modality_that_nobody_has_may_be_left_out_of_the_record(inputs):
    model = build(inputs).eval()
    patients = batch().without("wsi").without("blood")
    mappings = ({m: x for m, x in part.items() if m not in ("wsi", "blood")} for part in (patients.bags, patients.vectors))
    bare = Patient(*mappings, {}, {m: x for m, x in patients.present.items() if m not in ("wsi", "blood")})
    torch.testing.assert_close(model(bare).logits, model(patients).logits)


@pytest.mark.parametrize("variant", [None, "clip"])
def test_the_order_in_which_modalities_are_listed_does_not_change_the_alignment(inputs, variant):
    one, other = (build(inputs, variant, modalities=order) for order in (ALL, ALL[::-1]))
    weights = {name: value for name, value in one.state_dict().items() if not name.startswith("fusion")}
    other.load_state_dict(weights, strict=False)
    first, second = one(batch()).losses, other(batch()).losses
    for name, value in first.items():
        torch.testing.assert_close(second[name], value)


# --- stop-gradients ---

IMAGES = ("wsi_bag", "tma_bag", "wsi_instances", "tma_instances")


def test_with_detachment_each_stage_learns_from_its_own_losses_alone(inputs):
    model = build(inputs)
    found = terms(model, batch(), target())
    assert all(reached(model, found[name]) == {"encoders"} for name in IMAGES)
    assert all(reached(model, found[name]) == {"phi"} for name in ("singular_emphasis", "discriminability"))
    assert all(reached(model, found[name]) == {"fusion"} for name in ("full", "reduced", "monotonicity"))


def test_without_detachment_the_fusion_reaches_the_encoders(inputs):
    model = build(inputs, "no_detach")
    found = terms(model, batch(), target())
    assert reached(model, found["full"]) == {"encoders", "phi", "fusion"}
    assert reached(model, found["singular_emphasis"]) == {"encoders", "phi"}
    assert all(reached(model, found[name]) == {"encoders"} for name in IMAGES)
    reached(model, found["full"])
    assert model.encoders["wsi"].project[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "detach, full, emphasis",
    [
        ({"detach_stage1": False}, {"fusion"}, {"encoders", "phi"}),
        ({"detach_stage2": False}, {"phi", "fusion"}, {"phi"}),
    ],
)
def test_each_stop_gradient_can_be_lifted_alone(inputs, detach, full, emphasis):
    model = build(inputs, **detach)
    found = terms(model, batch(), target())
    assert reached(model, found["full"]) == full
    assert reached(model, found["singular_emphasis"]) == emphasis


@pytest.mark.parametrize(
    "variant, parts", [("mlp_all", {"phi", "fusion"}), ("drop", {"phi", "fusion"}), ("ga", {"fusion"}), ("clip", {"fusion"})]
)
def test_without_an_alignment_phi_belongs_to_the_fusion(inputs, variant, parts):
    model = build(inputs, variant)
    assert reached(model, terms(model, batch(), target())["full"]) == parts


@pytest.mark.parametrize("variant", [None, "mlp_all", "ga", "clip", "drop", "clip_drop", "no_detach", "mlp_all_no_phi", "clam_wsi_tma"])
def test_the_total_loss_reaches_every_parameter(inputs, variant):
    model = build(inputs, variant)
    torch.stack(list(terms(model, batch(), target()).values())).sum().backward()
    for name, parameter in model.named_parameters():
        cancels = name.endswith("pool.score.bias")
        assert (parameter.grad.abs().max() < 1e-6) if cancels else (parameter.grad.abs().max() > 0), name


# --- rows of the table and switches ---


def test_each_row_of_table_1_has_its_losses(inputs):
    expected = {
        "mlp_all": set(),
        "ga": {"singular_emphasis", "discriminability"},
        "clip": {"contrast"},
        "drop": {"reduced", "monotonicity"},
        "clip_drop": {"contrast", "reduced", "monotonicity"},
        None: {"singular_emphasis", "discriminability", "reduced", "monotonicity"},
    }
    for variant, losses in expected.items():
        assert set(terms(build(inputs, variant), batch(), target())) == {"full", *IMAGES, *losses}


@pytest.mark.parametrize("variant", [None, "sequential"])
def test_losses_are_computed_in_training_only(inputs, variant):
    model = build(inputs, variant)
    output = model.eval()(batch())
    assert (output.losses, output.auxiliary) == ({}, {})
    assert model.supervised(output, target()) == {}


@pytest.mark.parametrize("variant", ["ga", "clip"])
def test_an_alignment_without_weight_and_stop_is_the_plain_fusion_along_the_whole_training(inputs, variant, tmp_path):
    data, train, inner, test = made_cohort()
    aligned = build(inputs, variant, lambda_align=0.0, detach_stage2=False)
    plain = build(inputs, "mlp_all")
    protocol = Protocol(epochs=4, batch_size=20, sampler="uniform", selection="inner")
    curves = [Trainer(m, data, protocol, 1).fit(train, inner, test, tmp_path / f"{m.align}", "key") for m in (aligned, plain)]
    assert [row["train_loss"] for row in curves[0]] == pytest.approx([row["train_loss"] for row in curves[1]], rel=1e-6)
    for one, other in zip(aligned.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_dropping_nothing_is_the_plain_fusion_with_its_loss_twice(inputs):
    dropping, plain = build(inputs, "drop", p_train=0.0), build(inputs, "mlp_all")
    found, expected = terms(dropping, batch(), target()), terms(plain, batch(), target())
    assert torch.equal(found["full"] + found["reduced"], 2 * expected["full"])
    assert found["monotonicity"] == 0
    (found["full"] + found["reduced"] + found["monotonicity"]).backward()
    (2 * expected["full"]).backward()
    for (name, one), other in zip(dropping.named_parameters(), plain.parameters(), strict=True):
        if not name.startswith("encoders"):
            torch.testing.assert_close(one.grad, other.grad)


def test_a_patient_with_one_modality_keeps_it_and_has_no_monotonicity(inputs):
    lone = [(0, m) for m in ALL if m != "blood"]
    model = build(inputs)
    output = model.train()(batch(lacks=lone))
    torch.testing.assert_close(output.auxiliary["reduced"][0], output.logits[0])


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_random_subsets_keep_at_least_one_of_what_there_is(p):
    observed = torch.rand(4000, 7) < 0.6
    kept = random_subset(observed, p)
    assert not (kept & ~observed).any()
    assert torch.equal(kept.any(dim=1), observed.any(dim=1))
    many = observed.sum(dim=1) == 7
    expected = (1 - p) + p**7 / 7  # the last one is given back, each with the same chance
    assert float(kept[many].float().mean()) == pytest.approx(expected, abs=0.07)
    if p == 1.0:
        assert kept.sum(dim=1).max() == 1
        assert (kept[observed[:, 0] & observed[:, 6]].float().mean(dim=0)[[0, 6]] > 0.1).all()


def test_subsets_are_drawn_anew_each_step_and_for_each_patient(inputs):
    model, patients = build(inputs).train(), batch()
    torch.manual_seed(5)
    first, second = model(patients).auxiliary["reduced"], model(patients).auxiliary["reduced"]
    torch.manual_seed(5)
    again = model(patients).auxiliary["reduced"]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    twins = batch().single(0)
    twins = Patient(
        {m: Bag(b.features.expand(40, -1, -1), b.mask.expand(40, -1)) for m, b in twins.bags.items()},
        {m: x.expand(40, -1) for m, x in twins.vectors.items()},
        {},
        {m: x.expand(40) for m, x in twins.present.items()},
    )
    assert len(model(twins).auxiliary["reduced"].unique()) > 5


def test_the_monotonicity_raises_the_reduced_loss_unless_told_not_to(inputs):
    gradients = []
    for variant in (None, "mofe_detach_minus"):
        model = build(inputs, variant)
        output = model.train()(batch())
        output.auxiliary["reduced"].retain_grad()
        model.supervised(output, target())["monotonicity"].backward()
        gradients.append(output.auxiliary["reduced"].grad)
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None


@pytest.mark.parametrize(
    "options, changed",
    [
        ({"tau_sv": 1.0}, {"singular_emphasis"}),
        ({"tau_pd": 1.0}, {"discriminability"}),
        ({"lambda_pd": 1.0}, {"discriminability"}),
        ({"lambda_align": 2.0}, {"singular_emphasis", "discriminability"}),
        ({"lambda_mofe": 1.0}, {"monotonicity"}),
        ({"normalize": False}, {"singular_emphasis", "discriminability"}),
        ({"instance_weight": 0.5}, {"wsi_instances", "tma_instances"}),
        ({"instance_samples": 2}, {"wsi_instances", "tma_instances"}),
        ({"p_train": 0.9}, {"reduced", "monotonicity"}),
        ({"schedule": "sequential"}, set()),
    ],
)
def test_a_switch_changes_its_own_loss_and_no_other(inputs, options, changed):
    before, after = (terms(build(inputs, **given), batch(), target()) for given in ({}, options))
    assert {name for name in before if not torch.isclose(before[name], after[name], rtol=1e-4)} == changed


def test_longer_vectors_lower_the_alignment_unless_normalised(inputs):
    for variant, lower in (("ga", False), ("no_normalisation", True)):
        model = build(inputs, variant)
        before = terms(model, batch(), target())["singular_emphasis"]
        with torch.no_grad():
            for phi in model.phi.values():
                phi[-1].weight *= 10
                phi[-1].bias *= 10
        after = terms(model, batch(), target())["singular_emphasis"]
        assert (after < 0.5 * before) if lower else torch.isclose(after, before, rtol=1e-3)


def test_the_contrast_anchors_on_slides_then_on_microarrays_then_on_what_comes_first(inputs):
    assert build(inputs, "clip").anchor == "wsi"
    assert build(inputs, "clip", modalities=["blood", "tma"]).anchor == "tma"
    assert build(inputs, "clip", modalities=["clinical", "blood"]).anchor == "clinical"


def test_the_contrast_is_the_mean_over_pairs_of_those_who_have_both(inputs):
    model, patients = build(inputs, "clip").eval(), batch(lacks=[(0, "wsi"), *((row, "blood") for row in range(1, 6)), (2, "clinical")])
    model.explain = True
    u = functional.normalize(model(patients).details["aligned"], dim=-1)
    anchor, expected = ALL.index("wsi"), []
    for other, rows in ((ALL.index("tma"), [1, 2, 3, 4, 5]), (ALL.index("clinical"), [1, 3, 4, 5])):  # no patient has wsi and blood
        similarity = u[rows, anchor] @ u[rows, other].T / 0.07
        at = torch.arange(len(rows))
        expected.append((functional.cross_entropy(similarity, at) + functional.cross_entropy(similarity.T, at)) / 2)
    torch.testing.assert_close(model.train()(patients).losses["contrast"], torch.stack(expected).mean())


def test_without_any_pair_the_contrast_is_zero_and_still_trains(inputs):
    model = build(inputs, "clip").train()
    loss = model(batch(1)).losses["contrast"]
    loss.backward()
    assert loss == 0


# --- pathology-only rows ---


def test_clam_on_both_bags_without_microarrays_is_clam_on_slides(inputs):
    both = build(inputs, "clam_wsi_tma", complete_only=False).eval()
    slides = build(inputs, "clam_wsi").eval()
    slides.load_state_dict({name.replace("wsi+tma", "wsi"): value for name, value in both.state_dict().items()})
    patients = batch()
    torch.testing.assert_close(both(patients.without("tma")).logits, slides(patients).logits)
    assert not torch.allclose(both(patients).logits, slides(patients).logits)


def test_clam_on_both_bags_reads_them_as_one(inputs):
    model, one = build(inputs, "clam_wsi_tma").eval(), batch().single(1)
    weights = model(one).attention["wsi+tma"]
    assert weights.shape[1] == sum(bag.features.shape[1] for bag in one.bags.values())
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(1))


def test_clam_on_both_bags_and_complete_only_refuse_incomplete_patients(inputs):
    assert build(inputs, "clam_wsi_tma").refusal({"wsi", "blood"}) == "lacks tma"
    assert build(inputs, "complete").refusal({"wsi", "tma", "blood"}) == "lacks clinical"
    assert build(inputs).refusal({"blood"}) is None


def test_a_patient_with_nothing_is_refused(inputs):
    with pytest.raises(InputError, match="patient 2 of the batch: has none of"):
        build(inputs)(batch(lacks=[(2, m) for m in ALL]))


# --- survival endpoints, other cohorts ---


def test_time_bins_give_every_head_the_likelihood_and_teach_instances_by_events_alone(inputs):
    model, labels = build(replace(inputs, bins=4)), target(y=(0, 3, 1, 2, 3, 1))
    output = model.train()(batch())
    assert output.logits.shape == output.auxiliary["wsi_bag"].shape == output.auxiliary["reduced"].shape == (6, 4)
    found = model.supervised(output, labels)
    torch.testing.assert_close(found["wsi_bag"], labels.loss(output.auxiliary["wsi_bag"]).mean())
    found["wsi_instances"].backward()
    taught = model.encoders["wsi"].instance_heads.weight.grad.unflatten(0, (4, 2)).abs().sum(dim=(1, 2)) > 0
    assert taught.tolist() == [True, True, True, False]  # the bins of the patients with the event


SETS = {
    "seven": Inputs(bags={"wsi": 6, "tma": 4}, vectors=TABLES, bins=1),
    "two": Inputs(bags={"wsi": 6}, vectors={"omics": 9}, bins=4),
    "tables": Inputs(vectors={"clinical": 3, "blood": 5}, bins=1),
    "bags": Inputs(bags={"wsi": 6, "tma": 4, "mri": 5}, bins=4),
    "one table": Inputs(vectors={"clinical": 3}, bins=1),
    "one bag": Inputs(bags={"mri": 5}, bins=4),
}


@pytest.mark.parametrize("variant", [None, "no_detach", "mlp_all", "clip_drop", "mlp_all_no_phi"])
@pytest.mark.parametrize("offered", SETS)
def test_any_set_of_modalities_is_read_and_learns_whoever_lacks_what(offered, variant):
    sizes = SETS[offered]
    names = [*sizes.bags, *sizes.vectors]
    bags = {m: Bag(torch.randn(5, 7, width), torch.ones(5, 7, dtype=torch.bool)) for m, width in sizes.bags.items()}
    vectors = {m: torch.randn(5, width) for m, width in sizes.vectors.items()}
    patients = Patient(bags, vectors, {}, {m: torch.ones(5, dtype=torch.bool) for m in names})
    for row, name in enumerate(names[1:5]):  # the first row lacks the second modality, and so on
        patients = patients.without(name, torch.arange(5) == row)
    for name in names[1:]:  # the last row has one
        patients = patients.without(name, torch.arange(5) == 4)
    y, event = torch.arange(5) % sizes.bins, torch.tensor([True, False, True, False, True])
    model = build(sizes, variant)
    found = terms(model, patients, Target(y, event, lambda logits: discrete_nll(logits, y, event)))
    torch.stack(list(found.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    alone = torch.cat([model.eval()(patients.single(row)).logits for row in range(5)])
    torch.testing.assert_close(model(patients).logits, alone, atol=1e-5, rtol=1e-4)


def test_a_modality_whose_projection_has_become_zero_does_no_harm(inputs):
    model = build(inputs, "no_detach")
    with torch.no_grad():
        model.phi["blood"][-1].weight.zero_()
        model.phi["blood"][-1].bias.zero_()
    torch.stack(list(terms(model, batch(lacks=[(0, m) for m in ALL if m != "blood"]), target()).values())).sum().backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 100


def test_patients_without_a_bag_do_not_weigh_in_its_losses(inputs):
    model, labels = build(inputs), target()
    found = terms(model, batch(lacks=[(row, "wsi") for row in (0, 2)]), labels)
    rows = torch.tensor([1, 3, 4, 5])
    kept = batch()
    few = Patient(
        {m: Bag(b.features[rows], b.mask[rows]) for m, b in kept.bags.items()},
        {m: x[rows] for m, x in kept.vectors.items()},
        {},
        {m: x[rows] for m, x in kept.present.items()},
    )
    alone = terms(model, few, target(labels.event[rows].tolist()))
    for name in ("wsi_bag", "wsi_instances"):
        torch.testing.assert_close(found[name], alone[name])


def test_everything_that_a_cohort_offers_is_read_bags_first():
    offered = Inputs(bags={"mri": 4, "ct": 3}, vectors={"omics": 30, "age": 1}, groups={"families": (10, 20)}, bins=4)
    assert build(offered).modalities == ("ct", "mri", "age", "omics")
    assert build(Inputs(vectors={"omics": 30})).modalities == ("omics",)
    assert build(Inputs(bags={"mri": 4}), "clam_wsi", modalities=None).modalities == ("mri",)


@pytest.mark.parametrize(
    "variant, options, message",
    [
        (None, {"modalities": ["wsi", "mri"]}, "HAF reads mri, which the cohort does not offer"),
        (None, {"modalities": []}, "finds no modalities"),
        ("clam_wsi", {"modalities": ["blood"]}, "HAF reads blood"),
        (None, {"align": "gaa"}, "align"),
        (None, {"use_phi": False}, "aligns the outputs of phi"),
        ("clam_wsi", {"align": "ga"}, "aligns the outputs of phi"),
        (None, {"schedule": "sequential", "detach_stage1": False}, "freezes"),
        (None, {"schedule": "sequential", "detach_stage2": False}, "freezes"),
        (None, {"fusion": "mean"}, "fusion"),
    ],
)
def test_what_cannot_be_built_says_why(inputs, variant, options, message):
    with pytest.raises(InputError, match=message):
        build(inputs, variant, **options)


def test_bags_of_different_widths_are_not_one_bag():
    with pytest.raises(InputError, match="one width"):
        build(Inputs(bags={"wsi": 8, "tma": 9}), "clam_wsi_tma")


# --- explanations ---


def test_explanations_are_named_and_zero_where_a_modality_is_absent(inputs):
    model, patients = build(inputs).eval(), batch(lacks=[(1, "clinical")])
    assert model(patients).details == {}
    assert {name: tuple(a.shape) for name, a in model(patients).attention.items()} == {"tma": (6, 21), "wsi": (6, 21)}
    model.explain = True
    details = model(patients).details
    shapes = {"aligned": (6, 4, 16), "singular_values": (6, 4), "tma_logits": (6, 1), "wsi_logits": (6, 1)}
    assert {name: tuple(x.shape) for name, x in details.items()} == shapes
    assert (details["aligned"][1, ALL.index("clinical")] == 0).all()
    torch.testing.assert_close(details["singular_values"].square().sum(dim=1), torch.tensor([4.0, 3, 4, 4, 4, 4]))
    table = model.phi["blood"](patients.vectors["blood"])
    torch.testing.assert_close(details["aligned"][:, ALL.index("blood")], table)


# --- stage after stage ---


@pytest.mark.parametrize(
    "options, stages",
    [
        ({}, ("encoders", "alignment", "fusion")),
        ({"align": "none"}, ("encoders", "fusion")),
        ({"modalities": ["blood", "clinical"]}, ("alignment", "fusion")),
        ({"modalities": ["wsi"], "fusion": "none", "align": "none"}, ("all",)),
    ],
)
def test_stages_are_those_that_the_model_has(inputs, options, stages):
    assert build(inputs, "sequential", **options).stages == stages


def test_a_stage_trains_its_own_part_by_its_own_losses_and_is_watched_by_them(inputs):
    model, labels = build(inputs, "sequential"), target()
    owned = {"encoders": set(IMAGES), "alignment": {"singular_emphasis", "discriminability"}, "fusion": {"reduced", "monotonicity"}}
    parts = {"encoders": model.encoders, "alignment": model.phi, "fusion": model.fusion}
    for stage in model.stages:
        model.enter(stage)
        found = terms(model, batch(), labels)
        assert set(found) == {"full", *owned[stage]}
        assert [name for name, part in parts.items() if all(p.requires_grad for p in part.parameters())] == [stage]
        assert sum(p.requires_grad for p in model.parameters()) == len(list(parts[stage].parameters()))
        if stage != "fusion":
            output = model.eval()(batch())
            watched = sum([*output.losses.values(), *model.supervised(output, labels).values()])
            torch.testing.assert_close(model.watched(output, labels), watched)
    assert model.eval()(batch()).losses == {}


def test_what_is_frozen_has_no_dropout(inputs):
    model = build(inputs, "sequential", encoder_dropout=0.5, dropout=0.5, random_drop=False)
    varies = {}
    for stage in model.stages:
        model.enter(stage)
        model.train()
        first, again = (
            [model.encoders["wsi"](b.features, b.mask).vector, model.phi["blood"](batch().vectors["blood"])]
            for b in [batch().bags["wsi"]] * 2
        )
        varies[stage] = [not torch.equal(a, b) for a, b in zip(first, again, strict=True)]
    assert varies == {"encoders": [True, False], "alignment": [False, True], "fusion": [False, False]}
    assert not torch.equal(model(batch()).logits, model(batch()).logits)


def test_without_an_alignment_phi_is_trained_in_the_last_stage(inputs):
    model = build(inputs, "drop", schedule="sequential")
    model.enter("encoders")
    assert not any(p.requires_grad for p in model.phi.parameters())
    model.enter("fusion")
    assert all(p.requires_grad for p in [*model.phi.parameters(), *model.fusion.parameters()])


def made_cohort(size=60, follow_up=False):
    """Patients whose table `blood` decides about a binary label; bags and `clinical` are noise, some patients lack one."""
    rng = np.random.default_rng(0)
    ids = [f"p{i:02}" for i in range(size)]
    event = np.arange(size) % 2
    blood = rng.standard_normal((size, 5)).astype(np.float32)
    blood[:, 0] += 3 * (2 * event - 1)
    bags = {m: BagStore(10, {p: [rng.standard_normal((6, 10)).astype(np.float16)] for p in ids[at * 5 :]}) for at, m in enumerate(BAGS)}
    rows = {p: i for i, p in enumerate(ids)}
    data = CohortData({"blood": (rows, blood), "clinical": (rows, rng.standard_normal((size, 3)).astype(np.float32))}, {}, bags)
    labels = Labels(ids, np.ones(size), event, np.zeros(size, int), (0.0, 1.0))
    if follow_up:  # who has a high value dies early, the others late or not within ten years
        time = np.exp(-blood[:, 0] / 2) * 3
        labels = Labels(ids, np.minimum(time, 10), (time < 10).astype(int), np.digitize(np.minimum(time, 10), (1, 3, 8)), (0, 1, 3, 8, 10))
    return data, labels.take(np.arange(40)), labels.take(np.arange(40, 50)), labels.take(np.arange(50, 60))


@pytest.mark.parametrize("variant", [None, "sequential", "clip_drop", "mlp_all"])
def test_training_finds_a_planted_signal(inputs, variant, tmp_path):
    data, train, inner, test = made_cohort()
    protocol = Protocol(epochs=8, batch_size=10, lr=1e-2, sampler="uniform", selection="inner")
    trainer = Trainer(build(inputs, variant), data, protocol, seed=1)
    trainer.fit(train, inner, test, tmp_path / "c.pt", "key")
    risk = risk_score(trainer.predict(test.patients))
    assert harrell(test.time, test.event, risk.numpy()).value > 0.9


@pytest.mark.parametrize("loss, bins", [("nll", 4), ("cox", 1)])
@pytest.mark.parametrize("variant", [None, "sequential"])
def test_times_are_learnt_in_bins_and_as_one_risk(inputs, variant, loss, bins, tmp_path):
    data, train, _, test = made_cohort(follow_up=True)
    protocol = Protocol(loss=loss, epochs=8, batch_size=10, lr=1e-2, sampler="uniform")
    trainer = Trainer(build(replace(inputs, bins=bins), variant), data, protocol, seed=1)
    trainer.fit(train, None, test, tmp_path / "c.pt", "key")
    risk = risk_score(trainer.predict(test.patients))
    assert harrell(test.time, test.event, risk.numpy()).value > 0.8


class KilledError(Exception):
    """Stands for SIGKILL between two epochs."""


@pytest.mark.parametrize("variant, after", [(None, 2), ("sequential", 1), ("sequential", 4), ("sequential", 7)])
def test_a_killed_training_resumes_in_its_stage_to_the_same_bits(inputs, variant, after, tmp_path, monkeypatch):
    data, train, inner, test = made_cohort()
    protocol = Protocol(epochs=3, batch_size=20, lr=1e-2, schedule="plateau", selection="inner", checkpoint_seconds=0.0)

    def run(name):
        trainer = Trainer(build(inputs, variant), data, protocol, seed=1)
        return trainer.fit(train, inner, test, tmp_path / name, "key"), trainer.model.state_dict()

    whole, weights = run("whole")
    assert [row["stage"] for row in whole] == sorted([*range(len(build(inputs, variant).stages))] * 3)
    epoch = Trainer._epoch

    def dying(self, number, *rest):
        if number == after:
            raise KilledError
        return epoch(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", dying)
        with pytest.raises(KilledError):
            run("cut")
    resumed, again = run("cut")
    assert resumed == whole
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_a_training_that_diverges_is_told_as_such(inputs, tmp_path):
    data, train, inner, test = made_cohort()
    with pytest.raises(NonFiniteLossError):
        Trainer(build(inputs), data, Protocol(epochs=3, batch_size=20, lr=1e30), 1).fit(train, inner, test, tmp_path / "c", "key")


def test_an_earlier_stage_no_longer_moves_in_a_later_one(inputs, tmp_path):
    data, train, inner, test = made_cohort()
    model = build(inputs, "sequential")
    states, enter = {}, model.enter

    def noted(stage):
        states[stage] = {name: value.clone() for name, value in model.state_dict().items()}
        enter(stage)

    model.enter = noted
    Trainer(model, data, Protocol(epochs=4, batch_size=20, selection="inner", weight_decay=0.1), 1).fit(
        train, inner, test, tmp_path / "c", "k"
    )
    last = model.state_dict()
    moved = [
        {name.partition(".")[0] for name in last if not torch.equal(before[name], after[name])}
        for before, after in zip(states.values(), [*list(states.values())[1:], last], strict=True)
    ]
    assert moved == [{"encoders"}, {"phi"}, {"fusion"}]


def test_an_alignment_that_is_perfect_costs_what_its_closed_form_says():
    inputs = Inputs(vectors={name: 3 for name in "abcdefg"}, bins=1)
    model = build(inputs, "ga")
    with torch.no_grad():
        for phi in model.phi.values():
            phi.load_state_dict(model.phi["a"].state_dict())
    row = torch.randn(5, 3)
    patients = Patient(vectors=dict.fromkeys("abcdefg", row), present=dict.fromkeys("abcdefg", torch.ones(5, dtype=torch.bool)))
    found = float(model.train()(patients).losses["singular_emphasis"].detach())
    assert found == pytest.approx(math.log1p(6 * math.exp(-math.sqrt(7) / 0.1)), rel=0.05)
