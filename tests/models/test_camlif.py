from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cohort.record import Bag, Patient
from pipeline.errors import InputError
from pipeline.models import build_model, load_model_config
from pipeline.models.interface import Inputs
from pipeline.models.reference import parameters, reference_patient
from pipeline.nn.context_attention import ContextAttention, Tokens
from pipeline.nn.self_attention import NystromAttention
from pipeline.training.losses import cox_partial

REGIONS = (58, 290, 290, 155)  # tumour, epithelium, stroma, nuclei
TCGA = Inputs(vectors={"path": 32, "genes": 320}, bins=1)
LUAD = Inputs(bags={"ct": 863}, vectors={"region": 793}, groups={"regions": REGIONS}, bins=1)
SLIDE = Inputs(bags={"wsi": 1024}, groups={"families": REGIONS}, bins=1)
TABLES = Inputs(vectors={"path": 8, "genes": 11, "clinical": 3}, bins=1)
SMALL = {"width": 16, "group_hidden": 12, "fusion_width": 8, "lmf_width": 5, "fused_width": 6}


def tcga(**options):
    return build_model("camlif", TCGA, modality_a="path", modality_b="genes", embedded=["path"], **options)


def luad(**options):
    return build_model("camlif", LUAD, modality_a="ct", groups="regions", bag_hidden=[512], **options)


def two_tables(**options):
    return build_model("camlif", TABLES, **{"modality_a": "path", "modality_b": "genes", "width": 16, "n_rep": 7, **options})


def a_batch(inputs, size=4):
    vectors = {name: torch.randn(size, length) for name, length in inputs.vectors.items()}
    return Patient(vectors=vectors, present={name: torch.ones(size, dtype=torch.bool) for name in vectors})


def count(module):
    return sum(p.numel() for p in module.parameters())


def hooked(module, calls):
    module.register_forward_hook(lambda module, given, result: calls.append((given, result)))


# --- the whole network, restated for one patient with every copy of a vector written out ---


def encode_by_hand(encoder, tokens, heads):
    x = torch.cat([encoder.first[0], tokens])
    for norm, layer in zip(encoder.norms, encoder.layers, strict=True):
        y = norm(x)
        q, (k, v) = layer.query(y), layer.key_value(y).chunk(2, dim=1)
        mixed = []
        for a, b, c in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
            mixed.append((a @ b.T / a.shape[1] ** 0.5).softmax(dim=1) @ c)
        x = x + layer.output(torch.cat(mixed, dim=1))
    x = encoder.norm(x)
    return x[0], x[1:]


def cross_by_hand(layer, both, heads, *, mean, other):
    residual, inter, contexts = [], [], []
    for split, key_value, x in zip(layer.split, layer.key_value, both, strict=True):
        res, half = split(x).relu().chunk(2, dim=1)
        k, v = key_value(half).chunk(2, dim=1)
        sums = [a.T @ b / (len(x) if mean else 1) for a, b in zip(k.chunk(heads, 1), v.chunk(heads, 1), strict=True)]
        contexts.append([(g / g.shape[0] ** 0.5).softmax(dim=0) for g in sums])
        residual.append(res)
        inter.append(half)
    out = []
    for m, n in ((0, 1), (1, 0)):
        u = torch.cat([x @ g for x, g in zip(inter[m].chunk(heads, 1), contexts[n], strict=True)], dim=1)
        res = residual[n].mean(dim=0).expand_as(u) if other else residual[m]
        out.append(layer.norms[m](both[m] + layer.join[m](torch.cat([res, u], dim=1))))
    return out


