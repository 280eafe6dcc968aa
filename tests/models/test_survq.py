import json
import os
import subprocess
import sys
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

REFERENCE = Inputs(bags={"wsi": 1024}, groups={"pathways": PATHWAYS})
SMALL = {"n_query_h": 6, "n_query_g": 4}


@pytest.fixture(scope="module")
def full():
    return build_model("survq", REFERENCE).eval()


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
    "patches, plain, folded", [(1024, 2_515_723_264, 2.273), (4096, 8_291_279_872, 7.243), (16384, 31_393_506_304, 27.124)]
)
def test_operations_are_those_of_the_specification_plain_and_folded(full, patches, plain, folded):
    patient = reference_patient(REFERENCE, patches)
    assert round(forward_flops(full, patient) / 1e9, 3) == folded
    assert forward_flops(unfolded(full), patient) == plain


def unfolded(model):
    """A copy that forms keys and values."""
    other = build_model("survq", REFERENCE, "plain").eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("option, value", [("n_query_h", 200), ("heads", 4), ("patch_proj", "linear")])
def test_the_folded_form_never_takes_more_operations_than_the_plain_one(option, value):
    patient = reference_patient(REFERENCE, 4096)
    operations = [forward_flops(build_model("survq", REFERENCE, folded=f, **{option: value}), patient) for f in (True, False)]
    assert operations[0] <= operations[1]


@pytest.mark.parametrize("variant", [None, "heads_4", "attn_bias", "residual_norm", "linear_projection"])
def test_folded_and_plain_form_agree_in_logits_and_gradients(inputs, draw, stack, variant):
    model, batch = build_model("survq", inputs, variant, **SMALL).eval().double(), double(stack([draw(9), draw(13)]))
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
    model, patient = build_model("survq", inputs, **SMALL).eval(), draw()

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


MEASURE = """
import json, resource, torch
from pipeline.models import build_model
from pipeline.models.reference import reference_patient
from pipeline.models.registry import entry
known = entry("survq")
model, patient = build_model("survq", known.reference), reference_patient(known.reference, 100_000)
with torch.no_grad():
    model.eval()(patient)
optimizer = torch.optim.AdamW(model.parameters())
model.train()(patient).logits.square().sum().backward()
optimizer.step()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))
"""


@pytest.mark.slow
def test_a_hundred_thousand_patches_are_predicted_and_trained_on_in_less_than_3_gib():
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) < 3


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
        "wsi_retention": (1, 2, 2),
        "omics_retention": (1, 2, 2),
        "omics_to_wsi": (1, 128, 300),
        "omics_to_wsi_instances": (1, 128, 50),
    }
    torch.testing.assert_close(output.logits, full(patient).logits)


def test_gene_queries_are_carried_through_the_self_attention_to_the_patches(inputs, draw, stack):
    model = build_model("survq", inputs, **SMALL).eval()
    model.explain = True
    output = model(stack([draw(9), draw(13)]))
    across, reached = output.details["omics_to_wsi"], output.details["omics_to_wsi_instances"]
    torch.testing.assert_close(across, output.attention["mixed"][:, 6:, :6])
    torch.testing.assert_close(reached.sum(dim=2), across.sum(dim=2))  # what reaches a histology query is dealt to its patches
    assert (reached[0, :, 9:] == 0).all()


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
    before = model.hist_queries.queries.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(draw()).logits.sum().backward()
    optimizer.step()
    assert torch.equal(model.hist_queries.queries, before)
    assert model.hist_queries.queries.grad is None


@pytest.mark.parametrize("lacks, rows", [("wsi", slice(6, None)), ("omics", slice(0, 6))])
def test_the_tokens_of_an_absent_modality_are_dropped(inputs, draw, lacks, rows):
    model, patient = build_model("survq", inputs, **SMALL).eval(), draw()
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
