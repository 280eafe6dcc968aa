import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.cohort.record import Bag, Patient
from pipeline.errors import InputError
from pipeline.models import build_model, load_model_config, model_variants
from pipeline.models.interface import Inputs
from pipeline.models.reference import forward_flops, parameters, reference_patient
from pipeline.nn.routed_experts import FrozenMLP, PatchExpert, ProgressiveExperts, TokenMixture
from pipeline.nn.token_selection import TokenSelection

HUNDREDS = Inputs(bags={"wsi": 1024}, groups={"families": (100, 200, 300, 400, 500, 600)})
LUAD = Inputs(bags={"wsi": 1024}, groups={"families": (89, 334, 534, 471, 1510, 482)})
FULL = 12_842_435
SMALL = {"width": 16, "gene_hidden": 12, "heads": 4, "landmarks": 8, "patch_expert_hidden": 4, "gene_expert_hidden": 8, "frozen_hidden": 8}
FIXED = {"rho": 0.05, "alpha": 0.5}


def small(inputs, variant=None, **options):
    return build_model("adamhf", inputs, variant, **{**SMALL, **options})


def count(module):
    return sum(p.numel() for p in module.parameters())


# --- size and cost ---


@pytest.mark.parametrize(
    "variant, expected",
    [
        (None, FULL),
        ("no_atsa", FULL - 197_763),
        ("outer_fusion", FULL + 16_382_204),
        ("pree_2_layers", FULL - 3_096_720),
        ("pree_1_layer", FULL - 4_776_664),
        ("code_sizes", 26_269_667),
    ],
)
def test_parameters_are_those_of_the_specification(variant, expected):
    model = build_model("adamhf", HUNDREDS, variant)
    assert parameters(model) == expected
    assert sum(b.numel() for b in model.frozen.buffers()) == (525_568 if variant == "code_sizes" else 33_088)


def test_parameters_grow_by_1024_a_gene():
    assert parameters(build_model("adamhf", LUAD)) == 10_692_035 + 1024 * 3420 == 14_194_115


def test_each_part_has_the_parameters_of_the_specification():
    model = build_model("adamhf", HUNDREDS)
    path, omic = model.segregation["path"], model.segregation["omic"]
    parts = [model.patches, path.transformers[0], path.positions[0], path.experts[0].experts[2][3], omic.experts[0].experts[2][3]]
    assert [count(part) for part in parts] == [328_192, 263_176, 4_096, 222_096, 131_584]
    assert [count(gate) for gate in path.experts[0].gates] == [0, 66_306, 66_820]
    assert [count(unit) for unit in (path, omic)] == [2_218_502, 1_580_822]
    assert [count(part) for part in (model.cross, model.global_fusion, model.local_fusion, model.head)] == [
        4 * 65_536,
        197_120,
        526_596,
        1_028,
    ]


class PublishedNystrom(nn.Module):
    """The attention of the public codes on the weights of `ours`, written down as it stands; reference order (A₁Z)(A₃V), or A₁(Z(A₃V))."""

    def __init__(self, ours, left_first):
        super().__init__()
        self.ours, self.left_first = ours, left_first

    def forward(self, x):
        ours, length, m = self.ours, x.shape[1], self.ours.landmarks
        if length <= m:
            return ours(x)
        x = F.pad(x, (0, 0, -length % m, 0))
        q, k, v = (part.unflatten(-1, (ours.heads, -1)).transpose(1, 2) for part in ours.project(x).chunk(3, dim=-1))
        q = q * q.shape[-1] ** -0.5
        q_mark, k_mark = (part.unflatten(2, (m, -1)).mean(dim=3) for part in (q, k))
        a1, a2, a3 = ((a @ b.transpose(-1, -2)).softmax(-1) for a, b in ((q, k_mark), (q_mark, k_mark), (q_mark, k)))
        z, eye = a2.transpose(-1, -2) / (a2.sum(-2).max() * a2.sum(-1).max()), torch.eye(m)
        for _ in range(6):
            az = a2 @ z
            z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
        out = (a1 @ z) @ (a3 @ v) if self.left_first else a1 @ (z @ (a3 @ v))
        return ours.output((out + ours.convolution(v)).transpose(1, 2).flatten(2))[:, -length:]


def published(model, left_first=True):
    """The model with the attention of the public codes."""
    for unit in [*model.segregation.values(), *model.integration.values()]:
        for block in unit.transformers:
            block.attention = PublishedNystrom(getattr(block.attention, "ours", block.attention), left_first)
    return model


@pytest.fixture(scope="module")
def luad():
    torch.manual_seed(0)
    return build_model("adamhf", LUAD, **FIXED).eval()