def predict_by_hand(model, both, clinical=None, *, heads=4, mean=False, other=False):
    first, inner = zip(*(encode_by_hand(e, x, heads) for e, x in zip(model.encoders, both, strict=True)), strict=True)
    for layer in model.cross:
        inner = cross_by_hand(layer, inner, heads, mean=mean, other=other)
    second = [encode_by_hand(e, x, heads)[0] for e, x in zip(model.decoders, inner, strict=True)]
    fusion, pairs = model.fusion, []
    for pair in (first, second):
        pairs.append([reduce(x) for reduce, x in zip(fusion.reduce, pair, strict=True)])
    blocks = []
    for p, c in pairs:
        f = fusion.interact[0]
        gated = []
        for gate, own, partner in ((f.gates[0], p, c), (f.gates[1], c, p)):
            z = torch.stack([own @ slab @ partner for slab in gate.gate.weight]) + gate.gate.bias
            gated.append(gate.out[0](z.sigmoid() * gate.hidden(own).relu()).relu())
        left, right = (torch.cat([x, torch.ones(1)]) @ w[0] for x, w in zip(gated, f.lmf.factors, strict=True))
        blocks.append(f.encode[1](left * right).relu())
    joined = torch.cat([*blocks, *pairs[0]])
    weights = fusion.owc.weigh(joined)
    h = fusion.mlp[0](weights * joined).relu()
    logits = model.head(h if clinical is None else torch.cat([h, clinical]))
    return 6 * logits.sigmoid() - 3 if model.bounded else logits


