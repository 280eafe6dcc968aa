from dataclasses import replace

import pytest
import torch

from pipeline.models import build_model
from pipeline.models.interface import Inputs
from pipeline.models.reference import forward_flops, parameters, reference_patient
from pipeline.models.survq import PATHWAYS

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


@pytest.mark.parametrize("options, expected", [({"patch_proj": "linear"}, 25_335_108), ({"n_query_h": 400}, 25_754_436)])
def test_parameters_of_the_switches_are_those_of_the_specification(options, expected):
    assert parameters(build_model("survq", REFERENCE, **options)) == expected


def test_reactome_pathways_alone_have_the_published_encoder():
    inputs = Inputs(bags={"wsi": 1024}, groups={"pathways": (10,) * 106 + (9,) * 175})
    assert count(build_model("survq", inputs, **SMALL).pathways) == 19_234_048


@pytest.mark.parametrize(
    "patches, plain, folded", [(1024, 2_515_723_264, 2.273), (4096, 8_291_279_872, 7.243), (16384, 31_393_506_304, 27.124)]
)
def test_operations_are_those_of_the_specification_plain_and_folded(full, patches, plain, folded):
    patient, attention = reference_patient(REFERENCE, patches), [full.hist_queries.attention.attend, full.geno_queries.attention.attend]
    padding = 2 * 256 * (full.pathways.padded_rows - sum(PATHWAYS))
    assert round((forward_flops(full, patient) - padding) / 1e9, 3) == folded
    try:
        for layer in attention:
            layer.folded = False
        assert forward_flops(full, patient) - padding == plain
    finally:
        for layer in attention:
            layer.folded = True


def test_folded_and_plain_attention_agree(inputs, draw, stack):
    model, batch = build_model("survq", inputs, **SMALL).eval(), stack([draw(9), draw(13)])
    folded = model(batch).logits
    for queries in (model.hist_queries, model.geno_queries):
        queries.attention.attend.folded = False
    torch.testing.assert_close(model(batch).logits, folded, atol=1e-6, rtol=1e-5)


def test_attention_maps_come_only_when_asked_for(full):
    patient = reference_patient(REFERENCE, 50)
    assert full(patient).attention == {}
    full.keep_attention = True
    maps = full(patient).attention
    full.keep_attention = False
    assert {name: tuple(a.shape) for name, a in maps.items()} == {"wsi": (1, 300, 50), "omics": (1, 128, 331), "mixed": (1, 428, 428)}


def test_permuting_pathways_with_their_encoders_changes_nothing(inputs, draw):
    sizes, order = inputs.groups["pathways"], [3, 0, 4, 1, 2]
    other = build_model("survq", replace(inputs, groups={"pathways": tuple(sizes[g] for g in order)}), **SMALL).eval()
    model = build_model("survq", inputs, **SMALL).eval()
    other.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("pathways.")}, strict=False)
    parts = {name: list(p.split(list(sizes)) if name == "weight_in" else p) for name, p in model.pathways.named_parameters()}
    with torch.no_grad():
        for name, p in other.pathways.named_parameters():
            join = torch.cat if name == "weight_in" else torch.stack
            p.copy_(join([parts[name][g] for g in order]))
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
    model.keep_attention = True
    captured = {}
    model.mixer.register_forward_hook(lambda module, given, result: captured.update(tokens=given[0], result=result[0]))
    output = model(patient.without(lacks))
    kept = captured["tokens"][:, rows]
    alone, _ = model.mixer(kept, kept, torch.ones(kept.shape[:2], dtype=torch.bool))
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
