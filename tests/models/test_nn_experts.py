import pytest
import torch
from torch import nn

from pipeline.nn.experts import Experts, Mixture, balance_loss, top_k


def separate(experts, number, *, norm, final_relu):
    """One expert as ordinary layers."""
    _, hidden, width = experts.weight_in.shape
    out = experts.weight_out.shape[1]
    layers = [nn.Linear(width, hidden), *[nn.LayerNorm(hidden)] * norm, nn.ReLU(), nn.Linear(hidden, out)]
    layers += [*[nn.LayerNorm(out)] * norm, *[nn.ReLU()] * final_relu]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, name in zip(linear, ("in", "out"), strict=True):
            layer.weight.copy_(getattr(experts, f"weight_{name}")[number])
            layer.bias.copy_(getattr(experts, f"bias_{name}")[number])
        for layer, name in zip([x for x in layers if isinstance(x, nn.LayerNorm)], ("norm_in", "norm_out"), strict=False):
            layer.weight.copy_(getattr(experts, name).weight[number])
            layer.bias.copy_(getattr(experts, name).bias[number])
    return nn.Sequential(*layers)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("final_relu", [False, True])
def test_stacked_experts_are_separate_networks(norm, final_relu):
    experts = Experts(3, 5, 7, 4, norm=norm, final_relu=final_relu)
    for layer in (experts.norm_in, experts.norm_out) if norm else ():
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    tokens = torch.randn(2, 6, 5)
    alone = [separate(experts, e, norm=norm, final_relu=final_relu) for e in range(3)]
    torch.testing.assert_close(experts(tokens), torch.stack([network(tokens) for network in alone], dim=2))
    assert sum(p.numel() for p in experts.parameters()) == sum(p.numel() for network in alone for p in network.parameters())


def test_experts_start_as_linear_layers_do():
    experts = Experts(50, 16, 64, 8)
    for stack, fan_in in ((experts.weight_in, 16), (experts.bias_in, 16), (experts.weight_out, 64), (experts.bias_out, 64)):
        assert stack.abs().max() <= fan_in**-0.5
        assert stack.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)


def test_only_the_chosen_experts_get_a_gradient():
    experts, tokens = Experts(4, 5, 7, 3), torch.randn(6, 5)
    gates = torch.zeros(6, 4)
    gates[:, [1, 3]] = 0.5
    (gates[..., None] * experts(tokens)).sum().backward()
    for parameter in experts.parameters():
        assert [bool(g.any()) for g in parameter.grad] == [False, True, False, True]


def test_dropout_acts_in_training_only():
    experts, tokens = Experts(2, 5, 40, 3, dropout=0.5), torch.randn(6, 5)
    assert not torch.equal(experts(tokens), experts(tokens))
    experts.eval()
    assert torch.equal(experts(tokens), experts(tokens))


def test_the_largest_probabilities_are_kept_as_they_are():
    probabilities = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.4, 0.0, 0.25, 0.35]])
    assert torch.equal(top_k(probabilities, 1), torch.tensor([[0, 0.5, 0, 0], [0.4, 0, 0, 0]]))
    assert torch.equal(top_k(probabilities, 2), torch.tensor([[0, 0.5, 0.3, 0], [0.4, 0, 0, 0.35]]))
    assert torch.equal(top_k(probabilities, 4), probabilities)


def test_the_balance_loss_is_one_for_uniform_probabilities_and_largest_when_one_expert_has_all():
    uniform = torch.full((4, 8), 1 / 8)
    assert balance_loss(uniform, top_k(uniform, 1)).item() == pytest.approx(1)
    one = torch.eye(8)[:1].expand(4, 8)
    assert balance_loss(one, top_k(one, 1)).item() == pytest.approx(8)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_balance_loss_is_what_the_formula_says(k):
    probabilities = torch.randn(3, 7, 5).softmax(dim=-1)
    chosen = top_k(probabilities, k)
    for row in range(3):
        pairs = [e for token in range(7) for e in range(5) if chosen[row, token, e] > 0]
        expected = 5 * sum(pairs.count(e) / len(pairs) * probabilities[row, :, e].mean() for e in range(5))
        torch.testing.assert_close(balance_loss(probabilities, chosen)[row], expected)


def test_the_balance_loss_moves_the_probabilities_of_experts_that_have_tokens():
    logits = torch.randn(7, 5, requires_grad=True)
    probabilities = logits.softmax(dim=-1)
    balance_loss(probabilities, top_k(probabilities, 1)).backward()
    assert logits.grad.abs().max() > 0


@pytest.mark.parametrize("k", [1, 3])
def test_a_mixture_weighs_its_routed_experts_and_adds_the_shared_one_apart(k):
    mixture, vectors = Mixture(4, 6, experts=3, k=k, hidden=5, dropout=0.0), torch.randn(2, 8)
    mixed = mixture(vectors)
    alone = [separate(mixture.experts, e, norm=False, final_relu=True) for e in range(4)]
    for row, vector in enumerate(vectors):
        for token, x in enumerate(vector.split(4)):
            p = mixture.router(x).softmax(0)
            at = slice(6 * token, 6 * token + 6)
            torch.testing.assert_close(mixed.routed[row, at], sum(p[e] * alone[e](x) for e in p.topk(k).indices.tolist()))
            torch.testing.assert_close(mixed.shared[row, at], alone[3](x))
    torch.testing.assert_close(mixed.balance, balance_loss(mixed.probabilities, mixed.gates))