@pytest.mark.parametrize("options", [{}, {"mean": True}, {"other": True}])
def test_a_slide_and_genes_are_the_equations_of_the_paper(inputs, draw, stack, options):
    chosen = {"context": "mean" if options.get("mean") else "sum", "residual": "other" if options.get("other") else "own"}
    model, patients = build_model("camlif", inputs, ca_layers=2, **chosen, **SMALL).eval(), [draw(9), draw(13)]
    expected = []
    for patient in patients:
        patches = model.sources[0].embed(patient.bags["wsi"].features[0])
        families = patient.groups["families"][0].split(inputs.groups["families"])
        genes = torch.cat([model.sources[1].embed.network(g).eval()(x[None]) for g, x in enumerate(families)])
        expected.append(predict_by_hand(model, [patches, genes], **options))
    torch.testing.assert_close(model(stack(patients)).logits, torch.stack(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("copies", [1, 7, 50])
@pytest.mark.parametrize("options", [{}, {"mean": True}, {"other": True}])
def test_one_copy_of_a_vector_stands_exactly_for_all(copies, options):
    chosen = {"context": "mean" if options.get("mean") else "sum", "residual": "other" if options.get("other") else "own"}
    model, batch = two_tables(n_rep=copies, clinical="clinical", **chosen).eval(), a_batch(TABLES)
    expected = []
    for row in range(4):
        tokens = [source.embed(batch.vectors[source.name][row]).expand(copies, -1) for source in model.sources]
        expected.append(predict_by_hand(model, tokens, batch.vectors["clinical"][row], **options))
    torch.testing.assert_close(model(batch).logits, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_copies_are_written_out_in_training_each_with_its_own_dropout():
    model, batch = two_tables(snn_dropout=0.0), a_batch(TABLES)
    tokens = model.sources[1](batch)
    assert (tokens.values.shape, tokens.copies) == ((4, 7, 16), None)
    assert not torch.equal(tokens.values[:, 0], tokens.values[:, 1])
    kept = tokens.values != 0
    torch.testing.assert_close(tokens.values[kept], (model.sources[1].embed(batch.vectors["genes"])[:, None] / 0.75).expand_as(kept)[kept])
    model.eval()
    assert (model.sources[1](batch).values.shape[1], model.sources[1](batch).copies) == (1, 7)


def test_groups_have_dropout_after_their_first_layer_alone():
    embed = luad().sources[1].embed
    assert (embed.hidden, embed.dropout, embed.dropout_out) == (512, 0.25, 0.0)


@pytest.mark.parametrize("options", [{}, {"context": "mean"}, {"residual": "other"}, {"cross_attention": "mha"}, {"encoder": "nystrom1"}])
def test_without_dropout_fifty_copies_in_training_are_the_one_of_evaluation(options):
    model, batch = two_tables(dropout=0.0, snn_dropout=0.0, n_rep=50, **options), a_batch(TABLES)
    torch.testing.assert_close(model(batch).logits, model.eval()(batch).logits, atol=1e-5, rtol=1e-4)


# --- figures of the specification ---


def test_parameters_of_the_tcga_vectors_are_those_of_the_specification():
    model = tcga()
    assert parameters(model) == sum(p.numel() for p in model.parameters()) == 201_665
    parts = [count(m) for m in (model.sources, model.encoders, model.decoders, model.cross, model.head)]
    assert parts == [25_232, 17_344, 17_344, 12_608, 65]
    fusion = model.fusion
    assert [count(m) for m in (fusion.interact[0].gates, fusion.interact[0].lmf, fusion.interact[0].encode)] == [69_824, 2_178, 2_176]
    assert [count(m) for m in (fusion.owc, fusion.mlp, fusion.reduce)] == [42_542, 12_352, 0]


def test_parameters_of_radiomics_and_four_regions_are_those_of_the_specification():
    model = luad()
    assert parameters(model) == 4_554_161
    parts = [count(m) for m in (model.sources, model.encoders, model.decoders, model.cross, model.fusion.reduce)]
    assert parts == [1_507_072, 1_056_256, 1_056_256, 788_992, 16_448]


def test_parameters_of_a_slide_and_four_groups_are_those_of_the_specification():
    assert parameters(build_model("camlif", SLIDE)) == 4_242_865


def operations(model, patient):
    """All that torch's counter sees, and of these what the specification's did: no attention layers, no bilinear forms."""
    counter = FlopCounterMode(display=False, depth=5)
    model.eval()
    with counter, torch.no_grad():
        model(patient)
    parts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    attention = sum(parts[f"CAMLIF.{stage}.{m}"] for stage in ("encoders", "decoders") for m in (0, 1))
    bilinear = 4 * 2 * 32**3  # two gates for each of two pairs
    return parts["Global"], parts["Global"] - attention - bilinear


def test_operations_are_those_of_the_specification():
    total, counted = operations(luad(), reference_patient(replace(LUAD, vectors={}), 5))
    assert (total, round(counted / 1e6, 1)) == (36_635_776, 15.5)
    total, counted = operations(build_model("camlif", SLIDE), reference_patient(SLIDE, 2000))
    assert (round(total / 1e9, 2), round(counted / 1e9, 2)) == (18.74, 2.76)


def test_one_copy_saves_nearly_all_of_the_operations_of_fifty():
    patient = reference_patient(TCGA, 0)
    model = tcga()
    total, counted = operations(model, patient)
    assert total == 607_872
    for source in model.sources:
        source.copies = None
    cross = 26_624  # of one copy each: 49 more of them make the specification's figure
    assert round((counted + 49 * cross) / 1e6, 2) == 1.52


def test_the_decoders_last_layer_computes_the_class_token_alone_and_the_same(inputs, draw):
    model, patient = build_model("camlif", inputs, **SMALL).eval(), draw(9)
    tokens = model.sources[0](patient)
    first, rest = model.decoders[0](tokens, class_only=False)
    only, nothing = model.decoders[0](tokens, class_only=True)
    torch.testing.assert_close(only, first)
    assert (rest.values.shape[1], nothing.values.shape[1]) == (9, 0)


def test_class_tokens_do_not_depend_on_the_order_of_tokens_or_on_padding():
    model, calls = luad().eval(), []
    for encoder in [*model.encoders, *model.decoders]:
        hooked(encoder, calls)
    x, regions, there = torch.randn(1, 300, 863), torch.randn(1, 793), torch.ones(1, dtype=torch.bool)
    padded = torch.cat([x, 1e3 * torch.randn(1, 40, 863)], dim=1)
    bags = [(x, x.shape[1]), (x[:, torch.randperm(300)], x.shape[1]), (padded, x.shape[1])]
    for features, real in bags:
        mask = (torch.arange(features.shape[1]) < real)[None]
        model(Patient(bags={"ct": Bag(features, mask)}, groups={"regions": regions}, present={"ct": there, "omics": there}))
    given, shuffled, longer = (torch.cat([first for _, (first, _) in calls[at : at + 4]]) for at in (0, 4, 8))
    torch.testing.assert_close(shuffled, given, atol=1e-5, rtol=0)
    torch.testing.assert_close(longer, given, atol=1e-5, rtol=0)


def test_linear_layers_of_gates_and_fusion_start_by_their_fan_in_and_class_tokens_near_zero():
    model = tcga()
    interact = model.fusion.interact[0]
    for layer in [interact.encode[1], *(layer for gate in interact.gates for layer in (gate.hidden, gate.out[0]))]:
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.15)
        assert (layer.bias == 0).all()
    for encoder in [*model.encoders, *model.decoders]:
        assert 1e-7 < encoder.first.std().item() < 1e-5


# --- the loss ---


def test_the_alignment_is_half_the_mean_distance_of_both_pairs_and_only_in_training():
    model, batch, calls = two_tables(), a_batch(TABLES), []
    for encoder in [*model.encoders, *model.decoders]:
        hooked(encoder, calls)
    loss = model(batch).losses["alignment"]
    p, c, p_hat, c_hat = (result[0] for _, result in calls)
    torch.testing.assert_close(loss, 0.5 * ((p - p_hat).abs().mean() + (c - c_hat).abs().mean()))
    assert model.eval()(batch).losses == {}
    assert two_tables(alpha=0.0)(batch).losses == {}
    assert model._misalignment([p, c], [p, c], [torch.ones(4), torch.ones(4)]).item() == 0


@pytest.mark.parametrize("detach", [True, False])
def test_detached_class_tokens_are_not_moved_by_the_alignment(detach):
    model, calls = two_tables(detach=detach), []
    for encoder in [*model.encoders, *model.decoders]:
        hooked(encoder, calls)
    loss = model(a_batch(TABLES)).losses["alignment"]
    p, c, p_hat, c_hat = (result[0] for _, result in calls)
    grads = torch.autograd.grad(loss, [p, c, p_hat, c_hat], allow_unused=True)
    assert [g is None for g in grads] == [detach, detach, False, False]


@pytest.mark.parametrize("build", [two_tables, lambda: two_tables(share_fusion=False, cross_attention="mha", clinical="clinical")])
def test_every_parameter_of_two_vectors_gets_a_gradient(build):
    model = build().double().train()
    batch = a_batch(TABLES, 16)
    batch = replace(batch, vectors={name: x.double() for name, x in batch.vectors.items()})
    output = model(batch)
    ((output.logits * torch.randn(16, 1).double()).sum() + sum(output.losses.values())).backward()
    for name, parameter in model.named_parameters():
        zero = name.endswith(".key.bias")
        assert (float(parameter.grad.abs().max()) > 1e-12) != zero, name


# --- missing modalities ---


def test_an_absent_modality_leaves_its_partner_without_context_and_itself_out_of_the_fusion(inputs, draw):
    model, patient = build_model("camlif", inputs, **SMALL).eval(), draw(9, "omics")
    cross, lmf, owc = [], [], []
    hooked(model.cross[0], cross)
    hooked(model.fusion.interact[0].lmf, lmf)
    hooked(model.fusion.owc, owc)
    model(patient)
    (tokens, _), (after, _) = cross[0]
    layer, x = model.cross[0], tokens[0].values
    residual = layer.split[0](x).relu().chunk(2, dim=-1)[0]
    expected = layer.norms[0](x + layer.join[0](torch.cat([residual, torch.zeros_like(residual)], dim=-1)))
    torch.testing.assert_close(after.values, expected)
    for (vectors, has), result in lmf:
        w, v = model.fusion.interact[0].lmf.factors
        torch.testing.assert_close(result, (torch.cat([vectors[0], torch.ones(1, 1)], dim=1) @ w[0]) * v[0, -1])
        assert [bool(h) for h in has] == [True, False]
    (blocks,), _ = owc[0]
    assert (blocks[3] == 0).all()
    assert (blocks[2] != 0).any()


@pytest.mark.parametrize("absent", ["wsi", "omics"])
@pytest.mark.parametrize("options", [{}, {"residual": "other"}, {"cross_attention": "mha"}, {"cross_attention": "none"}])
def test_what_stands_in_the_place_of_an_absent_modality_is_never_read_nor_learned_from(inputs, draw, stack, options, absent):
    model = build_model("camlif", inputs, **options, dropout=0.0, snn_dropout=0.0, **SMALL)
    batch = stack([draw(9), draw(13)]).without(absent)
    noise = replace(
        batch,
        bags={"wsi": replace(batch.bags["wsi"], features=torch.randn_like(batch.bags["wsi"].features))} if absent == "wsi" else batch.bags,
        groups={name: torch.randn_like(x) for name, x in batch.groups.items()} if absent == "omics" else batch.groups,
    )
    output, other = model(noise), model(batch)
    torch.testing.assert_close(output.logits, other.logits)
    torch.testing.assert_close(output.losses, other.losses)
    (output.logits.sum() + sum(output.losses.values())).backward()
    at = ("wsi", "omics").index(absent)
    for lists in (model.sources, model.encoders, model.decoders or ()):
        for m, module in enumerate(lists):
            assert any((p.grad is not None) and bool(p.grad.any()) for p in module.parameters()) == (m != at)


def test_cox_compares_patients_of_whom_some_lack_a_modality(inputs, draw, stack):
    model = build_model("camlif", replace(inputs, bins=1), dropout=0.0, snn_dropout=0.0, **SMALL)
    patients = [draw(9), draw(13, "omics"), draw(5, "wsi"), draw(7)]
    time, event = torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([True, True, True, False])
    output = model(stack(patients))
    loss = cox_partial(output.logits[:, 0], time, event)
    risk = torch.cat([model(p).logits for p in patients])[:, 0].exp()
    at_risk = [risk.sum() / risk[1], (risk[0] + risk[2]) / risk[2], torch.ones(())]  # of the deaths at 1, 3, 4
    torch.testing.assert_close(loss, torch.stack(at_risk).log().sum() / 3, atol=1e-5, rtol=1e-4)
    (loss + output.losses["alignment"]).backward()
    assert all(bool(p.grad.isfinite().all() and p.grad.any()) for p in model.parameters())


def test_an_absent_modality_has_no_alignment(inputs, draw, stack):
    model = build_model("camlif", inputs, dropout=0.0, snn_dropout=0.0, **SMALL)
    patients = [draw(9), draw(13, "omics"), draw(5, "wsi")]
    together, calls = model(stack(patients)).losses["alignment"], []
    for encoder in [*model.encoders, *model.decoders]:
        hooked(encoder, calls)
    model(stack(patients))
    p, c, p_hat, c_hat = (result[0] for _, result in calls)
    slides, genes = (p - p_hat).abs().mean(1), (c - c_hat).abs().mean(1)
    torch.testing.assert_close(together, 0.5 * (slides[0] + slides[1] + genes[0] + genes[2]) / 3)


def test_zeros_are_a_zero_patch_and_zero_genes(inputs, draw):
    model, patient = build_model("camlif", inputs, "zeros", **SMALL).eval(), draw(9)
    blank = {"groups": {name: torch.zeros_like(x) for name, x in patient.groups.items()}}
    torch.testing.assert_close(model(patient.without("omics")).logits, model(replace(patient, **blank)).logits)
    one = replace(patient, bags={"wsi": Bag(torch.zeros(1, 1, 24), torch.ones(1, 1, dtype=torch.bool))})
    torch.testing.assert_close(model(patient.without("wsi")).logits, model(one).logits)


def test_refuse_refuses(inputs, draw):
    model = build_model("camlif", inputs, "refuse", **SMALL)
    assert model.refusal({"wsi"}) == "lacks omics"
    assert model.refusal({"wsi", "omics"}) is None


def test_a_clinical_table_joins_before_the_head_and_may_be_absent_or_alone():
    model, batch = two_tables(clinical="clinical").eval(), a_batch(TABLES)
    assert model.modalities == ("path", "genes", "clinical")
    zeros = replace(batch, vectors={**batch.vectors, "clinical": torch.zeros(4, 3)})
    for without in (batch.without("clinical"), Patient(vectors={m: batch.vectors[m] for m in ("path", "genes")}, present=batch.present)):
        torch.testing.assert_close(model(without).logits, model(zeros).logits)
    assert not torch.allclose(model(zeros).logits, model(batch).logits)
    alone = model(batch.without("path").without("genes")).logits
    assert alone.isfinite().all()
    assert len(alone.unique()) == 4


PAIRS = Inputs(
    bags={"ct": 9, "wsi": 24}, vectors={"path": 8, "genes": 11, "omics": 7, "clinical": 3}, groups={"regions": (2, 3, 1, 4)}, bins=1
)


@pytest.mark.parametrize(
    "a, b, groups, width",
    [
        ("ct", "omics", "regions", 256),  # radiomics and four regions of the slide
        ("ct", "path", None, 256),
        ("ct", "wsi", None, 256),
        ("wsi", "omics", None, 256),
        ("omics", "path", "regions", 256),
        ("path", "genes", None, 32),
    ],
)
def test_any_two_modalities_and_clinical_data_can_be_fused(a, b, groups, width):
    model = build_model("camlif", PAIRS, modality_a=a, modality_b=b, groups=groups, clinical="clinical").eval()
    assert (model.modalities, model.encoders[0].first.shape[2]) == ((a, b, "clinical"), width)
    full = reference_patient(PAIRS, 6)
    outputs = [model(patient).logits.item() for patient in (full, *map(full.without, (a, b, "clinical")))]
    assert len(set(outputs)) == 4  # each of the three matters
    others = {"ct", "wsi", "path", "genes", "omics"} - {a, b}
    for name in others:
        assert model(full.without(name)).logits.item() == outputs[0]


# --- switches ---


def test_one_logit_is_bounded_and_several_are_not(inputs, draw):
    far = {"genes": 1e4 * torch.randn(4, 11), "path": 1e4 * torch.randn(4, 8)}
    batch = replace(a_batch(TABLES), vectors=far)
    model, free = two_tables(), two_tables(bounded=False)
    free.load_state_dict(model.state_dict())
    with torch.no_grad():
        for m in (model, free):
            m.head.weight.mul_(1e3)
    torch.testing.assert_close(model.eval()(batch).logits, 6 * free.eval()(batch).logits.sigmoid() - 3)
    assert not build_model("camlif", inputs).bounded


@pytest.mark.parametrize(
    "options, blocks, pairs, decoders",
    [
        ({}, 192, 2, True),
        ({"cross_attention": "none"}, 128, 1, False),  # f₀, P, C
        ({"second_fusion": False}, 64, 1, True),  # f₁
        ({"owc_raw": False}, 128, 2, True),
    ],
)
def test_the_ablations_fuse_what_the_paper_leaves(options, blocks, pairs, decoders):
    model, calls = tcga(**options), []
    hooked(model.fusion.interact[0], calls)
    output = model.eval()(a_batch(TCGA))
    assert output.details["owc"].shape == (4, blocks)
    assert (len(calls), model.decoders is not None) == (pairs, decoders)


@pytest.mark.parametrize(
    "options, more",
    [
        ({"share_fusion": False}, 69_824 + 2_178 + 2_176),
        ({"ca_layers": 2}, 12_608),
        ({"cross_attention": "mha"}, 2 * 4 * (32 * 32 + 32) - 12_608),
        ({"rank": 4}, 3 * 2_178),
        ({"clinical": "genes"}, 320),
        ({"alpha": 0.0}, 0),
        ({"n_rep": 1}, 0),
        ({"context": "mean"}, 0),
        ({"residual": "other"}, 0),
    ],
)
def test_switches_cost_what_they_add(options, more):
    assert parameters(tcga(**options)) == 201_665 + more


def test_the_codes_cross_attention_looks_at_the_partners_tokens_and_adds_nothing(inputs, draw):
    model, patient, calls = build_model("camlif", inputs, "mha", **SMALL).eval(), draw(9), []
    hooked(model.cross[0], calls)
    model(patient)
    (tokens, _), changed = calls[0]
    for m, n in ((0, 1), (1, 0)):
        a, x, y = model.cross[0].attend[m], tokens[m].values[0], tokens[n].values[0]
        weights = (a.query(x) @ a.key(y).T / 4).softmax(dim=1)
        torch.testing.assert_close(changed[m].values[0], a.output(weights @ a.value(y)), atol=1e-5, rtol=1e-4)


def test_a_summed_context_sharpens_with_the_number_of_tokens_and_a_mean_one_does_not():
    x, there = torch.randn(1, 6, 16), [torch.tensor([True])] * 2
    twice = torch.cat([x, x], dim=1)
    for mean in (True, False):
        layer = ContextAttention(16, heads=4, mean=mean, other=False)
        with torch.no_grad():
            for key_value in layer.key_value:
                key_value.weight.mul_(3)
            once, doubled = layer([Tokens(x), Tokens(x)], there), layer([Tokens(x), Tokens(twice)], there)
        assert torch.allclose(once[0].values, doubled[0].values, atol=1e-6) == mean


def test_columns_of_a_context_sum_to_one_and_padding_is_not_in_it():
    layer, x = ContextAttention(16, heads=4, mean=False, other=False), torch.randn(2, 6, 16)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    context = layer._context(layer.key_value[0](x), Tokens(x, mask))
    torch.testing.assert_close(context.sum(dim=-2), torch.ones(2, 4, 4))
    torch.testing.assert_close(context[1:], layer._context(layer.key_value[0](x[1:, :4]), Tokens(x[1:, :4])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [True, False])
def test_a_context_of_many_tokens_is_summed_in_single_precision(dtype, mean):
    layer, key_value = ContextAttention(16, heads=4, mean=mean, other=False), 4 + 0.1 * torch.randn(1, 5000, 32)
    key_value = key_value.to(dtype)  # the sum of products, 80,000, is more than float16 holds
    with torch.autocast("cpu", dtype=dtype):
        rough = layer._context(key_value, Tokens(key_value))
    single = layer._context(key_value.float(), Tokens(key_value))
    assert (rough.dtype, bool(rough.isfinite().all())) == (dtype, True)
    torch.testing.assert_close(rough, single.to(dtype))


def test_the_codes_encoder_is_one_nystrom_layer(inputs, draw, stack):
    model = build_model("camlif", inputs, "nystrom", **SMALL).eval()
    assert model.ordered
    layers = [layer for encoder in [*model.encoders, *model.decoders] for layer in encoder.layers]
    assert [type(layer) for layer in layers] == [NystromAttention] * 4
    assert {(layer.landmarks, layer.heads, layer.convolution.kernel_size[0]) for layer in layers} == {(4, 4, 33)}
    assert model(stack([draw(40), draw(7, "omics"), draw(5, "wsi")])).logits.shape == (3, 4)
    mixed = build_model("camlif", inputs, "nystrom", **{**SMALL, "groups": None})
    kinds = [type(encoder.layers[0]) is NystromAttention for encoder in mixed.encoders]
    assert kinds == [True, False]  # equal copies keep exact attention
    assert not two_tables(encoder="nystrom1").ordered


# --- one modality alone (Table 1) ---


@pytest.mark.parametrize(
    "variant, length, hidden",
    [
        ("only_b", 793, [256, 128, 64]),
        ("only_b", 290, [256, 128, 64]),
        ("only_b_nuclei", 155, [128, 64]),
        ("only_b_tumour", 58, []),
    ],
)
def test_a_region_alone_is_the_codes_mlp(variant, length, hidden):
    inputs = Inputs(vectors={"region": length}, bins=1)
    model = build_model("camlif", inputs, variant, modality_b="region").eval()
    widths = [length, *hidden, 32, 1]
    assert parameters(model) == sum(a * b + b for a, b in pairwise(widths))
    x = torch.randn(3, length)
    y = x
    for block in model.sources[0].embed:
        y = torch.nn.functional.silu(block[0](y))
    output = model(Patient(vectors={"region": x}, present={"region": torch.ones(3, dtype=torch.bool)}))
    torch.testing.assert_close(output.logits, 6 * model.head(y).sigmoid() - 3)


def test_radiomics_alone_are_a_linear_layer_on_the_class_token():
    model, patient = luad(branches="a").eval(), reference_patient(replace(LUAD, vectors={}), 5)
    assert parameters(model) == 573_696 + 528_128 + 257
    first, _ = encode_by_hand(model.encoders[0], model.sources[0].embed(patient.bags["ct"].features[0]), 4)
    torch.testing.assert_close(model(patient).logits[0], 6 * model.head(first).sigmoid() - 3, atol=1e-5, rtol=1e-4)
    assert model.modalities == ("ct",)


# --- what is reported, what is refused ---


def test_attention_of_the_class_tokens_comes_only_when_asked_for(inputs, draw, stack):
    model, batch = build_model("camlif", inputs, **SMALL).eval(), stack([draw(9), draw(13), draw(5, "omics")])
    assert model(batch).attention == {}
    model.explain = True
    maps = model(batch).attention
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "wsi": (3, 15),
        "omics": (3, 6),
        "wsi_decoder": (3, 15),
        "omics_decoder": (3, 6),
    }
    assert (maps["wsi"][0, 9:] == 0).all()
    assert (maps["omics"][2] == 0).all()
    torch.testing.assert_close(maps["wsi"].sum(1), torch.ones(3))
    assert two_tables().eval()(a_batch(TABLES)).attention == {}


def test_attention_of_the_class_token_is_that_of_the_last_layer(inputs, draw):
    model, patient = build_model("camlif", inputs, **SMALL).eval(), draw(9)
    model.explain = True
    encoder, tokens = model.encoders[0], model.sources[0](patient).values
    x = torch.cat([encoder.first, tokens], dim=1)
    x = x + encoder.layers[0](encoder.norms[0](x), None)
    y = encoder.norms[1](x)[0]
    q, k = encoder.layers[1].query(y), encoder.layers[1].key_value(y).chunk(2, dim=1)[0]
    weights = torch.stack([(a[0] @ b.T / 2).softmax(dim=0)[1:] for a, b in zip(q.chunk(4, 1), k.chunk(4, 1), strict=True)])
    expected = (weights / weights.sum(dim=1, keepdim=True)).mean(dim=0)
    torch.testing.assert_close(model(patient).attention["wsi"][0], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"modality_a": "genes"}, "fuses two modalities.*genes twice"),
        ({"width": 18}, "does not divide into heads"),
        ({"cross_attention": "none", "second_fusion": False}, "leaves only the first fusion"),
        ({"embedded": ["genes"]}, "'genes' is no embedding"),
        ({"cross_attention": "contexts"}, "'cross_attention'.*contexts"),
        ({"residual": "both"}, "'residual'"),
        ({"branches": "c"}, "'branches'"),
        ({"modality_a": "proteins"}, "CA-MLIF reads 'proteins'"),
    ],
)
def test_options_that_make_no_model_are_explained(options, problem):
    with pytest.raises(InputError, match=problem.replace(".*", "(?s:.*)")):
        two_tables(**options)


def test_the_width_follows_from_the_modalities():
    assert tcga().encoders[0].first.shape[2] == 32
    assert luad().encoders[0].first.shape[2] == 256
    assert luad().encoders[0].first.std().item() == pytest.approx(1e-6, rel=0.2)


def test_the_protocol_is_the_papers():
    training = load_model_config("camlif")["training"]
    stated = {"loss": "cox", "optimizer": "adam", "lr": 1e-3, "weight_decay": 4e-4, "batch_size": 16, "epochs": 30}
    assert stated.items() <= training.items()
    assert (training["schedule"], training["constant_epochs"]) == ("linear", 10)
