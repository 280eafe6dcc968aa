import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.cohort.record import Bag
from pipeline.config import ROOT
from pipeline.errors import InputError
from pipeline.models import build_model, load_model_config
from pipeline.models.interface import Inputs
from pipeline.models.reference import forward_flops, parameters, reference_patient
from pipeline.models.survq import PATHWAYS, pca_retention
from pipeline.training.losses import discrete_nll

REFERENCE = Inputs(bags={"wsi": 1024}, groups={"pathways": PATHWAYS})
SMALL = {"n_query_h": 6, "n_query_g": 4}


@pytest.fixture(scope="module")
def full():
    return build_model("survq", REFERENCE).eval()


def sharpened(model):
    """The model with attention far from uniform: as it starts, weights differ in the sixth digit and mistakes in them do not show."""
    with torch.no_grad():
        for attention, factor in ((model.hist_queries.attention, 50), (model.geno_queries.attention, 50), (model.mixer, 2e3)):
            attention.attend.query.weight.mul_(factor)
    return model


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_reference_pathways_have_the_published_number_and_memberships():
    assert (len(PATHWAYS), sum(PATHWAYS)) == (331, 9745)


def test_parameters_are_those_of_the_specification(full):
    assert parameters(full) == 25_728_836
    queries = full.hist_queries.queries.numel() + full.geno_queries.queries.numel()
    attentions = [full.hist_queries.attention, full.geno_queries.attention, full.mixer]
    assert [count(m) for m in (full.pathways, full.patches, full.head, *attentions)] == [24_356_608, 656_128, 16_708, *[196_608] * 3]
    assert queries == 109_568


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"patch_proj": "linear"}, 25_335_108),
        ({"n_query_h": 400}, 25_754_436),
        ({"queries_trainable": False}, 25_728_836 - 109_568),
        ({"modalities": ["omics"]}, 24_356_608 + 128 * 256 + 2 * 196_608 + 16_708),
        ({"modalities": ["wsi"]}, 656_128 + 300 * 256 + 2 * 196_608 + 16_708),
        ({"hist_queries": False, "geno_queries": False, "self_attn": False}, 24_356_608 + 656_128 + 33_092),
        ({"residual_norm": True}, 25_728_836 + 3 * 512),
        ({"ffn": True}, 25_728_836 + 3 * (2 * 256 * 512 + 512 + 256)),
        ({"attn_bias": True}, 25_728_836 + 3 * 2 * 256),
        ({"heads": 4}, 25_728_836),
        ({"folded": False}, 25_728_836),
    ],
)
def test_parameters_of_the_switches_are_those_of_the_specification(options, expected):
    assert parameters(build_model("survq", REFERENCE, **options)) == expected


def test_reactome_pathways_alone_have_the_published_encoder():
    inputs = Inputs(bags={"wsi": 1024}, groups={"pathways": (10,) * 106 + (9,) * 175})
    assert count(build_model("survq", inputs, **SMALL).pathways) == 19_234_048


@pytest.mark.parametrize(
    "patches, plain, folded",
    [
        (1024, 2_515_723_264, 2.273),
        (4096, 8_291_279_872, 7.243),
        pytest.param(16384, 31_393_506_304, 27.124, marks=pytest.mark.slow),
    ],
)
def test_operations_are_those_of_the_specification_plain_and_folded(full, patches, plain, folded):
    patient = reference_patient(REFERENCE, patches)
    assert round(forward_flops(full, patient) / 1e9, 3) == folded
    assert forward_flops(unfolded(full), patient) == plain


def test_operations_grow_by_the_same_amount_a_patch_and_stay_within_the_budget(full):
    counts = [forward_flops(full, reference_patient(REFERENCE, n)) for n in (1024, 4096, 7168)]
    assert counts[2] - counts[1] == counts[1] - counts[0] == 3072 * 2 * (1024 * 512 + 512 * 256 + 2 * 300 * 256)
    assert counts[1] <= 7.3e9


