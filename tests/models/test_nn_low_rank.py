from itertools import product

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.nn.gating import BilinearGate, LowRankInteraction, WeighedConcatenation
from pipeline.nn.low_rank import LowRankFusion


def count(module):
    return sum(p.numel() for p in module.parameters())


def explicit(fusion, vectors):
    """The whole weight tensor of every rank, contracted with the outer product of all [x; 1], entry by entry."""
    one = torch.ones(len(vectors[0]), 1, dtype=vectors[0].dtype)
    extended = [torch.cat([x, one], dim=1) for x in vectors]
    phi = torch.ones(len(fusion.factors[0])) if fusion.weights is None else fusion.weights
    total = torch.zeros(len(one), fusion.factors[0].shape[2], dtype=one.dtype)
    for place in product(*(range(x.shape[1]) for x in extended)):
        entry = torch.ones_like(total[:, 0])
        for x, at in zip(extended, place, strict=True):
            entry = entry * x[:, at]
        weight = sum(p * torch.stack([f[i, at] for f, at in zip(fusion.factors, place, strict=True)]).prod(0) for i, p in enumerate(phi))
        total = total + entry[:, None] * weight
    return total if fusion.bias is None else total + fusion.bias


@pytest.mark.parametrize("widths, rank, weighted", [((32, 32), 1, False), ((3, 5), 4, True), ((2, 3, 4), 2, True), ((4,), 3, False)])
def test_low_rank_fusion_contracts_the_outer_product_with_a_weight_tensor(widths, rank, weighted):
    fusion = LowRankFusion(widths, 7, rank, weighted=weighted).double()
    if weighted:
        nn.init.normal_(fusion.bias)
    vectors = [torch.randn(5, width).double() for width in widths]
    torch.testing.assert_close(fusion(vectors), explicit(fusion, vectors))


def test_an_absent_modality_is_zeros_and_a_one():
    fusion = LowRankFusion((3, 5), 6, 2, weighted=True)
    a, b = torch.randn(4, 3), torch.randn(4, 5)
    there = torch.tensor([True, False, True, False])
    everyone = torch.ones(4, dtype=torch.bool)
    some = fusion([a, b], [everyone, there])
    torch.testing.assert_close(some[there], fusion([a, b])[there])
    torch.testing.assert_close(some[~there], fusion([a, torch.zeros_like(b)])[~there])
    assert torch.equal(fusion([a, b * torch.inf], [everyone, ~everyone]), fusion([a, b], [everyone, ~everyone]))


def test_swapping_modalities_with_their_factors_changes_nothing():
    one, other = LowRankFusion((3, 5), 6, 2, weighted=True), LowRankFusion((5, 3), 6, 2, weighted=True)
    other.load_state_dict({**one.state_dict(), "factors.0": one.factors[1], "factors.1": one.factors[0]})
    a, b = torch.randn(4, 3), torch.randn(4, 5)
    torch.testing.assert_close(one([a, b]), other([b, a]))


def test_sizes_are_those_of_adamhf_and_pgmlif():
    assert count(LowRankFusion((256, 256), 256, 4, weighted=True)) == 526_596
    assert count(LowRankFusion((32, 32), 33, 1, weighted=False)) == 2_178


@pytest.mark.parametrize("init, std", [("xavier", (2 / (401 + 300)) ** 0.5), ("normal", 401**-0.5)])
def test_every_factor_starts_with_its_own_spread(init, std):
    fusion = LowRankFusion((400, 10), 300, 2, weighted=True, init=init)
    assert fusion.factors[0].std().item() == pytest.approx(std, rel=0.02)
    assert fusion.bias.abs().max().item() == 0
    assert fusion.weights.abs().min().item() > 0


def test_an_unknown_init_is_named():
    with pytest.raises(InputError, match="unknown value of the model option 'init'"):
        LowRankFusion((2, 2), 2, 1, weighted=False, init="uniform")


def test_the_gate_is_that_of_pathomic_fusion():
    gate = BilinearGate(6, 4, 0.5).eval()
    own, other = torch.randn(5, 6), torch.randn(5, 4)
    opened = gate.gate(own, other).sigmoid() * gate.hidden(own).relu()  # PyTorch's own bilinear layer
    torch.testing.assert_close(gate(own, other), gate.out[0](opened).relu())
    assert count(BilinearGate(32, 32, 0.25)) == 34_912


def test_the_interaction_gates_fuses_and_encodes_and_has_the_published_size():
    interaction = LowRankInteraction(32, 33, 1, 64, 0.25)
    assert [count(m) for m in (interaction.gates, interaction.lmf, interaction.encode)] == [69_824, 2_178, 2_176]
    assert interaction.encode[1].weight.std().item() == pytest.approx(33**-0.5, rel=0.05)
    assert interaction.encode[1].bias.abs().max().item() == 0
    interaction.eval()
    a, b = torch.randn(3, 32), torch.randn(3, 32)
    left, right = interaction.gates[0](a, b), interaction.gates[1](b, a)
    expected = interaction.encode[1](interaction.lmf([left, right])).relu()
    torch.testing.assert_close(interaction(a, b), expected)


def test_weights_of_a_concatenation_are_between_zero_and_one_and_of_published_size():
    owc = WeighedConcatenation(192)
    assert (count(owc), owc.weigh[0].out_features) == (42_542, 110)
    assert WeighedConcatenation(130).weigh[0].out_features == 75
    blocks = [torch.randn(3, 100), torch.randn(3, 92)]
    weighed, weights = owc(blocks)
    assert ((weights > 0) & (weights < 1)).all()
    torch.testing.assert_close(weighed, weights * torch.cat(blocks, dim=1))
