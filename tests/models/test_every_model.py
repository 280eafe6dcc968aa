"""What holds for every model and variant, whichever file it comes from.

A network is `narrow` here, built once and shared by the tests that only read it; at its own width it is built for `long` tests alone.
A variant that builds the network of another, as those do that change the protocol alone, would repeat the other's tests to the bit
and is left out. Of variants that set one option to other and other real numbers, the first and the last are run, and all in `long`.
"""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from pipeline.cohort.record import Bag, Labels, Patient
from pipeline.errors import InputError
from pipeline.models import available_models, build_model, load_model_config, model_variants
from pipeline.models.interface import Target
from pipeline.nn.hazards import risk_score, survival

# Narrow widths of the models that would take long otherwise; a variant that changes one of them keeps its own.
NARROW = {
    "abmil": {"L": 32, "D": 16},
    "adamhf": {"width": 16, "gene_hidden": 12, "heads": 4, "patch_expert_hidden": 4, "gene_expert_hidden": 8, "frozen_hidden": 8},
    "camlif": {"group_hidden": 32, "alone_hidden": [32, 16, 8]},
    "haf": {"d1": 16, "d2": 8, "d_out": 16, "phi_hidden": 16, "fusion_hidden": 16},
    "hdmoe": {"snn_hidden": 32, "expert_hidden": 16},  # its tokens of up to 256 numbers want the whole width
    "survq": {"n_query_h": 6, "n_query_g": 4, "width": 32, "patch_hidden": 32},
}
SIZES = ["narrow", pytest.param("own", marks=pytest.mark.long)]
# Fitted in `prepare`, without gradients or anything random in the forward pass; of these, who gives one number whatever the bins.
FITTED = {name for name in available_models() if not load_model_config(name)["training"]["epochs"]}
BINARY = {"logistic", "forest"}
ONE_NUMBER = {"coxnet", *BINARY}
WEIGHED = {"camlif"}  # its class token is one among the patches, so their number matters
OWN_GRADIENT_TESTS = {"adamhf", "haf", "hdmoe"}  # weights that only some patients or only auxiliary losses reach
ROUTED = {"adamhf"}  # which expert is run, and which patches are kept, is a comparison of numbers: in half precision another may win


@cache
def settings(name, variant=None):
    return load_model_config(name, variant)["model"]


def options(name, variant=None, size="narrow"):
    """The options that are tested: few trees, narrow unless it is the model's `own` size, and what the tests' inputs offer."""
    default, found = settings(name), dict(settings(name, variant))
    narrow = NARROW.get(name, {}) if size == "narrow" else {}
    found |= {key: value for key, value in narrow.items() if found[key] == default[key]}
    found |= {"trees": 5} if name in ("rsf", "forest") else {}
    found |= {"modalities": ["omics"]} if name in FITTED else {}
    found |= {"modalities": ["wsi"]} if {"mri", "tma"} & set(found.get("modalities") or ()) else {}
    return found


def networks():
    """(model, variant) of each network, to parametrise with; of variants with the same options, the first."""
    found = []
    for name in available_models():
        distinct = {}
        for variant in [None, *model_variants(name)]:
            if (model := options(name, variant)) not in distinct.values():
                distinct[variant] = model
        inner = between(distinct)
        found += [pytest.param(name, variant, marks=pytest.mark.long if variant in inner else ()) for variant in distinct]
    return found


def between(distinct):
    """Variants that set one option alone, and to a real number, as one before and one after them does."""
    series = {}
    for variant, model in distinct.items():
        changed = [key for key, value in model.items() if value != distinct[None][key]]
        if len(changed) == 1 and isinstance(model[changed[0]], float):
            series.setdefault(changed[0], []).append(variant)
    return {variant for variants in series.values() for variant in variants[1:-1]}


VARIANTS = networks()
REPEATABLE = [v for v in VARIANTS if v.values not in {("hdmoe", "random"), ("hdmoe", "code")}]  # those draw segments in evaluation, too
# Exact zeros by the shift invariance of a softmax: biases of keys, and the last bias of an attention pooling.
NO_GRADIENT = ("pool.score.bias", "key.bias")
BATCHES = {"complete": ("", "", ""), "mixed": ("", "omics", "wsi")}