def unfolded(model):
    """A copy that forms keys and values."""
    other = deepcopy(model)
    for queries in (other.hist_queries, other.geno_queries):
        queries.attention.attend.folded = False
    return other


PAPER = {"hist_queries": True, "geno_queries": True, "self_attn": True, "n_query_h": 300, "n_query_g": 128, "queries_trainable": True}


@pytest.mark.parametrize(
    "variant, differs",
    [
        (None, {}),
        ("no_queries", {"hist_queries": False, "geno_queries": False, "self_attn": False}),  # Table 2
        ("hist_queries", {"geno_queries": False, "self_attn": False}),
        ("no_self_attn", {"self_attn": False}),
        ("queries_400_128", {"n_query_h": 400}),  # Table 3
        ("queries_200_128", {"n_query_h": 200}),
        ("queries_300_256", {"n_query_g": 256}),
        ("queries_300_64", {"n_query_g": 64}),
        ("frozen_queries", {"queries_trainable": False}),  # Table 4
    ],
)
def test_the_rows_of_tables_2_to_4_are_variants(variant, differs):
    settings = load_model_config("survq", variant)["model"]
    assert {name: settings[name] for name in PAPER} == PAPER | differs


def test_the_training_protocol_is_that_of_section_4_3():
    training = load_model_config("survq")["training"]
    stated = {"loss": "nll", "alpha": 0.0, "optimizer": "adamw", "lr": 5e-4, "weight_decay": 1e-3, "batch_size": 32, "epochs": 50}
    ours = {"schedule": "none", "sampler": "uniform", "max_patches_train": 4096, "selection": "last", "bins_from": "train"}
    assert {name: training[name] for name in stated | ours} == stated | ours


def test_the_loss_is_the_equation_of_section_3_4():
    logits, y, c = torch.randn(8, 4), torch.arange(8) % 4, torch.tensor([0.0] * 4 + [1.0] * 4)  # c = 1: censored
    hazards = logits.sigmoid()
    survival = torch.cat([torch.ones(8, 1), (1 - hazards).cumprod(dim=1)], dim=1)  # S(-1) = 1, S(0), …
    before, after, hazard = (x.gather(1, at[:, None])[:, 0] for x, at in ((survival, y), (survival, y + 1), (hazards, y)))
    expected = -c * after.log() - (1 - c) * before.log() - (1 - c) * hazard.log()
    alpha = load_model_config("survq")["training"]["alpha"]
    torch.testing.assert_close(discrete_nll(logits, y, c == 0, alpha), expected)


@pytest.mark.parametrize("variant, std", [(None, 1.0), ("small_queries", 0.02)])
def test_queries_start_as_normal_numbers_of_the_stated_deviation(variant, std):
    offered = replace(REFERENCE, groups={"pathways": (3, 4)})
    queries = build_model("survq", offered, variant).hist_queries.queries.detach()
    assert float(queries.std()) == pytest.approx(std, rel=0.02)
    assert float(queries.mean()) == pytest.approx(0, abs=0.02 * std)


@pytest.mark.parametrize("option, value", [("n_query_h", 200), ("heads", 4), ("patch_proj", "linear")])
def test_the_folded_form_never_takes_more_operations_than_the_plain_one(option, value):
    offered = replace(REFERENCE, groups={"pathways": (3, 4)})
    patient = reference_patient(offered, 4096)
    operations = [forward_flops(build_model("survq", offered, folded=f, **{option: value}), patient) for f in (True, False)]
    assert operations[0] <= operations[1]


@pytest.mark.parametrize("variant", [None, "heads_4", "attn_bias", "residual_norm", "linear_projection"])
def test_folded_and_plain_form_agree_in_logits_and_gradients(inputs, draw, stack, variant):
    model, batch = sharpened(build_model("survq", inputs, variant, **SMALL).eval().double()), double(stack([draw(9), draw(13)]))
    results = []
    for folded in (True, False):
        for queries in (model.hist_queries, model.geno_queries):
            queries.attention.attend.folded = folded
        model.zero_grad()
        logits = model(batch).logits
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def double(patient):
    bags = {m: Bag(bag.features.double(), bag.mask) for m, bag in patient.bags.items()}
    return replace(patient, bags=bags, groups={g: x.double() for g, x in patient.groups.items()})