@pytest.mark.parametrize(
    "patches, expected",
    [
        (256, 3.55),
        pytest.param(512, 5.23, marks=pytest.mark.slow),
        pytest.param(1024, 8.37, marks=pytest.mark.long),
        pytest.param(2048, 14.97, marks=pytest.mark.slow),
        pytest.param(4096, 29.36, marks=pytest.mark.long),
    ],
)
def test_operations_in_the_reference_order_are_those_of_the_specification(luad, patches, expected):
    """To 0.01 G: the class token meets one tap of a 3 × 3 filter here, where the specification counts nine (5 M operations)."""
    patient = reference_patient(LUAD, patches)
    reference = forward_flops(published(copy.deepcopy(luad)), patient)
    assert reference / 1e9 == pytest.approx(expected, abs=0.01)
    # A₁(Z(A₃V)) saves 8·m²(N′ − d/8) multiplications a layer, N′ the padded length, wherever attention is not exact.
    better = forward_flops(published(copy.deepcopy(luad), left_first=False), patient)
    lengths = [1 + (math.isqrt(n - 1) + 1) ** 2 for n in (patches, math.ceil(0.05 * patches))]  # of segregation and integration
    assert reference - better == sum(2 * 2 * 8 * 128**2 * (n + -n % 128 - 32) for n in lengths if n > 128)
    if patches in (known := {512: 4.91, 2048: 13.85}):
        assert better / 1e9 == pytest.approx(known[patches], abs=0.015)
    ours = forward_flops(luad, patient)
    assert ours < better  # what stands for padding is computed once
    if patches == 2048:
        assert ours / 1e9 == pytest.approx(13.65, abs=0.005)


@pytest.mark.slow
def test_with_its_router_the_model_costs_what_the_router_takes():
    """Why `python -m pipeline.models` prints another figure than that of ρ = 0.05: the share of an untrained router is another."""
    torch.manual_seed(0)
    free, patient = build_model("adamhf", LUAD).eval(), reference_patient(LUAD, 2048)
    free.explain = True
    with torch.no_grad():
        taken = {name: int((free(patient).details[f"roles_{name}"] > 0).sum()) for name in ("wsi", "omics")}
    assert taken == {"wsi": 152, "omics": 2}
    fixed = build_model("adamhf", LUAD, rho=taken["wsi"] / 2048, alpha=0.5)
    router = 256 * 256 + 2 * (256 * 128 + 128)
    assert forward_flops(free, patient) == forward_flops(fixed, patient) + 2 * 2 * router  # 2 an operation, 2 modalities