def untrained(name, inputs, variant=None, size="narrow", **changes):
    inputs = replace(inputs, bins=1) if name in ONE_NUMBER else inputs
    return build_model(name, inputs, variant, **{**options(name, variant, size), **changes})


def build(name, inputs, variant=None, size="narrow", **changes):
    """A new model; fitted, if it fits itself."""
    model = untrained(name, inputs, variant, size, **changes)
    if name in FITTED:
        model.prepare([training_side(inputs, binary=name in BINARY)])
    return model


@pytest.fixture(scope="module")
def built(inputs):
    """built(name, variant, size): a model in evaluation; the narrow ones are shared, so who changes one takes a copy."""

    def make(name, variant=None, size="narrow"):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return build(name, inputs, variant, size).eval()

    shared = cache(make)
    return lambda name, variant=None, size="narrow": (shared if size == "narrow" else make)(name, variant, size)


def training_side(inputs, binary):
    """60 patients whose first feature decides."""
    omics = torch.randn(60, inputs.vectors["omics"])
    time = np.exp(-omics[:, 0].numpy().astype(float)) * np.random.default_rng(0).exponential(size=60)
    event = (omics[:, 0] + torch.randn(60) > 0).int().numpy() if binary else np.arange(60) % 3 % 2
    edges = (0.0, 1.0) if binary else tuple(np.quantile(time, np.linspace(0, 1, inputs.bins + 1)) + 1e-6)
    labels = Labels([f"p{i:02}" for i in range(60)], np.ones(60) if binary else time, event, np.zeros(60, int), edges)
    return Patient(vectors={"omics": omics}, present={"omics": torch.ones(60, dtype=torch.bool)}), labels


@pytest.mark.parametrize("name, variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_every_variant_runs_forward_and_backward(name, variant, size, built, draw, stack):
    model = deepcopy(built(name, variant, size)).train()
    output = model(stack([draw(9), draw(13)]))
    target = Target(torch.tensor([0, 1]) % output.logits.shape[1], torch.tensor([True, False]), lambda logits: logits.square().sum(dim=1))
    assert output.logits.shape == (2, 1 if name in ONE_NUMBER else 4)
    if name in FITTED:
        assert not output.logits.requires_grad
        return
    terms = [*output.losses.values(), *model.supervised(output, target).values()]
    assert all(term.dim() == 0 and term.isfinite() for term in terms)
    (output.logits.square().sum() + sum(terms, torch.zeros(()))).backward()
    absent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None and not n.startswith("absent_")]
    if name in ROUTED:
        absent = [n for n in absent if ".experts." not in n]
    assert not absent
    assert (survival(output.logits).diff(dim=1) <= 0).all()


@pytest.mark.parametrize("name", available_models())
def test_one_bin_gives_a_log_risk(name, inputs, draw):
    logits = build(name, replace(inputs, bins=1))(draw()).logits
    assert logits.shape == (1, 1)
    torch.testing.assert_close(risk_score(logits), logits[:, 0])


@pytest.mark.parametrize("name", sorted(set(available_models()) - FITTED - OWN_GRADIENT_TESTS))
def test_every_parameter_gets_a_gradient(name, built, draw, stack):
    model = deepcopy(built(name)).double()
    batch = stack([draw(9), draw(13), draw(20)])
    batch = type(batch)(
        {m: type(b)(b.features.double(), b.mask) for m, b in batch.bags.items()},
        {m: x.double() for m, x in batch.vectors.items()},
        {g: x.double() for g, x in batch.groups.items()},
        batch.present,
    )
    (model(batch).logits * torch.tensor([1.0, -2.0, 3.0, 0.5])).square().sum().backward()
    for parameter, value in model.named_parameters():
        largest = float(value.grad.abs().max())
        zero = parameter.endswith(NO_GRADIENT)
        if parameter.endswith("self_attn.in_proj_bias"):  # query, key and value biases in one vector
            third = len(value) // 3
            assert float(value.grad[third : 2 * third].abs().max()) < 1e-12, parameter
        assert (largest < 1e-12) if zero else (largest > 1e-12), parameter