def test_the_model_is_equations_1_to_3_written_out(inputs, draw):
    model, patient = sharpened(build_model("survq", inputs, **SMALL).eval()), draw()

    def attention(weights, queries, tokens):
        q, k, v = (x @ layer.weight.T for x, layer in ((queries, weights.query), (tokens, weights.key), (tokens, weights.value)))
        return (q @ k.T / 256**0.5).softmax(dim=1) @ v

    first, last = model.patches[0], model.patches[-1]
    x_h = (patient.bags["wsi"].features[0] @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias
    genes = patient.groups["pathways"].split(list(inputs.groups["pathways"]), dim=1)
    x_g = torch.cat([model.pathways.network(g)(x) for g, x in enumerate(genes)])
    q_h = attention(model.hist_queries.attention.attend, model.hist_queries.queries[0], x_h)  # eq. 1
    q_g = attention(model.geno_queries.attention.attend, model.geno_queries.queries[0], x_g)  # eq. 2
    m = torch.cat([q_h, q_g])
    z = attention(model.mixer.attend, m, m).mean(dim=0)  # eq. 3
    torch.testing.assert_close(model(patient).logits[0], model.head(z))


class _Shapes(TorchDispatchMode):
    """Keeps the shape of every tensor that an operation makes."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        self.made = getattr(self, "made", []) + [tuple(x.shape) for x in made if isinstance(x, torch.Tensor)]
        return result


@pytest.mark.parametrize("training", [True, False])
def test_no_matrix_of_queries_by_patches_is_ever_made(inputs, training):
    offered = replace(inputs, bags={"wsi": 24})
    model, patient = build_model("survq", offered, n_query_h=77, n_query_g=4).train(training), reference_patient(offered, 1999)
    with _Shapes() as shapes:
        model(patient).logits.sum().backward()
    assert not [shape for shape in shapes.made if 77 in shape and 1999 in shape]
    assert [shape for shape in shapes.made if 1999 in shape]


# The peak is the kernel's VmHWM of this program alone: getrusage begins with that of the process that started it.
MEASURE = """
import re, sys, torch
from pathlib import Path
from pipeline.models import build_model
from pipeline.models.reference import reference_patient
from pipeline.models.registry import entry
known = entry("survq")
model, patient = build_model("survq", known.reference), reference_patient(known.reference, int(sys.argv[1]))
with torch.no_grad():
    model.eval()(patient)
optimizer = torch.optim.AdamW(model.parameters())
model.train()(patient).logits.square().sum().backward()
optimizer.step()
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize(
    "patches, limit", [pytest.param(20_000, 1.7, marks=pytest.mark.slow), pytest.param(100_000, 3, marks=pytest.mark.long)]
)
def test_a_hundred_thousand_patches_are_predicted_and_trained_on_in_less_than_3_gib(patches, limit):
    """And a fifth of them in 1.7 GiB: 1.3 GiB are taken without any patch, and a fifth of the rest is 0.35 GiB."""
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURE, str(patches)], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) / 2**20 < limit


def test_maps_and_details_come_only_when_asked_for(full):
    patient = reference_patient(REFERENCE, 50)
    assert full(patient).attention == full(patient).details == {}
    full.explain = True
    output = full(patient)
    full.explain = False
    assert {name: tuple(a.shape) for name, a in output.attention.items()} == {
        "wsi": (1, 300, 50),
        "omics": (1, 128, 331),
        "mixed": (1, 428, 428),
    }
    assert {name: tuple(a.shape) for name, a in output.details.items()} == {
        "wsi_queries": (1, 300, 256),
        "omics_queries": (1, 128, 256),
        "wsi_retention": (1, 2, 2),
        "omics_retention": (1, 2, 2),
        "omics_to_wsi": (1, 128, 300),
        "omics_to_wsi_instances": (1, 128, 50),
        "wsi_to_omics": (1, 300, 128),
        "wsi_to_omics_instances": (1, 300, 331),
    }
    torch.testing.assert_close(output.logits, full(patient).logits)


