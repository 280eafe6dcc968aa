import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.nn.attention import CrossAttention, GatedAttentionPool, masked_mean, masked_softmax


def masked(batch: int = 3, length: int = 7) -> torch.Tensor:
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[1, 4:] = False
    return mask


def test_masked_softmax_is_the_softmax_of_what_is_left():
    scores, mask = torch.randn(3, 7), masked()
    weights = masked_softmax(scores, mask)
    torch.testing.assert_close(weights[1, :4], scores[1, :4].softmax(0))
    assert (weights[1, 4:] == 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(3))


def test_a_row_without_a_real_position_gives_zeros_and_finite_gradients():
    scores = torch.randn(2, 5, requires_grad=True)
    weights = masked_softmax(scores, torch.tensor([[True] * 5, [False] * 5]))
    weights.square().sum().backward()
    assert (weights[1] == 0).all()
    assert torch.isfinite(scores.grad).all()


def test_masked_mean_of_known_numbers():
    tokens = torch.tensor([[[1.0], [2.0], [9.0]], [[4.0], [4.0], [4.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(masked_mean(tokens, mask), torch.tensor([[1.5], [0.0]]))


@pytest.mark.parametrize("gated", [True, False])
def test_gated_pooling_follows_the_equation_of_the_paper(gated):
    pool, h = GatedAttentionPool(6, 4, 0.0, gated=gated), torch.randn(1, 9, 6)
    v, u = (pool.project.weight.chunk(2), pool.project.bias.chunk(2)) if gated else ((pool.project.weight,), (pool.project.bias,))
    if gated:
        hidden = torch.tanh(h @ v[0].T + u[0]) * torch.sigmoid(h @ v[1].T + u[1])
    else:
        hidden = torch.tanh(h @ v[0].T + u[0])
    weights = (hidden @ pool.score.weight.T + pool.score.bias).softmax(1)
    pooled, alpha = pool(h)
    torch.testing.assert_close(alpha, weights[..., 0])
    torch.testing.assert_close(pooled, (weights * h).sum(1))


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
def test_cross_attention_equals_torch_multihead_attention(heads, folded):
    ours, theirs = CrossAttention(8, heads=heads, bias=True, output=True, folded=folded), nn.MultiheadAttention(8, heads, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    for layer, weight, bias in zip(
        (ours.query, ours.key, ours.value), theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True
    ):
        layer.weight.data, layer.bias.data = weight.data, bias.data
    ours.output.load_state_dict(theirs.out_proj.state_dict())
    queries, instances, mask = torch.randn(3, 4, 8), torch.randn(3, 7, 8), masked()
    result, weights, scores = ours(queries, instances, mask)
    expected, expected_weights = theirs(queries, instances, instances, key_padding_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(masked_softmax(scores, mask[:, None, None]), weights)


def test_folding_changes_neither_values_nor_gradients():
    gradients = []
    for folded in (True, False):
        torch.manual_seed(3)
        layer = CrossAttention(16, heads=2, bias=True, output=False, folded=folded).double()
        for p in layer.parameters():
            nn.init.normal_(p)
        queries = torch.randn(1, 5, 16, dtype=torch.double, requires_grad=True)
        instances = torch.randn(3, 7, 16, dtype=torch.double, requires_grad=True)
        result, weights, scores = layer(queries, instances, masked())
        F.mse_loss(result, torch.ones_like(result)).backward()
        gradients.append([result, weights, scores, queries.grad, instances.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("heads, width", [(1, 16), (1, 24), (1, 17), (2, 64), (4, 16)])
def test_streaming_gives_the_values_and_gradients_of_the_attention_with_its_map(folded, heads, width):
    layer, last = CrossAttention(16, heads=heads, bias=True, output=True, folded=folded).double(), nn.Linear(width, 16).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    queries = torch.randn(1, 5, 16, dtype=torch.double, requires_grad=True)
    raw = torch.randn(3, 7, width, dtype=torch.double, requires_grad=True)
    learned = [queries, raw, *last.parameters(), *(p for name, p in layer.named_parameters() if name != "key.bias")]
    whole = layer(queries, last(raw), masked())[0]
    streamed = layer.stream(queries, raw, masked(), last=last)
    torch.testing.assert_close(streamed, whole)
    for one, other in zip(*(torch.autograd.grad(x.square().sum(), learned) for x in (whole, streamed)), strict=True):
        torch.testing.assert_close(one, other)


def test_streaming_over_nothing_is_finite_and_can_be_discarded():
    layer, instances = CrossAttention(8, bias=True, output=False), torch.randn(2, 5, 8, requires_grad=True)
    mask = torch.tensor([[True] * 5, [False] * 5])
    result = layer.stream(torch.randn(1, 3, 8), instances, mask)
    assert torch.isfinite(result).all()
    result[0].sum().backward()
    assert (instances.grad[1] == 0).all()


@pytest.mark.parametrize("heads, queries, width", [(1, 5, 16), (1, 20, 64), (1, 40, 64), (4, 4, 16), (4, 40, 16), (4, 40, 64)])
def test_streaming_takes_the_cheaper_form(heads, queries, width):
    d, n = 16, 10_000
    counts = []
    for folded in (True, False):
        layer, last = CrossAttention(d, heads=heads, bias=False, output=False, folded=folded), nn.Linear(width, d)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer.stream(torch.randn(1, queries, d), torch.randn(1, n, width), last=last)
        counts.append(counter.get_total_flops() / (2 * n))
    looks = heads * queries
    plain, folded = width * d + 2 * d * d + 2 * queries * d, width * d + 2 * looks * d
    assert counts[1] == pytest.approx(plain, rel=0.02)
    assert counts[0] == pytest.approx(min(plain, folded, 2 * looks * width), rel=0.02)