def test_nothing_larger_than_the_bag_is_made_forward_or_backward(inputs, draw):
    """No N × N: the largest tensor is that of the queries, keys and values."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple) else [result]:
                self.size = max(self.size, x.numel() if isinstance(x, torch.Tensor) else 0)
            return result

    model = small(inputs)
    for patches in (400, 1600):
        with Largest() as largest:
            output = model(draw(patches))
            (output.logits.sum() + output.losses["align"]).backward()
        assert largest.size <= 3 * 16 * (1 + patches + 1)


@torch.no_grad()
def test_attention_is_that_of_the_public_codes(luad):
    patient = reference_patient(LUAD, 300)
    torch.testing.assert_close(luad(patient).logits, published(copy.deepcopy(luad))(patient).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "variant, expected",  # GMAC
    [
        (None, 7.49),
        ("no_atsa", 13.73),
        pytest.param("all_experts", 11.46, marks=pytest.mark.slow),
        pytest.param("outer_fusion", 7.50, marks=pytest.mark.slow),
        pytest.param("no_atsa_all_experts_outer_fusion", 21.25, marks=pytest.mark.slow),
        pytest.param("code_sizes", 26.99, marks=pytest.mark.slow),
        pytest.param("no_atsa of code_sizes", 50.60, marks=pytest.mark.long),
        pytest.param("all_experts of code_sizes", 48.13, marks=pytest.mark.long),
        pytest.param("outer_fusion of code_sizes", 27.01, marks=pytest.mark.long),
        pytest.param("no_atsa_all_experts_outer_fusion of code_sizes", 90.59, marks=pytest.mark.long),
    ],
)
def test_table_iv_has_the_multiplications_that_the_specification_reconstructs(variant, expected):
    variant, _, sizes = (variant or "").partition(" of ")
    options = load_model_config("adamhf", sizes)["model"] if sizes else {}
    options = {name: options[name] for name in ("patch_expert_hidden", "frozen_hidden") if sizes}
    model = published(build_model("adamhf", LUAD, variant or None, **options, **FIXED))
    squeeze = model.segregation["path"].experts[0].experts[0][0].squeeze
    evaluated = 7 if "all_experts" in variant else 3
    taps = 2 * 2 * evaluated * 2 * 8 * squeeze.in_channels * squeeze.out_channels  # eight of nine, which meet only zeros at a class token
    counted = forward_flops(model, reference_patient(LUAD, 2048)) / 2 + taps
    assert counted / 1e9 == pytest.approx(expected, abs=0.006)


# --- experts ---


def reference_expert(expert, tokens):
    """The convolutional expert, class token and patches as two pictures."""
    side = int((len(tokens) - 1) ** 0.5)

    def on(picture):
        hidden = expert.norm_in(expert.squeeze(picture).permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)
        return expert.norm_out(expert.expand(hidden).permute(0, 2, 3, 1)).flatten(0, 2)

    return torch.cat([on(tokens[:1].T[None, :, :, None]), on(tokens[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2))])


def test_a_patch_expert_sees_the_class_token_as_a_picture_of_one_pixel():
    expert, tokens = PatchExpert(6, 4, "layer"), torch.randn(1 + 9, 6)
    torch.testing.assert_close(expert(tokens), reference_expert(expert, tokens))


def test_progressive_experts_follow_their_equation():
    frozen = FrozenMLP(6, 5, "xavier")
    experts = ProgressiveExperts(6, [1, 2, 4], lambda: PatchExpert(6, 4, "layer"), mlp_residual=True, all_experts=False)
    x = start = torch.randn(1 + 9, 6)
    best = []
    for layer, gate in zip(experts.experts, experts.gates, strict=True):
        at = int(gate(x.mean(0)).argmax()) if len(layer) > 1 else 0
        m = (x @ frozen.weight_in.T + frozen.bias_in).clamp(min=0) @ frozen.weight_out.T + frozen.bias_out
        x = (m + reference_expert(layer[at], x)).clamp(min=0)
        best.append(at)
    out, chosen = experts(start, frozen)
    torch.testing.assert_close(out, x)
    assert chosen == best


def test_without_the_residual_a_layer_is_its_expert_and_all_experts_are_weighted():
    x, frozen = torch.randn(1 + 4, 6), FrozenMLP(6, 5, "xavier")
    experts = ProgressiveExperts(6, [2], lambda: nn.Linear(6, 6), mlp_residual=False, all_experts=True)
    p = experts.gates[0](x.mean(0)).softmax(0)
    expected = sum(share * expert(x) for share, expert in zip(p, experts.experts[0], strict=True)).relu()
    torch.testing.assert_close(experts(x, frozen)[0], expected)


def test_the_gate_learns_although_its_choice_is_hard():
    experts = ProgressiveExperts(6, [2], lambda: nn.Linear(6, 6), mlp_residual=True, all_experts=False)
    experts(torch.randn(5, 6), FrozenMLP(6, 5, "xavier"))[0].square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in experts.gates.parameters())


def test_the_chosen_expert_is_not_scaled_not_even_in_the_last_bit():
    experts = ProgressiveExperts(6, [4], lambda: nn.Linear(6, 6), mlp_residual=True, all_experts=False)
    frozen = FrozenMLP(6, 5, "xavier")
    for x in 3 * torch.randn(20, 5, 6):
        out, (best,) = experts(x, frozen)
        assert torch.equal(out, (frozen(x) + experts.experts[0][best](x)).relu())


def test_exactly_one_expert_a_layer_is_evaluated(inputs, draw):
    model, calls = small(inputs), []
    for module in model.modules():
        if isinstance(module, ProgressiveExperts):
            for layer, experts in enumerate(module.experts):
                key = (id(module), layer)
                for expert in experts:
                    expert.register_forward_hook(lambda *_, key=key: calls.append(key))
    model(draw())
    assert len(calls) == 2 * 2 * 2 * 3  # units × modalities × stages × layers
    assert all(calls.count(key) == 2 for key in set(calls))  # one in each of the stages, which share the object


def test_the_token_mixture_takes_the_two_best_experts_of_each_token():
    mixture, x = TokenMixture(6), torch.randn(7, 6)
    outputs, scores = mixture.experts(x), mixture.score(x)
    expected = []
    for token, given, score in zip(x, outputs, scores, strict=True):
        top = score.topk(2)
        expected.append(token + sum(w * given[at] for w, at in zip(top.values.softmax(0), top.indices, strict=True)))
    torch.testing.assert_close(mixture(x, None)[0], torch.stack(expected))


# --- the frozen MLP ---


def vit_file(folder, width=1024, hidden=4096, bert=False):
    shapes = {"fc1": (hidden, width), "fc2": (width, hidden)}
    state = {f"blocks.0.mlp.{name}.weight": torch.randn(*shape) / 32 for name, shape in shapes.items()}
    state |= {f"blocks.0.mlp.{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    save_file({"bert.weight": torch.zeros(1)} if bert else state, folder / "vit.safetensors")
    return state, f"vit:{folder / 'vit.safetensors'}"


def test_at_full_size_the_frozen_mlp_is_that_of_the_checkpoint(tmp_path):
    state, source = vit_file(tmp_path, 8, 12)
    frozen = FrozenMLP(8, 12, source)
    found = (frozen.weight_in, frozen.bias_in, frozen.weight_out, frozen.bias_out)
    expected = [state[f"blocks.0.mlp.{layer}.{kind}"] for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_part_of_the_checkpoint_s_mlp_keeps_the_scale_of_its_output(tmp_path):
    state, source = vit_file(tmp_path)
    frozen, x = FrozenMLP(256, 64, source), torch.randn(500, 256)
    torch.testing.assert_close(frozen.weight_in, 2 * state["blocks.0.mlp.fc1.weight"][:64, :256])
    torch.testing.assert_close(frozen.weight_out, 8 * state["blocks.0.mlp.fc2.weight"][:256, :64])
    whole = (torch.randn(500, 1024) @ state["blocks.0.mlp.fc1.weight"].T).relu() @ state["blocks.0.mlp.fc2.weight"].T
    part = (x @ frozen.weight_in.T).relu() @ frozen.weight_out.T
    assert float(part.std() / whole.std()) == pytest.approx(1, rel=0.2)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    _, source = vit_file(tmp_path, 8, 12)
    with pytest.raises(InputError, match="smaller than the frozen MLP"):
        FrozenMLP(16, 12, source)
    _, source = vit_file(tmp_path, bert=True)
    with pytest.raises(InputError, match="not the checkpoint of a vision transformer"):
        FrozenMLP(16, 12, source)
    with pytest.raises(InputError, match=r"frozen_init.*Did you mean 'vit'"):
        FrozenMLP(16, 12, "vti:file")


def test_nothing_moves_the_frozen_mlp(inputs, draw):
    model = small(inputs)
    before = {name: value.clone() for name, value in model.frozen.named_buffers()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    model(draw()).logits.sum().backward()
    optimizer.step()
    model.apply(lambda module: nn.init.ones_(module.weight) if isinstance(module, nn.Linear) else None)
    model._initialise()
    assert all(torch.equal(before[name], value) for name, value in model.frozen.named_buffers())
    torch.manual_seed(7)
    assert all(torch.equal(before[name], value) for name, value in small(inputs).frozen.named_buffers())  # whatever the seed


# --- token selection ---


@pytest.fixture
def atsa():
    def make(**options):
        return TokenSelection(8, 0.0, **{"preserve": True, "rho": None, "alpha": None, **options}).eval()

    return make


@pytest.mark.parametrize("n, rho, alpha, size, kept", [
    (2048, 0.05, 0.5, 103, 52), (1, 0.5, 0.5, 1, 1), (2, 0.05, 0.5, 2, 1), (3, 0.05, 0.9, 2, 1), (10, 0.3, 0.01, 3, 1),
    (10, 0.7, 0.5, 7, 4), (10, 1.0, 0.5, 10, 5), (10, 1.0, 1.0, 10, 9),
])  # fmt: skip
def test_as_many_tokens_come_out_as_the_ratios_say_and_the_kept_ones_are_untouched(atsa, n, rho, alpha, size, kept):
    tokens = torch.randn(n, 8)
    selected = atsa(rho=rho, alpha=alpha)(tokens, torch.randn(8))
    best = selected.scores.argsort(descending=True)
    assert selected.tokens.shape == (size, 8)
    assert torch.equal(selected.tokens[:kept], tokens[best[:kept]])
    assert (selected.roles == 2).nonzero().flatten().tolist() == sorted(best[:kept].tolist())
    assert (selected.roles > 0).nonzero().flatten().tolist() == sorted(best[:size].tolist())


def test_scores_are_the_softmax_of_tokens_beside_their_class_token(atsa):
    module, tokens, cls = atsa(), torch.randn(5, 8), torch.randn(8)
    (w1, b1), (w2, b2), (w3, b3) = ((m.weight, m.bias) for m in (module.reduce[0], module.compare[0], module.score))

    def f(x):
        return (w1 @ x + b1).relu()

    raw = torch.stack([w3 @ (w2 @ torch.cat([f(x), f(cls)]) + b2).relu() + b3 for x in tokens]).flatten()
    torch.testing.assert_close(module(tokens, cls).scores, raw.softmax(0))


def test_the_others_are_pooled_in_their_order(atsa):
    tokens, cls = torch.randn(11, 8), torch.randn(8)
    selected = atsa(rho=0.5, alpha=0.5)(tokens, cls)  # K = 6, A = 3
    order = selected.scores.argsort(descending=True).tolist()
    rest = tokens[[*order[3:6], *sorted(order[6:])]]  # 8 tokens, averaged to 3
    expected = torch.stack([rest[0:3].mean(0), rest[2:6].mean(0), rest[5:8].mean(0)])
    torch.testing.assert_close(selected.tokens[3:], expected)


def test_without_preserving_the_best_tokens_alone_remain(atsa):
    tokens = torch.randn(11, 8)
    selected = atsa(rho=0.5, preserve=False)(tokens, torch.randn(8))
    assert torch.equal(selected.tokens, tokens[selected.scores.argsort(descending=True)[:6]])


def test_scores_and_both_ratios_learn(atsa):
    module = atsa()
    selected = module(torch.randn(11, 8), torch.randn(8))
    (selected.tokens * torch.randn_like(selected.tokens)).sum().backward()
    gradients = {name: float(p.grad.abs().max()) for name, p in module.named_parameters()}
    assert gradients.pop("score.bias") < 1e-6  # cancels in the softmax
    assert min(gradients.values()) > 0


def test_few_tokens_stay_at_first_and_fixed_ratios_have_no_router(inputs, atsa):
    assert small(inputs).selection["shared"].allocate[-1].bias.sigmoid().item() == pytest.approx(0.05)
    assert count(atsa(rho=0.1, alpha=0.3).router) == 0
    assert count(atsa(rho=0.1).router) > 0
    assert atsa(rho=0.1).allocate is None


# --- fusion and cross-attention ---


def captured(module):
    """What goes into a module and what comes out, filled by its next call."""
    seen = {}
    module.register_forward_hook(lambda _, given, result: seen.update(given=given, result=result))
    return seen


def test_the_local_fusion_is_the_contraction_of_the_outer_product(inputs, draw):
    model, patient = small(inputs).eval(), draw()
    seen = captured(model.local_fusion)
    model(patient)
    (p, g), lmf = seen["given"][0], model.local_fusion
    outer = torch.outer(F.pad(p[0], (0, 1), value=1.0), F.pad(g[0], (0, 1), value=1.0))
    weights = torch.einsum("r,rph,rgh->pgh", lmf.weights, *lmf.factors)  # Σ_i φ_i w_p^(i) ⊗ w_g^(i), line 2 of eq. 15
    torch.testing.assert_close(seen["result"][0], torch.einsum("pg,pgh->h", outer, weights) + lmf.bias, atol=1e-5, rtol=1e-5)


def test_the_outer_fusion_is_linear_in_the_outer_product(inputs, draw):
    model = small(inputs, "outer_fusion").eval()
    seen = captured(model.local_fusion)
    model(draw())
    p, g = (F.pad(x[0], (0, 1), value=1.0) for x in seen["given"][0])
    torch.testing.assert_close(seen["result"][0], model.local_fusion.project(torch.outer(p, g).flatten()))


def test_local_and_global_are_mixed_by_beta_and_the_genes_come_first(inputs, draw):
    model, patient = small(inputs, beta=0.3).eval(), draw()
    local, whole, head = captured(model.local_fusion), captured(model.global_fusion), captured(model.head)
    path, omic = captured(model.integration["path"]), captured(model.integration["omic"])
    model(patient)
    torch.testing.assert_close(head["given"][0], 0.7 * whole["result"] + 0.3 * local["result"])
    assert torch.equal(whole["given"][0][0], torch.cat([omic["result"].cls, path["result"].cls]))
    assert torch.equal(local["given"][0][0][0], path["result"].tokens.mean(0))


@pytest.mark.parametrize("beta, silent", [(0.0, "local_fusion"), (1.0, "global_fusion")])
def test_beta_decides_which_fusion_learns(inputs, draw, beta, silent):
    model = small(inputs, beta=beta)
    model(draw()).logits.square().sum().backward()
    for name in ("local_fusion", "global_fusion"):
        largest = max(float(p.grad.abs().max()) for p in getattr(model, name).parameters())
        assert (largest == 0) == (name == silent)


def test_cross_attention_reads_one_score_matrix_in_both_directions(inputs, draw):
    model, patient = small(inputs, rho=0.5).eval(), draw()
    model.explain = True
    cross, path, omic = captured(model.cross), captured(model.integration["path"]), captured(model.integration["omic"])
    output = model(patient)
    (p, g), module = cross["given"], model.cross
    x = (p @ module.score_path.weight.T) @ (g @ module.score_omic.weight.T).T / 4  # √16
    torch.testing.assert_close(path["given"][0], (x.softmax(1) @ g) @ module.value_omic.weight.T)
    torch.testing.assert_close(omic["given"][0], (x.softmax(0).T @ p) @ module.value_path.weight.T)
    torch.testing.assert_close(output.attention["cross_wsi"][0], x.softmax(1))
    torch.testing.assert_close(output.attention["cross_omics"][0], x.softmax(0).T)


def test_by_content_the_units_change_places(inputs, draw):
    model, other, patient = small(inputs).eval(), small(inputs, "content_routing").eval(), draw()
    other.load_state_dict(model.state_dict())
    seen = [(captured(m.integration["path"]), captured(m.integration["omic"])) for m in (model, other)]
    model(patient), other(patient)
    assert torch.equal(seen[0][0]["given"][0], seen[1][1]["given"][0])
    assert torch.equal(seen[0][1]["given"][0], seen[1][0]["given"][0])


# --- losses ---


def test_alignment_is_the_weighted_l1_distance_of_the_class_tokens(inputs, draw, stack):
    model, patients = small(inputs, align_weight=0.5, dropout=0.0, attention_dropout=0.0), [draw(9), draw(13)]
    seen = []
    for side in ("path", "omic"):
        model.integration[side].register_forward_hook(lambda _, given, result: seen.append(result.cls))
    output = model(stack(patients))
    expected = torch.stack([(seen[0] - seen[1]).abs().mean(), (seen[2] - seen[3]).abs().mean()]).mean()
    torch.testing.assert_close(output.losses["align"], 0.5 * expected)
    assert model.eval()(stack(patients)).losses == {}


def test_the_code_s_alignment_pulls_each_class_token_to_its_own_before(inputs, draw):
    model = small(inputs, "code_alignment", align_weight=2.0)
    units = [captured(unit) for unit in (*model.segregation.values(), *model.integration.values())]
    whole = captured(model.global_fusion)
    loss = model(draw()).losses["align"]
    p, g, p_after, g_after = (seen["result"].cls for seen in units)
    torch.testing.assert_close(loss, 2 * ((p_after - p).abs().mean() + (g_after - g).abs().mean()))
    torch.testing.assert_close(whole["given"][0][0], torch.cat([(g + g_after) / 2, (p + p_after) / 2]))
    one_way = 2 * ((p_after - p.detach()).abs().mean() + (g_after - g.detach()).abs().mean())
    slopes = [torch.autograd.grad(value, (p, g), retain_graph=True) for value in (loss, one_way)]
    torch.testing.assert_close(slopes[0], slopes[1])


def test_a_patient_without_a_modality_is_not_aligned(inputs, draw):
    assert small(inputs)(draw(lacks="omics")).losses["align"].item() == 0


# --- the whole model ---


def test_gradients_reach_everything_but_experts_that_nobody_was_sent_to(inputs, draw, stack):
    model = small(inputs).double()
    model.explain = True
    for selection in model.selection.values():  # enough tokens that scores and ratios matter
        nn.init.zeros_(selection.allocate[-1].bias)
    batch = stack([draw(n) for n in (9, 13, 20, 30)])
    batch = Patient(
        {m: Bag(b.features.double(), b.mask) for m, b in batch.bags.items()},
        {},
        {g: x.double() for g, x in batch.groups.items()},
        batch.present,
    )
    output = model(batch)
    (output.logits.square().sum() + output.losses["align"]).backward()
    used = set()
    for side, name in (("path", "wsi"), ("omic", "omics")):
        for unit, stages in zip(("segregation", "integration"), output.details[f"experts_{name}"].unbind(1), strict=True):
            for layer, experts in enumerate(stages.unbind(-1)):
                used |= {f"{unit}.{side}.experts.0.experts.{layer}.{e}." for e in experts.unique().tolist()}
    unused = 0
    for name, parameter in model.named_parameters():
        if ".experts.0.experts." in name and not name.startswith(tuple(used)):
            assert parameter.grad is None, name
            unused += 1
        elif name == "selection.shared.score.bias":  # cancels in the softmax
            assert float(parameter.grad.abs().max()) < 1e-12
        else:
            assert float(parameter.grad.abs().max()) > 0, name
    assert unused < sum(".experts.0.experts." in name for name, _ in model.named_parameters()) / 2


@pytest.mark.parametrize("patches", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("variant", [None, "no_atsa", "always_nystrom", "batch_norm_experts", "exact_padding"])
def test_bags_of_any_length_run(inputs, draw, patches, variant):
    model, patient = small(inputs, variant), draw(patches)
    output = model(patient)
    (output.logits.sum() + output.losses["align"]).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.eval()(patient).logits.isfinite().all()


def test_the_order_of_patches_matters(inputs, draw):
    model, patient = small(inputs).eval(), draw(20)
    bag = patient.bags["wsi"]
    other = replace(patient, bags={"wsi": Bag(bag.features.flip(1), bag.mask)})
    assert model.ordered
    assert not torch.allclose(model(other).logits, model(patient).logits, atol=1e-5)


def test_the_copies_that_fill_the_square_are_dropped(inputs, draw):
    model = small(inputs, "no_atsa").eval()
    seen, last = captured(model.segregation["path"]), captured(model.segregation["path"].experts[0])  # of the second stage
    model(draw(13))
    whole = last["result"][0]
    assert whole.shape == (1 + 16, 16)
    assert torch.equal(seen["result"].cls, whole[0])
    assert torch.equal(seen["result"].tokens, whole[1:14])


def test_a_step_is_repeated_bit_by_bit(inputs, draw):
    steps = []
    for _ in range(2):
        torch.manual_seed(3)
        model = small(inputs)
        output = model(draw(30))
        (output.logits.square().sum() + output.losses["align"]).backward()
        steps.append([output.logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))


@pytest.mark.parametrize("patches", [1, 30])
@pytest.mark.parametrize("lacks", ["", "omics", "wsi"])
def test_training_in_half_precision_is_finite(inputs, draw, patches, lacks):
    model = small(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(draw(patches, lacks))
        loss = output.logits.square().sum() + output.losses["align"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("variant", [None, "native", "refuse", "no_atsa", "code_alignment", "pathology", "genomics"])
@pytest.mark.parametrize("has", [(), ("wsi",), ("omics",), ("wsi", "omics")])
def test_any_subset_of_modalities_gives_a_prediction_or_a_refusal(inputs, draw, variant, has):
    model, patient = small(inputs, variant), draw(20)
    for name in {"wsi", "omics"} - set(has):
        patient = patient.without(name)
    needed = {"refuse": {"wsi", "omics"}, "pathology": {"wsi"}, "genomics": {"omics"}}.get(variant, set())
    if not has or not needed <= set(has):
        with pytest.raises(InputError, match="AdaMHF cannot predict patient 0 of the batch"):
            model(patient)
        return
    output = model(patient)
    (output.logits.square().sum() + sum(output.losses.values())).backward()
    assert output.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("patches", [1, 4, 20, 300])
def test_a_slide_of_zeros_is_finite(inputs, patches):
    """The benchmark's removal of a slide: as many patches as before, all zero, so that all landmarks and scores are equal."""
    model = small(inputs)
    genes = [torch.randn(n) for n in inputs.groups["families"]]
    output = model(Patient.of(bags={"wsi": torch.zeros(patches, 24)}, groups={"families": genes}))
    (output.logits.square().sum() + output.losses["align"]).backward()
    assert output.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("lacks, name", [("omics", "omics"), ("wsi", "wsi")])