def test_the_maps_are_those_that_the_output_is_made_with(inputs, draw):
    model, patient = sharpened(build_model("survq", inputs, **SMALL).eval()), draw()
    model.explain = True
    output = model(patient)
    assert output.attention["mixed"].std(dim=2).min() > 0.01
    for name, queries, tokens in (
        ("wsi", model.hist_queries, model.patches(patient.bags["wsi"].features)),
        ("omics", model.geno_queries, model.pathways(patient.groups["pathways"])),
    ):
        values = queries.attention.attend.value(tokens)
        torch.testing.assert_close(output.details[f"{name}_queries"], output.attention[name] @ values)
    mixed = torch.cat([output.details["wsi_queries"], output.details["omics_queries"]], dim=1)
    z = (output.attention["mixed"] @ model.mixer.attend.value(mixed)).mean(dim=1)
    torch.testing.assert_close(output.logits, model.head(z))


@pytest.mark.parametrize("name", ["wsi", "omics"])
def test_a_query_made_to_look_at_one_token_has_that_token_on_top(inputs, draw, name):
    model, patient, planted = build_model("survq", inputs, **SMALL).eval(), draw(), 3
    model.explain = True
    queries, tokens = {
        "wsi": (model.hist_queries, model.patches(patient.bags["wsi"].features)),
        "omics": (model.geno_queries, model.pathways(patient.groups["pathways"])),
    }[name]
    with torch.no_grad():
        keys = queries.attention.attend.key(tokens)[0]
        apart = keys[planted] - keys[torch.arange(len(keys)) != planted].mean(dim=0)
        queries.queries[0, 2] = 1e3 * torch.linalg.lstsq(queries.attention.attend.query.weight, apart[:, None]).solution[:, 0]
    attention = model(patient).attention[name].detach()
    assert int(attention[0, 2].argmax()) == planted
    assert float(attention[0, 2, planted]) > 0.9


@pytest.mark.parametrize(
    "one, other, rows, columns", [("omics", "wsi", slice(6, None), slice(6)), ("wsi", "omics", slice(6), slice(6, None))]
)
def test_queries_are_carried_through_the_self_attention_to_the_other_modality(inputs, draw, stack, one, other, rows, columns):
    model = sharpened(build_model("survq", inputs, **SMALL).eval())
    model.explain = True
    output = model(stack([draw(9), draw(13)]))
    across, reached = output.details[f"{one}_to_{other}"], output.details[f"{one}_to_{other}_instances"]
    torch.testing.assert_close(across, output.attention["mixed"][:, rows, columns])
    assert across.std(dim=2).max() > 0.01
    dealt = sum(across[:, :, q, None] * output.attention[other][:, None, q] for q in range(across.shape[2]))
    torch.testing.assert_close(reached, dealt)  # what a query of the other gets is dealt to its instances
    assert (output.details["omics_to_wsi_instances"][0, :, 9:] == 0).all()


def test_retention_of_outputs_within_askew_and_beside_the_principal_axis():
    tokens = torch.linspace(-1, 1, 21)[:, None] * torch.tensor([3.0, 0.0, 0.0]) + torch.tensor([5.0, 1.0, 1.0])
    mean = tokens.mean(dim=0)
    for step, kept in (([1.0, 0, 0], 1.0), ([1.0, 1, 0], 0.5), ([0, 0, 2.0], 0.0)):
        torch.testing.assert_close(pca_retention(tokens, (mean + torch.tensor(step))[None]), torch.tensor([1.0, kept]))


def test_retention_keeps_the_fewest_components_that_reach_the_share():
    axes = torch.tensor([10.0, 2.0, 0.5])
    tokens = torch.cat([torch.diag(axes), -torch.diag(axes)])
    total = axes.square().sum()
    for share, count in ((0.9, 1), (0.99, 2), (1.0, 3)):
        kept = pca_retention(tokens, tokens, share)
        torch.testing.assert_close(kept, (axes[:count].square().sum() / total).expand(2))


