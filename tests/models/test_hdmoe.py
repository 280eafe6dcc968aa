import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cohort.record import Bag, Patient
from pipeline.errors import InputError
from pipeline.models import build_model, load_model_config, model_variants
from pipeline.models.hdmoe import DISTANCES, reorganised
from pipeline.models.interface import Inputs
from pipeline.models.reference import forward_flops, parameters, reference_patient
from pipeline.nn.hazards import risk_score
from pipeline.training.protocol import Protocol

REFERENCE = Inputs(bags={"wsi": 1024}, groups={"families": (100, 200, 300, 400, 500, 600)})
SMALL = {"width": 16, "snn_hidden": 8, "heads": 2, "landmarks": 4, "token_length": 4, "experts": 3, "expert_hidden": 5}
STILL = {"dropout": 0.0, "attention_dropout": 0.0, "expert_dropout": 0.0}


def small(inputs, variant=None, **options):
    """A small model in double precision with weights that are far from their start, in eval mode."""
    model = build_model("hdmoe", inputs, variant, **SMALL | options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def double(patient):
    bags = {m: Bag(bag.features.double(), bag.mask) for m, bag in patient.bags.items()}
    vectors = {m: x.double() for m, x in patient.vectors.items()}
    return Patient(bags, vectors, {g: x.double() for g, x in patient.groups.items()}, patient.present)


def count(module):
    return sum(p.numel() for p in module.parameters())


# --- the published network, written out: padding as tokens, three factors from left to right, expert by expert ---


def nystrom(layer, tokens, landmarks):
    """All padded rows [N, d] of one patient."""
    padded = F.pad(tokens, (0, 0, -len(tokens) % landmarks, 0))
    d = padded.shape[1] // layer.heads
    q, k, v = (x.unflatten(1, (layer.heads, d)).transpose(0, 1) for x in (padded @ layer.project.weight.T).chunk(3, dim=1))
    q = q / math.sqrt(d)
    q_mark, k_mark = (x.unflatten(1, (landmarks, -1)).mean(dim=2) for x in (q, k))
    f1, f2, f3 = ((a @ b.transpose(1, 2)).softmax(dim=-1) for a, b in ((q, k_mark), (q_mark, k_mark), (q_mark, k)))
    eye = torch.eye(landmarks, dtype=tokens.dtype)
    z = f2.transpose(1, 2) / (f2.sum(1).max() * f2.sum(2).max())
    for _ in range(6):
        fz = f2 @ z
        z = z @ (13 * eye - fz @ (15 * eye - fz @ (7 * eye - fz))) / 4
    mixed = (f1 @ z) @ (f3 @ v) + layer.convolution(v[None])[0]
    return (mixed.transpose(0, 1).flatten(1) @ layer.output.weight.T + layer.output.bias)[-len(tokens) :]


def encoded(encoder, tokens, square, landmarks):
    if square:
        side = math.ceil(math.sqrt(len(tokens)))
        tokens = torch.cat([tokens, tokens[: side**2 - len(tokens)]])
    x = torch.cat([encoder.class_token[0], tokens])
    x = x + nystrom(encoder.layers[0], encoder.norms[0](x), landmarks)
    if square:
        picture = x[1:].T.unflatten(1, (side, side))
        x = torch.cat([x[:1], (picture + sum(f(picture) for f in encoder.position.filters)).flatten(1).T])
    x = x + nystrom(encoder.layers[1], encoder.norms[1](x), landmarks)
    return encoder.norms[2](x)[0]


def mixture(layer, vector, k):
    """Routed, shared, L_bal."""
    experts, routed, shared, chosen = layer.experts, [], [], []
    tokens = vector.split(layer.width)

    def network(e, token):
        inner = (experts.weight_in[e] @ token + experts.bias_in[e]).relu()
        return (experts.weight_out[e] @ inner + experts.bias_out[e]).relu()

    probabilities = torch.stack([(layer.router.weight @ token).softmax(0) for token in tokens])
    for token, p in zip(tokens, probabilities, strict=True):
        best = p.argsort(descending=True)[:k].tolist()
        chosen += best
        routed.append(sum(p[e] * network(e, token) for e in best))
        shared.append(network(-1, token))
    number = probabilities.shape[1]
    balance = number * sum(chosen.count(e) / len(chosen) * probabilities[:, e].mean() for e in range(number))
    return torch.cat(routed), torch.cat(shared), balance


def shuffled(sources, s):
    size = len(sources[0]) // s
    return torch.cat([source[j * size : (j + 1) * size] for j in range(s) for source in sources])


def published(model, patient, s1, s2, k, landmarks):
    """Logits [bins], L_dis and L_bal by the cosine, for two modalities."""
    genes, slides = (model.encoders[m] for m in ("omics", "wsi"))
    features = patient.groups["families"][0].split(genes.embed.sizes)
    layers = zip(genes.embed.first, genes.embed.second, features, strict=True)
    tokens = torch.stack([F.elu(second(F.elu(first(x)))) for first, second, x in layers])
    vectors = [
        encoded(genes, tokens, False, landmarks),
        encoded(slides, slides.embed.layers(patient.bags["wsi"].features[0]), True, landmarks),
    ]
    (i1, c1, b1), (i2, c2, b2) = (mixture(model.first[m], v, k) for m, v in zip(("omics", "wsi"), vectors, strict=True))
    i3, c3, b3 = mixture(model.second, shuffled([i1, i2, c1, c2], s1), k)
    logits = model.head(shuffled([i3, c3], s2))
    if not model.project:
        return logits, None, None
    specific, common = model.project[0](torch.cat([i1, i2])), model.project[1](torch.cat([c1, c2]))

    def cos(a, b):
        return a @ b / (a.norm() * b.norm())

    dis = cos(i1, c1) + cos(i2, c2) + cos(i3, c3) + 2 - cos(i3, specific) - cos(c3, common)
    return logits, dis, b1 + b2 + b3


@pytest.mark.parametrize("patches, s1, s2, k", [(13, 2, 8, 1), (1, 8, 1, 2), (30, 4, 16, 3), (4, 1, 2, 1)])
def test_it_is_the_published_network_written_out(inputs, draw, patches, s1, s2, k):
    model, patient = small(inputs, rfr_eval=f"fixed:{s1},{s2}", top_k=k, **STILL), double(draw(patches))
    logits, dis, bal = published(model, patient, s1, s2, k, landmarks=4)
    torch.testing.assert_close(model(patient).logits[0], logits)
    model.train()
    model._drawn = lambda: ([s1], [s2])
    output = model(patient)
    torch.testing.assert_close(output.logits[0], logits)
    torch.testing.assert_close(output.losses, {"dis": dis, "bal": 0.01 * bal})


@pytest.mark.parametrize(
    "patches, published_flops, ours",
    [
        (1000, 6.69, 3.10),
        pytest.param(4096, 15.40, 9.27, marks=pytest.mark.slow),
        pytest.param(16384, 50.16, 32.44, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_operations_of_the_published_order_are_those_of_the_specification_and_ours_are_fewer(patches, published_flops, ours):
    model, patient = build_model("hdmoe", REFERENCE, rfr_eval="fixed:8,8").eval(), reference_patient(REFERENCE, patches)
    counter = FlopCounterMode(display=False)
    with counter:
        published(model, patient, 8, 8, 1, landmarks=128)
    spared = 2 * 2 * 512 * 512  # of the two projections, which only the loss reads
    assert (counter.get_total_flops() - spared) / 1e9 == pytest.approx(published_flops, abs=0.006)
    assert forward_flops(model, patient) / 1e9 == pytest.approx(ours, abs=0.006)


# --- parameters ---


def test_the_token_length_does_not_change_the_operations_that_are_counted_in_the_published_figures():
    model, patient = build_model("hdmoe", REFERENCE, token_length=256, rfr_eval="fixed:8,8").eval(), reference_patient(REFERENCE, 1000)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        published(model, patient, 8, 8, 1, landmarks=128)
    assert (counter.get_total_flops() - 2 * 2 * 512 * 512) / 1e9 == pytest.approx(6.69, abs=0.006)


@pytest.mark.parametrize("pass_", ["forward", "step"])
def test_nothing_that_is_stored_grows_faster_than_the_number_of_patches(inputs, draw, pass_):
    model = build_model("hdmoe", inputs, **SMALL | {"landmarks": 64}).train(pass_ == "step")
    largest = []
    for patches in (1024, 4096):
        with torch.set_grad_enabled(pass_ == "step"), Largest() as seen:
            output = model(draw(patches))
            if pass_ == "step":
                (output.logits.square().sum() + sum(output.losses.values())).backward()
        largest.append(seen.elements)
    assert largest[1] <= 4.1 * largest[0]
    assert largest[0] <= 1088 * 3 * 16  # padded queries, keys and values; N × m for each head would be 128 a token


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            self.elements = max(self.elements, one.numel() if isinstance(one, torch.Tensor) else 0)
        return result


@pytest.mark.parametrize(
    "token_length, expected",
    [(2, 5_681_025), (8, 5_719_320), (16, 5_770_380), (32, 5_872_500), (64, 6_076_740), (128, 6_485_220), (256, 7_302_180)],
)
def test_parameters_are_those_of_the_specification(token_length, expected):
    assert parameters(build_model("hdmoe", REFERENCE, token_length=token_length)) == expected


def test_parameters_by_part_are_those_of_the_specification():
    model = build_model("hdmoe", REFERENCE)
    slides, genes = model.encoders["wsi"], model.encoders["omics"]
    assert (count(slides.embed), count(genes.embed)) == (328_192, 3_730_944)
    assert (count(slides) - 328_192, count(genes) - 3_730_944) == (549_136, 527_120)
    assert [count(m) for m in (*model.first.values(), model.second)] == [149_696, 149_696, 112_544]
    assert [count(m) for m in (*model.project, model.head)] == [262_656, 262_656, 4_100]


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ((102, 336, 518, 434, 199, 444), (6_008_132, 7_233_572)),
        ((93, 330, 529, 460, 223, 450), (6_061_380, 7_286_820)),
        ((94, 334, 531, 471, 218, 440), (6_064_452, 7_289_892)),
    ],
    ids=["blca", "brca", "luad"],
)
def test_parameters_of_the_cohorts_are_those_of_the_specification(sizes, expected):
    inputs = Inputs(bags={"wsi": 1024}, groups={"families": sizes})
    assert tuple(parameters(build_model("hdmoe", inputs, token_length=t)) for t in (64, 256)) == expected


def test_one_modality_has_half_the_sources():
    genes, slides = (build_model("hdmoe", REFERENCE, variant).eval() for variant in ("genomics", "pathology"))
    rest = 149_696 + 112_544 + 2 * (256 * 256 + 256) + 512 * 4 + 4
    assert (parameters(genes), parameters(slides)) == (3_730_944 + 527_120 + rest, 328_192 + 549_136 + rest)
    genes.explain = True
    details = genes(reference_patient(REFERENCE, 3)).details
    assert details["router_second"].shape == (1, 8, 8, 8)  # 8 segment counts × 8 tokens × 8 experts
    assert (genes.requires, genes.modalities) == ((), ("omics",))


def test_weights_start_as_in_the_code():
    model = build_model("hdmoe", REFERENCE)
    assert model.head.weight.std().item() == pytest.approx(math.sqrt(2 / (1024 + 4)), rel=0.05)
    assert model.second.experts.weight_in[3].std().item() == pytest.approx(math.sqrt(2 / (64 + 128)), rel=0.05)
    assert model.encoders["wsi"].layers[0].project.weight.std().item() == pytest.approx(math.sqrt(2 / (256 + 768)), rel=0.05)
    assert model.second.router.weight.abs().max() <= 64**-0.5  # Kaiming-uniform with a = √5
    assert model.encoders["wsi"].class_token.abs().max() < 1e-5
    assert not model.head.bias.any()
    assert not model.second.experts.bias_out.any()


# --- random feature reorganisation ---


def test_segments_of_the_sources_take_turns():
    sources = torch.arange(8).view(1, 2, 4)
    assert reorganised(sources, 2).tolist() == [[0, 1, 4, 5, 2, 3, 6, 7]]
    assert reorganised(sources, 1).tolist() == [list(range(8))]
    assert reorganised(sources, 4).tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]


@pytest.mark.parametrize("count, length, s", [(4, 256, s) for s in (1, 8, 128)] + [(2, 512, s) for s in (1, 64, 256)])
def test_a_reorganisation_follows_the_index_map_and_can_be_undone(count, length, s):
    sources, size = torch.randn(3, count, length), length // s
    f = reorganised(sources, s)
    for j, r, o in product(range(0, s, max(1, s // 3)), range(count), range(0, size, max(1, size // 3))):
        assert torch.equal(f[:, (j * count + r) * size + o], sources[:, r, j * size + o])
    assert torch.equal(f.view(3, s, count, size).transpose(1, 2).reshape(3, count, length), sources)


def test_segment_counts_are_the_powers_of_two_up_to_half_the_length(inputs):
    assert build_model("hdmoe", REFERENCE).segments == [[2**i for i in range(8)], [2**i for i in range(9)]]
    three = Inputs(bags={"wsi": 9, "mri": 9, "tma": 9})
    model = build_model("hdmoe", three, modalities=["wsi", "mri", "tma"])
    assert model.segments[1] == [2**i for i in range(9)]  # of 768; 512 does not divide it
    assert build_model("hdmoe", REFERENCE, "no_rfr").segments == [[1], [1]]


def test_random_segments_are_drawn_at_each_pass_and_follow_the_seed(inputs, draw):
    model, patient = small(inputs, "random"), double(draw())
    known = {tuple(small_fixed(model, patient, *pair)) for pair in product(*model.segments)}
    torch.manual_seed(1)
    drawn = [tuple(model(patient).logits[0].tolist()) for _ in range(20)]
    torch.manual_seed(1)
    assert drawn == [tuple(model(patient).logits[0].tolist()) for _ in range(20)]
    assert 5 < len(set(drawn)) <= len(known)
    assert set(drawn) <= known


def small_fixed(model, patient, s1, s2):
    """The logits of one pair of segment counts."""
    before, model.evaluated = model.evaluated, ([s1], [s2])
    logits = model(patient).logits[0].tolist()
    model.evaluated = before
    return logits


def test_the_mean_is_over_the_hazards_of_all_segment_counts(inputs, draw):
    model, patient = small(inputs), double(draw())
    single = torch.tensor([small_fixed(model, patient, *pair) for pair in product(*model.segments)], dtype=torch.float64)
    assert len(single) == 4 * 5
    torch.testing.assert_close(model(patient).logits.sigmoid(), single.sigmoid().mean(dim=0, keepdim=True))
    assert single.std(dim=0).min() > 1e-3


def test_extreme_logits_do_not_overflow_in_the_mean(inputs, draw):
    model, patient = small(inputs), double(draw())
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([-900.0, 900.0, 0.0, 1.0]))
    assert torch.isfinite(model(patient).logits).all()


@pytest.mark.parametrize("rfr_eval", ["mean", "fixed:8,8"])
def test_only_random_segments_draw_random_numbers_at_prediction(inputs, draw, rfr_eval):
    model, patient, state = small(inputs, rfr_eval=rfr_eval), double(draw()), torch.get_rng_state()
    model(patient)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mean_at_the_published_size_is_over_72_pairs():
    model, patient = build_model("hdmoe", REFERENCE).eval(), reference_patient(REFERENCE, 5)
    model.explain = True
    output = model(patient)
    pairs = output.details["segment_logits"]
    assert pairs.shape == (1, 8, 9, 4)
    torch.testing.assert_close(output.logits.sigmoid(), pairs.sigmoid().mean(dim=(1, 2)))
    for s1, s2 in ((0, 0), (3, 8), (7, 2)):  # any round of Table 7 can be read off
        torch.testing.assert_close(pairs[0, s1, s2], torch.tensor(small_fixed(model, patient, 2**s1, 2**s2)))


def test_training_draws_segments_whatever_the_prediction_does(inputs, draw):
    model, patient = small(inputs, **STILL).train(), double(draw())
    assert len({tuple(model(patient).logits[0].tolist()) for _ in range(20)}) > 5
    plain = small(inputs, "no_rfr", **STILL).train()
    assert torch.equal(plain(patient).logits, plain(patient).logits)


@pytest.mark.parametrize("value", ["fixed:3,8", "fixed:8", "fixed:8,x", "fixed:4,64", "fixed:<s1>,<s2>"])
def test_segment_counts_that_do_not_exist_are_refused(inputs, value):
    with pytest.raises(InputError, match=r"names two segment counts; found 'fixed.*one of 1, 2, 4, 8 and one of 1, 2, 4, 8, 16"):
        build_model("hdmoe", inputs, **SMALL, rfr_eval=value)
    with pytest.raises(InputError, match=r"'rfr_eval'; found 'men'.*'mean'"):
        build_model("hdmoe", inputs, **SMALL, rfr_eval="men")


# --- losses and gradients ---


def test_the_balance_loss_of_uniform_routers_is_three(inputs, draw, stack):
    model = small(inputs, beta=1.0).train()
    with torch.no_grad():
        for mixed in (*model.first.values(), model.second):
            mixed.router.weight.zero_()
    assert model(double(stack([draw(9), draw(4)]))).losses["bal"].item() == pytest.approx(3)


def test_the_decoupling_loss_stays_in_its_range(inputs, draw):
    model = small(inputs).train()
    values = [model(double(draw(5))).losses["dis"].item() for _ in range(30)]
    assert 0 <= min(values) < max(values) <= 7


@pytest.mark.parametrize("name", ["l1", "mse", "kl"])
def test_other_distances_are_pulled_down_and_their_inverse_is_pushed(name):
    pull, push = DISTANCES[name]
    a, b = torch.randn(2, 1, 12, dtype=torch.float64)
    p, q = (torch.exp(x) / torch.exp(x).sum() for x in (a, b))
    expected = {"l1": (a - b).abs().mean(), "mse": ((a - b) ** 2).mean(), "kl": (p * (p / q).log()).sum()}[name]
    torch.testing.assert_close(pull(a, b), expected)
    torch.testing.assert_close(push(a, b), 1 / (expected + 1e-6))
    assert torch.isfinite(push(a, a))


def test_losses_come_in_training_only_and_are_the_mean_over_the_patients(inputs, draw, stack):
    model, patients = small(inputs, "no_rfr", **STILL), [double(draw(9)), double(draw(5))]
    batch = double(stack([draw(9), draw(5)]))
    assert model(batch).losses == {}
    model.train()
    together, alone = model(batch).losses, [model(batch.single(row)).losses for row in range(2)]
    for name in ("dis", "bal"):
        torch.testing.assert_close(together[name], (alone[0][name] + alone[1][name]) / 2)
    assert model(patients[0]).losses["dis"].requires_grad


@pytest.mark.parametrize("variant, left", [("no_dis", {"bal"}), ("no_bal", {"dis"}), ("no_dis_no_bal", set())])
def test_a_loss_that_is_switched_off_is_not_computed(inputs, draw, variant, left):
    model = small(inputs, variant).train()
    assert set(model(double(draw())).losses) == left
    assert len(model.project) == 2 * ("dis" in left)


def test_every_parameter_and_every_expert_gets_a_gradient_when_all_are_chosen(inputs, draw):
    model = small(inputs, top_k=3).train()
    for _ in range(4):
        output = model(double(draw()))
        (output.logits.square().sum() + sum(output.losses.values())).backward()
    assert not [name for name, p in model.named_parameters() if not p.grad.any()]
    for mixed in (*model.first.values(), model.second):
        for parameter in mixed.experts.parameters():
            assert parameter.grad.flatten(1).any(dim=1).all()


def test_an_expert_that_nobody_chooses_gets_none(inputs, draw):
    model = small(inputs, experts=8)
    model.explain = True
    with torch.no_grad():
        for bias in (model.first["omics"].experts.bias_in, model.first["omics"].experts.bias_out):
            bias.add_(10.0)  # every unit works, so that whoever is chosen has a gradient
    output = model(double(draw()))
    output.logits.square().sum().backward()
    chosen = output.details["gates_omics"][0].any(dim=0)
    assert 0 < chosen.sum() < 8
    assert torch.equal(model.first["omics"].experts.weight_out.grad[:-1].flatten(1).any(dim=1), chosen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distance", DISTANCES)
def test_half_precision_trains_and_its_losses_are_those_of_full_precision(inputs, draw, distance, dtype):
    model, patient = build_model("hdmoe", inputs, "no_rfr", distance=distance, **SMALL, **STILL).train(), draw(30)
    exact = model(patient).losses
    with torch.autocast("cpu", dtype=dtype):
        output = model(patient)
    assert {x.dtype for x in (output.logits, *output.losses.values())} == {torch.float32}
    torch.testing.assert_close(output.losses, exact, rtol=0.1, atol=0)
    (output.logits.square().sum() + sum(output.losses.values())).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# --- switches ---


def test_without_fine_graining_each_mixture_has_one_token(inputs, draw):
    model = small(inputs, "no_fine_grained")
    model.explain = True
    details = model(double(draw())).details
    assert details["router_wsi"].shape == (1, 1, 3)
    assert details["router_second"].shape == (1, 4, 1, 3)
    assert (model.first["wsi"].width, model.second.width) == (16, 64)
    assert model.second.experts.weight_out.shape == (4, 32, 5)


def test_without_deredundancy_the_second_level_sees_the_vector_itself(inputs, draw):
    patient, seen = double(draw()), {}
    for variant in (None, "no_deredundancy"):
        torch.manual_seed(0)
        model = small(inputs, variant, rfr_eval="fixed:1,1")
        model.second.register_forward_pre_hook(lambda _, given, variant=variant: seen.update({variant: given[0][0]}))
        model(patient)
    vectors = torch.cat([model.encoders[m](patient) for m in ("omics", "wsi")], dim=1)[0]
    assert torch.equal(seen[None][:32], seen["no_deredundancy"][:32])
    assert torch.equal(seen["no_deredundancy"][32:], vectors)
    assert not torch.equal(seen[None][32:], vectors)


@pytest.mark.parametrize("change", [{"top_k": 2}, {"nystrom_padding": "exact"}, {"deredundancy": False}, {"rfr": False}])
def test_a_switch_without_parameters_changes_the_prediction(inputs, draw, change):
    patient, logits = double(draw()), []
    for options in ({}, change):
        torch.manual_seed(0)
        logits.append(small(inputs, **options)(patient).logits)
    assert not torch.allclose(*logits, rtol=1e-4)


def test_few_tokens_without_padding_get_softmax_attention(inputs, draw):
    patient, encoder = double(draw(7)), small(inputs, "exact_padding", landmarks=8).encoders["omics"]
    layer, tokens = encoder.layers[0], torch.randn(1, 8, 16, dtype=torch.float64)  # 8 tokens, 8 landmarks
    q, k, v = (x.unflatten(1, (2, 8)).transpose(0, 1) for x in (tokens[0] @ layer.project.weight.T).chunk(3, dim=1))
    mixed = (q @ k.transpose(1, 2) / math.sqrt(8)).softmax(dim=-1) @ v + layer.convolution(v[None])[0]
    expected = mixed.transpose(0, 1).flatten(1) @ layer.output.weight.T + layer.output.bias
    torch.testing.assert_close(layer(tokens)[0], expected)
    assert encoder(patient).isfinite().all()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("token_length", {2, 8, 16, 32, 64, 128, 256}),  # Table 6
        ("experts", {2, 4, 8, 16, 32}),  # Fig. 4
        ("distance", {"cos", "l1", "kl", "mse"}),  # Table 4
        ("alpha", {0.0, 0.001, 0.01, 0.1, 1.0, 10.0}),  # Fig. 14, Table 3
        ("beta", {0.0, 0.001, 0.01, 0.1, 1.0, 10.0}),  # Fig. 14, Table 3
        ("rfr", {True, False}),  # Table 3
        ("fine_grained", {True, False}),  # Table 3
        ("deredundancy", {True, False}),  # Table 3
        ("rfr_eval", {"mean", "random", "fixed:8,8"}),  # Table 7, Fig. 10
        ("missing", {"zeros", "refuse"}),
        ("nystrom_padding", {"reference", "exact"}),
    ],
)
def test_every_setting_of_the_papers_tables_is_a_variant(key, values):
    assert {load_model_config("hdmoe", variant)["model"][key] for variant in (None, *model_variants("hdmoe"))} == values


def test_variants_change_one_thing_but_the_codes_own():
    plain = load_model_config("hdmoe")
    two = {"no_dis_no_bal": 2, "code": 4}
    for variant in model_variants("hdmoe"):
        changed = load_model_config("hdmoe", variant)
        differs = [(block, key) for block in ("model", "training") for key in plain[block] if changed[block][key] != plain[block][key]]
        assert len(differs) == two.get(variant, 1), variant


def test_the_protocol_is_the_codes():
    protocol = Protocol.of(load_model_config("hdmoe")["training"])
    rates = [protocol.learning_rate(epoch, step, 300, []) for epoch in (0, 15, 29) for step in (0, 299)]  # once an epoch
    assert rates == pytest.approx([5e-4] * 2 + [5e-4 * 0.5**0.9] * 2 + [5e-4 * (1 / 30) ** 0.9] * 2)
    assert (protocol.optimizer, protocol.weight_decay, protocol.batch_size, protocol.epochs) == ("adam", 1e-5, 1, 30)
    assert (protocol.loss, protocol.alpha, protocol.sampler, protocol.max_patches_train) == ("nll", 0.0, "balanced", None)


@pytest.mark.parametrize(
    "change, problem", [({"token_length": 3}, "an even divisor"), ({"token_length": 1}, "an even"), ({"top_k": 4}, "1 to 3")]
)
def test_sizes_that_do_not_fit_are_refused(inputs, change, problem):
    with pytest.raises(InputError, match=problem):
        build_model("hdmoe", inputs, **SMALL | change)


# --- modalities ---


def test_slices_of_an_mri_are_a_set_without_a_square():
    inputs = Inputs(bags={"mri": 6, "wsi": 7})
    model = build_model("hdmoe", inputs, modalities=["mri", "wsi"], **SMALL).eval()
    assert model.encoders["mri"].position is None
    assert model.encoders["wsi"].position is not None
    seen = []
    model.encoders["mri"].norms[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    logits = model(Patient.of(bags={"mri": torch.randn(5, 6), "wsi": torch.randn(5, 7)})).logits
    assert (logits.shape, seen) == ((1, 4), [(1, 6, 16)])  # the class token and 5 slices, not 9


def test_any_bags_and_tables_may_be_combined(inputs):
    offered = replace(inputs, bags={"wsi": 7, "tma": 5}, vectors={"clinical": 3})
    model = build_model("hdmoe", offered, modalities=["omics", "wsi", "tma", "clinical"], **SMALL).train()
    groups = {"families": [torch.randn(n) for n in offered.groups["families"]]}
    patient = Patient.of(bags={"wsi": torch.randn(5, 7), "tma": torch.randn(2, 5)}, vectors={"clinical": torch.randn(3)}, groups=groups)
    output = model(patient)
    assert output.logits.shape == (1, 4)
    assert set(output.losses) == {"dis", "bal"}
    with pytest.raises(InputError, match="HDMoE reads 'mri'"):
        build_model("hdmoe", offered, modalities=["omics", "mri"], **SMALL)


def test_a_group_without_genes_has_no_token(draw):
    features = [torch.randn(5), torch.zeros(0), torch.randn(3)]
    model = build_model("hdmoe", Inputs(groups={"families": (5, 0, 3)}), "genomics", **SMALL).eval()
    assert len(model.encoders["omics"].embed.first) == 2
    assert torch.isfinite(model(Patient.of(groups={"families": features})).logits).all()


@pytest.mark.parametrize("lacks", ["wsi", "omics"])
def test_an_absent_modality_is_zeros(inputs, draw, stack, lacks):
    model, patient = small(inputs), double(draw(7))
    zeros = {"wsi": Bag(torch.zeros(1, 1, 24, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool))}
    filled = (
        replace(patient, bags=zeros) if lacks == "wsi" else replace(patient, groups={"families": torch.zeros(1, 37, dtype=torch.float64)})
    )
    torch.testing.assert_close(model.float()(patient_float(patient.without(lacks))).logits, model(patient_float(filled)).logits)


def patient_float(patient):
    bags = {m: Bag(bag.features.float(), bag.mask) for m, bag in patient.bags.items()}
    return replace(patient, bags=bags, groups={g: x.float() for g, x in patient.groups.items()}, vectors={})


@pytest.mark.parametrize("had", [{"omics"}, {"tma"}, {"clinical"}, {"wsi", "clinical"}, {"omics", "tma", "clinical"}])
def test_any_subset_of_the_modalities_is_predicted_or_refused_by_name(inputs, had):
    offered = replace(inputs, bags={"wsi": 7, "tma": 5}, vectors={"clinical": 3})
    names = ["omics", "wsi", "tma", "clinical"]
    patient = reference_patient(offered, 4)
    for name in set(names) - had:
        patient = patient.without(name)
    lenient, strict = (build_model("hdmoe", offered, variant, modalities=names, **SMALL).eval() for variant in (None, "refuse"))
    assert lenient(patient).logits.isfinite().all()
    lacking = " and ".join(name for name in names if name not in had)
    with pytest.raises(InputError, match=f"HDMoE cannot predict patient 0 of the batch: lacks {lacking}"):
        strict(patient)


@pytest.mark.parametrize("names", [[], ["wsi", "wsi"]])
def test_each_modality_is_read_once(inputs, names):
    with pytest.raises(InputError, match="HDMoE reads every modality once"):
        build_model("hdmoe", inputs, modalities=names, **SMALL)


@pytest.mark.parametrize("lacks", ["wsi", "omics"])
def test_the_method_itself_refuses_an_incomplete_patient(inputs, draw, lacks):
    with pytest.raises(InputError, match=f"HDMoE cannot predict patient 0 of the batch: lacks {lacks}"):
        build_model("hdmoe", inputs, "refuse", **SMALL)(draw(lacks=lacks))


# --- invariances ---


def test_the_order_of_patches_matters_and_is_declared(inputs, draw):
    model, patient = small(inputs), double(draw())
    features = patient.bags["wsi"].features
    other = replace(patient, bags={"wsi": Bag(features.flip(1), patient.bags["wsi"].mask)})
    assert model.ordered
    assert not torch.allclose(model(other).logits, model(patient).logits, rtol=1e-4)


def test_a_patient_does_not_depend_on_his_batch_or_its_padding(inputs, draw, stack):
    model, batch = small(inputs), double(stack([draw(9), draw(30), draw(4)]))
    noise = torch.where(batch.bags["wsi"].mask[..., None], batch.bags["wsi"].features, 1e3)
    dirty = replace(batch, bags={"wsi": Bag(noise, batch.bags["wsi"].mask)})
    alone = torch.cat([model(batch.single(row)).logits for row in range(3)])
    torch.testing.assert_close(model(dirty).logits, alone)


# --- what the figures of the paper look at ---


def test_details_come_only_when_asked_for(inputs, draw, stack):
    model, batch = small(inputs), double(stack([draw(9), draw(13)]))
    assert model(batch).details == {}
    model.explain = True
    details = model(batch).details
    shapes = {"router_omics": (2, 4, 3), "router_second": (2, 4, 16, 3), "before_wsi": (2, 4, 4), "correlation_after_wsi": (2, 4, 4)}
    assert {name: tuple(details[name].shape) for name in shapes} == shapes
    for m in ("omics", "wsi", "second"):
        torch.testing.assert_close(details[f"router_{m}"].sum(-1), torch.ones_like(details[f"router_{m}"][..., 0]))
        assert ((details[f"gates_{m}"] > 0).sum(-1) == 1).all()
        assert torch.equal(details[f"gates_{m}"].amax(-1), details[f"router_{m}"].amax(-1))


def test_correlations_are_pearsons_and_zero_for_a_constant_token(inputs, draw):
    model = small(inputs)
    model.explain = True
    details = model(double(draw())).details
    tokens = details["before_omics"][0]
    torch.testing.assert_close(details["correlation_before_omics"][0], torch.corrcoef(tokens).abs())
    with torch.no_grad():
        model.first["omics"].experts.bias_out.fill_(-100.0)  # every output of the shared expert becomes 0
    details = model(double(draw())).details
    assert not details["correlation_after_omics"].any()


def test_shapes_at_the_published_size_are_those_of_the_specification():
    model = build_model("hdmoe", REFERENCE, "fixed_8_8").eval()
    model.explain, seen = True, {}
    for name, mixed in (*model.first.items(), ("second", model.second)):
        mixed.register_forward_hook(lambda _, __, out, name=name: seen.update({name: (*out.routed.shape, *out.shared.shape)}))
    output = model(reference_patient(REFERENCE, 3))
    assert seen == {"omics": (1, 256, 1, 256), "wsi": (1, 256, 1, 256), "second": (1, 512, 1, 512)}
    assert [tuple(output.details[f"router_{m}"].shape) for m in seen] == [(1, 4, 8), (1, 4, 8), (1, 1, 16, 8)]
    assert output.logits.shape == (1, 4)


def test_relevance_is_gradient_times_input_of_each_routed_token(inputs, draw, stack):
    model, patient = small(inputs), double(draw(9))
    model.explain = True
    with torch.no_grad():
        relevance = model(patient).details["relevance_wsi"]
    encoder, scale = model.encoders["wsi"], torch.ones(1, 9, 1, dtype=torch.float64, requires_grad=True)
    routed = model.first["wsi"](encoder.encode(encoder.embed(patient) * scale)).routed.unflatten(1, (4, 4))
    for token in range(4):  # of instance i: what its embedding scaled by 1 + ε changes
        (slope,) = torch.autograd.grad(routed[0, token].square().sum(), scale, retain_graph=True)
        torch.testing.assert_close(relevance[0, token], slope[0, :, 0].abs())
    assert relevance.sum() > 0
    assert model(double(stack([draw(9), draw(5)]))).details["relevance_omics"].shape == (2, 4, 6)


def test_the_risk_can_be_attributed_to_every_gene(inputs, draw):
    model, patient = small(inputs, rfr_eval="fixed:4,8"), double(draw())
    patient.groups["families"].requires_grad_()
    risk_score(model(patient).logits).sum().backward()
    assert (patient.groups["families"].grad != 0).all()
