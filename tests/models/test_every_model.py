"""What holds for every model and variant, whichever file it comes from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.cohort.record import Bag, Labels, Patient
from pipeline.errors import InputError
from pipeline.models import available_models, build_model, load_model_config, model_variants
from pipeline.models.interface import Target
from pipeline.nn.hazards import risk_score, survival

VARIANTS = [(name, variant) for name in available_models() for variant in [None, *model_variants(name)]]
REPEATABLE = [v for v in VARIANTS if v not in {("hdmoe", "random"), ("hdmoe", "code")}]  # those draw segments in evaluation, too
# Exact zeros by the shift invariance of a softmax: biases of keys, and the last bias of an attention pooling.
NO_GRADIENT = ("pool.score.bias", "key.bias")
BATCHES = {"complete": ("", "", ""), "mixed": ("", "omics", "wsi")}


# Fitted in `prepare`, without gradients or anything random in the forward pass; of these, who gives one number whatever the bins.
FITTED = {name for name in available_models() if not load_model_config(name)["training"]["epochs"]}
BINARY = {"logistic", "forest"}
ONE_NUMBER = {"coxnet", *BINARY}
WEIGHED = {"camlif"}  # its class token is one among the patches, so their number matters
OWN_GRADIENT_TESTS = {"adamhf", "haf", "hdmoe"}  # weights that only some patients or only auxiliary losses reach
ROUTED = {"adamhf"}  # which expert is run, and which patches are kept, is a comparison of numbers: in half precision another may win


def untrained(name, inputs, variant=None, **options):
    """The model with the options that make its tests fast, where it has them."""
    small = {"n_query_h": 6, "n_query_g": 4} if name == "survq" and not (variant or "").startswith("queries") else {}
    small |= {"snn_hidden": 32} if name == "hdmoe" else {"gene_hidden": 32} if name == "adamhf" else {}
    small |= {"trees": 5} if name in ("rsf", "forest") else {}
    small |= {"modalities": ["omics"]} if name in FITTED else {}
    small |= {"modalities": ["wsi"]} if (name, (variant or "")[:3]) == ("hdmoe", "mri") or "tma" in (variant or "") else {}
    return build_model(name, replace(inputs, bins=1) if name in ONE_NUMBER else inputs, variant, **small, **options)


def build(name, inputs, variant=None, **options):
    """The same; fitted, if it fits itself."""
    model = untrained(name, inputs, variant, **options)
    if name in FITTED:
        model.prepare([training_side(inputs, binary=name in BINARY)])
    return model


def training_side(inputs, binary):
    """60 patients whose first feature decides."""
    omics = torch.randn(60, inputs.vectors["omics"])
    time = np.exp(-omics[:, 0].numpy().astype(float)) * np.random.default_rng(0).exponential(size=60)
    event = (omics[:, 0] + torch.randn(60) > 0).int().numpy() if binary else np.arange(60) % 3 % 2
    edges = (0.0, 1.0) if binary else tuple(np.quantile(time, np.linspace(0, 1, inputs.bins + 1)) + 1e-6)
    labels = Labels([f"p{i:02}" for i in range(60)], np.ones(60) if binary else time, event, np.zeros(60, int), edges)
    return Patient(vectors={"omics": omics}, present={"omics": torch.ones(60, dtype=torch.bool)}), labels


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_every_variant_runs_forward_and_backward(name, variant, inputs, draw, stack):
    model = build(name, inputs, variant)
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
def test_every_parameter_gets_a_gradient(name, inputs, draw, stack):
    model = build(name, inputs).double().eval()
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


@pytest.mark.parametrize("name, variant", [v for v in REPEATABLE if v != ("abmil", "unmasked")])  # there padding takes part
@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch_gives_what_its_patients_give_alone(name, variant, batch, inputs, draw, stack):
    model = build(name, inputs, variant).eval()
    patients = [draw(patches, lacks) for patches, lacks in zip((9, 13, 5), BATCHES[batch], strict=True)]
    patients = [p for p in patients if model.refusal(p.modalities(0)) is None]
    together = model(stack(patients)).logits
    alone = torch.cat([model(p).logits for p in patients])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_order_and_duplication_of_patches_matter_only_where_a_model_says_so(name, variant, inputs, draw):
    model, patient = build(name, inputs, variant).eval(), draw()
    features = patient.bags["wsi"].features
    with_bag = {"shuffled": features[:, torch.randperm(features.shape[1])]}
    if name not in WEIGHED:
        with_bag["twice"] = torch.cat([features, features], dim=1)
    for changed in with_bag.values() if not model.ordered else ():
        other = replace(patient, bags={"wsi": Bag(changed, torch.ones(changed.shape[:2], dtype=torch.bool))})
        torch.testing.assert_close(model(other).logits, model(patient).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", available_models())
def test_what_padding_holds_is_never_read(name, inputs, draw, stack):
    model, batch = build(name, inputs).eval(), stack([draw(9), draw(13)])
    bag = batch.bags["wsi"]
    noise = torch.where(bag.mask[..., None], bag.features, torch.full_like(bag.features, 1e3))
    dirty = replace(batch, bags={"wsi": Bag(noise, bag.mask)})
    torch.testing.assert_close(model(dirty).logits, model(batch).logits)


@pytest.mark.parametrize("name", available_models())
def test_a_patient_with_nothing_is_refused(name, inputs, draw):
    model = build(name, inputs)
    nothing = draw().without("wsi").without("omics")
    with pytest.raises(InputError, match=f"{type(model).__name__} cannot predict patient 0 of the batch: (lacks|has none of)"):
        model(nothing)


@pytest.mark.parametrize("name", available_models())
def test_the_refusal_names_the_patient_of_the_batch(name, inputs, draw, stack):
    model = build(name, inputs)
    batch = stack([draw(), draw()])
    rows = torch.tensor([False, True])
    with pytest.raises(InputError, match="patient 1 of the batch"):
        model(batch.without("wsi", rows).without("omics", rows))


@pytest.mark.parametrize("name", available_models())
def test_attention_that_sums_to_one_does_so_and_skips_padding(name, inputs, draw, stack):
    model = build(name, inputs).eval()
    model.explain = True
    for key, weights in model(stack([draw(9), draw(13)])).attention.items():
        if key.endswith("_scores"):
            continue
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        if weights.shape[-1] == 15:  # patches: 9 and 13 real ones of 15
            assert (weights[0, ..., 9:] == 0).all()


@pytest.mark.parametrize("name, variant", REPEATABLE)
def test_mixed_precision_runs_and_stays_close(name, variant, inputs, draw, stack):
    model, batch = build(name, inputs, variant).eval(), stack([draw(9), draw(13)])
    exact = model(batch).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(batch).logits
    if name in ROUTED:
        assert rough.isfinite().all()
        return
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name, variant", REPEATABLE)
def test_a_model_is_saved_and_read_back_without_pickle(name, variant, inputs, draw, tmp_path):
    from safetensors.torch import load_file, save_file

    model, patient = build(name, inputs, variant).eval(), draw()
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    torch.manual_seed(99)
    again = untrained(name, inputs, variant).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again(patient).logits, model(patient).logits)