def test_an_absent_modality_is_fed_as_zeros(inputs, draw, lacks, name):
    model, patient = small(inputs, n_fill=5).eval(), draw()
    zeros = Patient.of(
        bags={"wsi": torch.zeros(5, 24) if lacks == "wsi" else patient.bags["wsi"].features[0]},
        groups={"families": [torch.zeros(n) if lacks == "omics" else torch.ones(n) for n in inputs.groups["families"]]},
    )
    patient = replace(zeros if lacks == "wsi" else patient, present={"wsi": torch.tensor([True]), "omics": torch.tensor([True])})
    logits = model(patient.without(name)).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, model(zeros).logits)


def test_native_keeps_two_tokens_of_the_absent_modality(inputs, draw):
    patient = draw(lacks="omics")
    for variant, expected in (("native", 2), (None, 6)):
        model = small(inputs, variant, rho=1.0)
        model.explain = True
        roles = model(patient).details["roles_omics"]
        assert int((roles > 0).sum()) == expected


def test_incomplete_patients_are_refused_on_request(inputs, draw):
    with pytest.raises(InputError, match="lacks omics"):
        small(inputs, "refuse")(draw(lacks="omics"))


@pytest.mark.parametrize("variant, reads, other", [("genomics", "omics", "wsi"), ("pathology", "wsi", "omics")])
def test_one_branch_runs_on_its_modality_alone(inputs, draw, variant, reads, other):
    alone = replace(inputs, bags={}) if reads == "omics" else replace(inputs, groups={})
    model, patient = small(alone, variant).eval(), draw()
    assert model.modalities == (reads,)
    assert torch.equal(model(patient.without(other)).logits, model(patient).logits)
    with pytest.raises(InputError, match=f"has none of {reads}"):
        model(patient.without(reads))