def test_retention_of_a_patient_ignores_padding_and_is_unknown_without_the_modality(inputs, draw, stack):
    model, patients = build_model("survq", inputs, **SMALL).eval(), [draw(9), draw(13, "omics")]
    model.explain = True
    together, alone = model(stack(patients)).details, [model(p).details for p in patients]
    torch.testing.assert_close(together["wsi_retention"], torch.cat([d["wsi_retention"] for d in alone]), atol=1e-4, rtol=1e-3)
    assert together["omics_retention"][1].isnan().all()


@pytest.mark.parametrize("one, other", [("wsi", "omics"), ("omics", "wsi")])
def test_one_modality_alone_is_read_mixed_and_required(inputs, draw, one, other):
    model, patient = build_model("survq", inputs, {"wsi": "pathology", "omics": "genomics"}[one], **SMALL).eval(), draw()
    model.explain = True
    output = model(patient)
    assert set(output.attention) == {one, "mixed"}
    torch.testing.assert_close(model(patient.without(other)).logits, output.logits)
    with pytest.raises(InputError, match=f"has none of {one}"):
        model(patient.without(one))


def test_the_bag_may_have_any_name_and_the_genes_any_grouping(inputs, draw):
    offered = replace(inputs, bags={"mri": 24})
    model = build_model("survq", offered, modalities=["mri", "omics"], groups="families", **SMALL).eval()
    model.explain = True
    patient = draw()
    bags, present = {"mri": patient.bags["wsi"]}, {"mri": patient.has("wsi"), "omics": patient.has("omics")}
    output = model(replace(patient, bags=bags, present=present))
    assert set(output.attention) == {"mri", "omics", "mixed"}
    assert output.attention["omics"].shape[2] == len(inputs.groups["families"])


@pytest.mark.parametrize("modalities", [["wsi", "mri"], []])
def test_more_than_one_bag_and_nothing_at_all_are_refused(inputs, modalities):
    with pytest.raises(InputError, match=r"SurvQ reads two modalities at most; found .*, expected one bag of instances, omics, or both"):
        build_model("survq", inputs, modalities=modalities)


def test_the_demo_is_smaller_and_every_size_is_an_option(inputs, draw):
    preset = load_model_config("survq", preset="demo")["model"]
    model = build_model("survq", inputs, **preset)
    assert model(draw()).logits.shape == (1, 4)
    assert model.patches[0].out_features == preset["patch_hidden"] == 256
    assert model.head[0].in_features == preset["width"] == 128


def test_permuting_pathways_with_their_encoders_changes_nothing(inputs, draw):
    sizes, order = inputs.groups["pathways"], [3, 0, 4, 1, 2]
    other = build_model("survq", replace(inputs, groups={"pathways": tuple(sizes[g] for g in order)}), **SMALL).eval()
    model = build_model("survq", inputs, **SMALL).eval()
    other.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("pathways.")}, strict=False)
    with torch.no_grad():
        for name, p in other.pathways.named_parameters():
            for place, g in enumerate(order):
                here, there = (other.pathways.rows(place), model.pathways.rows(g)) if name == "weight_in" else (place, g)
                p[here] = model.pathways.get_parameter(name)[there]
    patient = draw()
    split = patient.groups["pathways"].split(list(sizes), dim=1)
    permuted = replace(patient, groups={"pathways": torch.cat([split[g] for g in order], dim=1)})
    torch.testing.assert_close(other(permuted).logits, model(patient).logits, atol=1e-5, rtol=1e-5)


def test_frozen_queries_get_no_gradient_and_do_not_move(inputs, draw):
    model = build_model("survq", inputs, "frozen_queries", **SMALL)
    learned = [model.hist_queries.queries, model.geno_queries.queries]
    before = [queries.clone() for queries in learned]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(draw()).logits.sum().backward()
    optimizer.step()
    for queries, at_first in zip(learned, before, strict=True):
        assert queries.grad is None
        assert torch.equal(queries, at_first)