@pytest.mark.parametrize("name", available_models())
def test_evaluation_is_deterministic_and_training_is_not(name, inputs, draw):
    dropout = {"dropout": 0.25} if name in ("tabular_mlp", "haf") else {}  # by default they have none
    model, patient = build(name, inputs, **dropout), draw()
    assert torch.equal(model(patient).logits, model(patient).logits) == (name in FITTED)
    model.eval()
    assert torch.equal(model(patient).logits, model(patient).logits)


@pytest.mark.parametrize("name, variant", [v for v in REPEATABLE if v.values != ("abmil", "unmasked")])  # there padding takes part
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("size", SIZES)
def test_a_batch_gives_what_its_patients_give_alone(name, variant, batch, size, built, draw, stack):
    model = built(name, variant, size)
    patients = [draw(patches, lacks) for patches, lacks in zip((9, 13, 5), BATCHES[batch], strict=True)]
    patients = [p for p in patients if model.refusal(p.modalities(0)) is None]
    together = model(stack(patients)).logits
    alone = torch.cat([model(p).logits for p in patients])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name, variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_order_and_duplication_of_patches_matter_only_where_a_model_says_so(name, variant, size, built, draw):
    model, patient = built(name, variant, size), draw()
    features = patient.bags["wsi"].features
    with_bag = {"shuffled": features[:, torch.randperm(features.shape[1])]}
    if name not in WEIGHED:
        with_bag["twice"] = torch.cat([features, features], dim=1)
    for changed in with_bag.values() if not model.ordered else ():
        other = replace(patient, bags={"wsi": Bag(changed, torch.ones(changed.shape[:2], dtype=torch.bool))})
        torch.testing.assert_close(model(other).logits, model(patient).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", available_models())
def test_what_padding_holds_is_never_read(name, built, draw, stack):
    model, batch = built(name), stack([draw(9), draw(13)])
    bag = batch.bags["wsi"]
    noise = torch.where(bag.mask[..., None], bag.features, torch.full_like(bag.features, 1e3))
    dirty = replace(batch, bags={"wsi": Bag(noise, bag.mask)})
    torch.testing.assert_close(model(dirty).logits, model(batch).logits)


@pytest.mark.parametrize("name", available_models())
def test_a_patient_with_nothing_is_refused(name, built, draw):
    model = built(name)
    nothing = draw().without("wsi").without("omics")
    with pytest.raises(InputError, match=f"{type(model).__name__} cannot predict patient 0 of the batch: (lacks|has none of)"):
        model(nothing)


@pytest.mark.parametrize("name", available_models())
def test_the_refusal_names_the_patient_of_the_batch(name, built, draw, stack):
    model = built(name)
    batch = stack([draw(), draw()])
    rows = torch.tensor([False, True])
    with pytest.raises(InputError, match="patient 1 of the batch"):
        model(batch.without("wsi", rows).without("omics", rows))


@pytest.mark.parametrize("name", available_models())
def test_attention_that_sums_to_one_does_so_and_skips_padding(name, built, draw, stack):
    model = deepcopy(built(name))
    model.explain = True
    for key, weights in model(stack([draw(9), draw(13)])).attention.items():
        if key.endswith("_scores"):
            continue
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        if weights.shape[-1] == 15:  # patches: 9 and 13 real ones of 15
            assert (weights[0, ..., 9:] == 0).all()


@pytest.mark.parametrize("name, variant", REPEATABLE)
@pytest.mark.parametrize("size", SIZES)
def test_mixed_precision_runs_and_stays_close(name, variant, size, built, draw, stack):
    model, batch = built(name, variant, size), stack([draw(9), draw(13)])
    exact = model(batch).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(batch).logits
    if name in ROUTED:
        assert rough.isfinite().all()
        return
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name, variant", REPEATABLE)
@pytest.mark.parametrize("size", SIZES)
def test_a_model_is_saved_and_read_back_without_pickle(name, variant, size, inputs, built, draw, tmp_path):
    from safetensors.torch import load_file, save_file

    model, patient = built(name, variant, size), draw()
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    torch.manual_seed(99)
    again = untrained(name, inputs, variant, size).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again(patient).logits, model(patient).logits)