def test_any_bag_and_any_grouping_can_be_read(draw):
    inputs = Inputs(bags={"tma": 24}, groups={"pathways": (1, 4, 17, 2, 6)})
    model, patient = small(inputs, bag="tma", groups="pathways").eval(), draw()
    patient = replace(patient, bags={"tma": patient.bags["wsi"]}, present={"tma": torch.tensor([True]), "omics": torch.tensor([True])})
    assert set(model(patient).attention) == {"tma", "omics"}


def test_what_is_explained(inputs, draw, stack):
    model, batch = small(inputs).eval(), stack([draw(9), draw(13)])
    assert {name: tuple(a.shape) for name, a in model(batch).attention.items()} == {"wsi": (2, 13), "omics": (2, 6)}
    assert model(batch).details == {}
    model.explain = True
    output = model(batch)
    shapes = {name: tuple(value.shape) for name, value in output.details.items()}
    assert shapes == {
        "roles_wsi": (2, 13), "rho_wsi": (2,), "alpha_wsi": (2,), "experts_wsi": (2, 2, 2, 3),
        "roles_omics": (2, 6), "rho_omics": (2,), "alpha_omics": (2,), "experts_omics": (2, 2, 2, 3),
    }  # fmt: skip
    assert {"cross_wsi", "cross_omics"} < set(output.attention)
    assert (output.details["experts_wsi"].amax((0, 1, 2)) < torch.tensor([1, 2, 4])).all()