@pytest.mark.parametrize("variant", [None, "no_self_attn", "no_queries", "heads_4"])
def test_gradients_of_a_mixed_batch_are_those_of_its_patients_alone(inputs, draw, stack, variant):
    model = build_model("survq", inputs, variant, **SMALL).eval().double()
    patients = [draw(9), draw(13, "omics"), draw(5, "wsi")]
    gradients = []
    for runs in ([stack(patients)], [stack([p]) for p in patients]):
        model.zero_grad()
        for run in runs:
            model(double(run)).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for together, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("lacks, untouched", [("wsi", ("patches", "hist_queries")), ("omics", ("pathways", "geno_queries"))])
def test_a_training_step_without_a_modality_leaves_its_branch_without_gradient(inputs, draw, lacks, untouched):
    model = build_model("survq", inputs, **SMALL).train()
    model(draw(9, lacks)).logits.square().sum().backward()
    for name, p in model.named_parameters():
        assert bool(p.grad.any()) != name.startswith(untouched), name
        assert p.grad.isfinite().all(), name


@pytest.mark.parametrize("variant", [None, "no_self_attn", "no_queries", "heads_4", "plain"])
def test_training_in_half_precision_stays_finite_where_modalities_are_absent(inputs, draw, stack, variant):
    model, batch = build_model("survq", inputs, variant, **SMALL).train(), stack([draw(9), draw(13, "omics"), draw(5, "wsi")])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch).logits
    logits.float().square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_of_a_single_patch_every_query_takes_its_value(inputs, draw):
    model, patient = build_model("survq", inputs, **SMALL).eval(), draw(1)
    model.explain = True
    value = model.hist_queries.attention.attend.value(model.patches(patient.bags["wsi"].features))
    torch.testing.assert_close(model(patient).details["wsi_queries"], value.expand(1, 6, 256))


@pytest.mark.parametrize("variant", [None, "no_self_attn", "no_queries"])
def test_a_bag_without_patches_is_an_absent_one(inputs, draw, variant):
    model, patient = build_model("survq", inputs, variant, **SMALL).eval(), draw(0)
    torch.testing.assert_close(model(patient).logits, model(patient.without("wsi")).logits)


@pytest.mark.parametrize("lacks, rows", [("wsi", slice(6, None)), ("omics", slice(0, 6))])
def test_the_tokens_of_an_absent_modality_are_dropped(inputs, draw, lacks, rows):
    model, patient = sharpened(build_model("survq", inputs, **SMALL).eval()), draw()
    model.explain = True
    captured = {}
    model.mixer.register_forward_hook(lambda module, given, result: captured.update(tokens=given[0]))
    output = model(patient.without(lacks))
    kept = captured["tokens"][:, rows]
    alone = model.mixer(kept, kept, torch.ones(kept.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(output.logits, model.head(alone.mean(dim=1)))
    assert (output.attention["mixed"].sum(dim=1)[0, rows] > 0).all()
    torch.testing.assert_close(output.attention["mixed"][0, :, rows].sum(-1), torch.ones(10))


def test_without_self_attention_the_halves_are_concatenated_and_an_absent_one_is_zero(inputs, draw):
    model, patient = build_model("survq", inputs, "no_self_attn", **SMALL).eval(), draw()
    captured = []
    model.head.register_forward_hook(lambda module, given, result: captured.append(given[0]))
    model(patient)
    model(patient.without("wsi"))
    assert captured[0].shape == (1, 512)
    assert (captured[1][:, :256] == 0).all()
    torch.testing.assert_close(captured[1][:, 256:], captured[0][:, 256:])


def test_raw_tokens_stand_for_a_modality_without_queries(inputs, draw):
    model, patient = build_model("survq", inputs, "no_queries").eval(), draw()
    bag, genes = patient.bags["wsi"].features, patient.groups["pathways"]
    z = torch.cat([model.patches(bag).mean(1), model.pathways(genes).mean(1)], dim=1)
    torch.testing.assert_close(model(patient).logits, model.head(z))