@pytest.mark.parametrize("options", [{"bag": "mri"}, {"groups": "hallmarks"}, {"use_global": False, "use_local": False}, {"pree": "of"}])
def test_options_that_cannot_be_met_are_refused(inputs, options):
    with pytest.raises(InputError):
        small(inputs, **options)


def test_every_variant_is_another_model(inputs):
    """Each changes an option or the protocol, except that some spell out a default."""
    base = load_model_config("adamhf")
    for variant in model_variants("adamhf"):
        changed = load_model_config("adamhf", variant)
        same = all(changed[block] == base[block] for block in ("model", "training"))
        assert same == (variant == "beta_0.05"), variant


def test_presets_hold_table_v():
    rows = {"blca": (0.1, 1e-3, 1, 50, 0.05), "brca": (0.5, 5e-3, 1, 20, 0.05), "ucec": (0.5, 1e-4, 2, 50, 0.1)}
    rows |= {"luad": (0.1, 1e-3, 2, 50, 0.2), "gbmlgg": (1.0, 1e-3, 1, 30, 0.05)}
    for cohort, row in rows.items():
        config = load_model_config("adamhf", preset=cohort)
        model, training = config["model"], config["training"]
        assert (model["align_weight"], training["lr"], training["batch_size"], training["epochs"], model["beta"]) == row
        assert training["max_patches_train"] == 2048


def test_snn_activation_is_used_everywhere(inputs):
    kinds = {type(module) for module in small(inputs, "elu").modules()}
    assert nn.ELU in kinds
    assert nn.SELU not in kinds


def test_initial_weights_are_xavier_normal():
    model = build_model("adamhf", HUNDREDS)
    for weight in (model.head.weight, model.patches[0].weight, model.genes.weight_in[model.genes.rows(3)], model.genes.weight_out[2]):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / sum(weight.shape)), rel=0.1)
    assert float(model.genes.bias_in.detach().abs().max()) == 0
    for unit in (*model.segregation.values(), *model.integration.values()):
        assert unit.cls.std().item() == pytest.approx(1e-6, rel=0.2)


def test_the_standard_mixture_starts_as_the_other_layers_do():
    experts = build_model("adamhf", HUNDREDS, "standard_moe").integration["path"].experts[0].experts
    for weight in (*experts.weight_in, *experts.weight_out):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert not any(bias.any() for bias in (experts.bias_in, experts.bias_out))


def test_modules_are_shared_where_the_code_shares_them(inputs):
    def counts(model):
        units = [model.segregation["path"], model.integration["omic"]]
        return [(len(u.transformers), len(u.positions), len(u.experts)) for u in units], len(model.selection)

    assert counts(small(inputs)) == ([(2, 1, 1), (2, 0, 1)], 1)
    assert counts(small(inputs, "stages_apart")) == ([(2, 2, 2), (2, 0, 2)], 1)
    assert counts(small(inputs, "atsa_apart")) == ([(2, 1, 1), (2, 0, 1)], 2)
    assert counts(small(inputs, "no_pree")) == ([(2, 1, 0), (2, 0, 0)], 1)


@pytest.mark.parametrize("variant, left", [("no_global", "local_fusion"), ("no_local", "global_fusion")])
def test_one_fusion_alone_goes_to_the_head_unweighed(inputs, draw, variant, left):
    model = small(inputs, variant).eval()
    fusion, head = captured(getattr(model, left)), captured(model.head)
    model(draw())
    assert torch.equal(head["given"][0], fusion["result"])
