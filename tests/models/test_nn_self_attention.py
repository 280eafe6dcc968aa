import math

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.nn.self_attention import NystromAttention, SelfAttention, pseudo_inverse


def nystrom(width=16, heads=2, landmarks=4, **options):
    return NystromAttention(width, heads=heads, dropout=0.0, landmarks=landmarks, **options).double().eval()


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_exact_attention_is_pytorchs():
    ours, theirs = SelfAttention(16, heads=4, dropout=0.0), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.project.weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    tokens, mask = torch.randn(3, 7, 16), torch.rand(3, 7) > 0.3
    mask[:, 0] = True
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens)[0])
    torch.testing.assert_close(ours(tokens, mask), theirs(tokens, tokens, tokens, key_padding_mask=~mask)[0])


def test_sizes_are_transmils_and_survpaths():
    layer = NystromAttention(512, heads=8, dropout=0.1, landmarks=256)
    assert parameters(layer) + parameters(nn.LayerNorm(512)) == 1_050_376
    single = NystromAttention(256, heads=1, head_width=128, dropout=0.0, landmarks=256, convolution=None)
    assert parameters(single) == 256 * 384 + 128 * 256 + 256
    assert single(torch.randn(1, 9, 256)).shape == (1, 9, 256)


def written_out(layer, tokens, front, runs, norm):
    """One patient's tokens [N, 16], step by step, without a shared line; front: zero tokens before them, runs: lengths of the runs."""
    heads, d = layer.heads, 16 // layer.heads
    padded = torch.cat([torch.zeros(front, 16, dtype=tokens.dtype), tokens])
    q, k, v = (padded @ layer.project.weight[i * 16 : (i + 1) * 16].T for i in range(3))
    parts, inverses = [], []
    for h in range(heads):
        one = slice(h * d, (h + 1) * d)
        qh, kh = q[:, one] / math.sqrt(d), k[:, one]
        qm, km = (torch.stack([run.mean(0) for run in x.split(runs)]) for x in (qh, kh))
        parts.append((torch.softmax(qh @ km.T, 1), torch.softmax(qm @ km.T, 1), torch.softmax(qm @ kh.T, 1), v[:, one]))
    largest = max(a.sum(0).max() for _, a, _, _ in parts) * max(a.sum(1).max() for _, a, _, _ in parts)
    eye = torch.eye(len(runs))
    for _, a, _, _ in parts:
        z = a.T / (largest if norm == "global" else a.sum(0).max() * a.sum(1).max())
        for _ in range(6):
            z = z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z))) / 4
        inverses.append(z)
    merged, length = [], len(padded)
    for h, ((f, _, b, vh), z) in enumerate(zip(parts, inverses, strict=True)):
        taps = layer.convolution.weight[h, 0, :, 0]
        convolved = torch.stack(
            [sum((taps[j] * vh[i + j - 16] for j in range(33) if 0 <= i + j - 16 < length), torch.zeros(d)) for i in range(length)]
        )
        merged.append((f @ z) @ (b @ vh) + convolved)
    return torch.cat(merged, dim=1)[front:] @ layer.output.weight.T + layer.output.bias


@pytest.mark.parametrize("norm", ["global", "per_head"])
@pytest.mark.parametrize(
    "count, landmarks, front, runs",
    [(10, 4, 2, [3] * 4), (3, 8, 5, [1] * 8), (9, 8, 7, [2] * 8), (8, 4, 0, [2] * 4), (1, 4, 3, [1] * 4)],
)
def test_with_the_published_padding_nystrom_is_what_the_formula_says(norm, count, landmarks, front, runs):
    layer, tokens = nystrom(norm=norm, landmarks=landmarks, padding="reference"), torch.randn(1, count, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(tokens)[0], written_out(layer, tokens[0], front, runs, norm))


@pytest.mark.parametrize("count, landmarks, runs", [(10, 4, [1, 3, 3, 3]), (3, 8, [1] * 3), (9, 8, [1, 2, 2, 2, 2]), (8, 4, [2] * 4)])
def test_without_padding_the_first_run_is_shorter_and_nothing_else_is_looked_at(count, landmarks, runs):
    layer, tokens = nystrom(landmarks=landmarks), torch.randn(1, count, 16, dtype=torch.float64)
    expected = written_out(layer, tokens[0], 0, runs, "per_head")
    torch.testing.assert_close(layer(tokens)[0], expected)
    torch.testing.assert_close(layer(tokens, torch.ones(1, count, dtype=torch.bool))[0], expected)


@pytest.mark.parametrize("padding", ["exact", "reference"])
@pytest.mark.parametrize("count", [1, 3, 10, 50])
@pytest.mark.parametrize("options", [{}, {"convolution": None}, {"exact_if_short": True}])
def test_some_rows_alone_are_those_of_the_whole(padding, count, options):
    layer, tokens = nystrom(padding=padding, **options), torch.randn(2, count, 16, dtype=torch.float64)
    mask = torch.rand(2, count) > 0.3
    mask[:, 0] = True
    torch.testing.assert_close(layer(tokens, rows=1), layer(tokens)[:, :1])
    torch.testing.assert_close(layer(tokens, mask, rows=1), layer(tokens, mask)[:, :1])


def test_a_short_sequence_may_have_exact_attention_with_the_same_parameters():
    layer = nystrom(landmarks=6, exact_if_short=True, convolution=None)
    exact = SelfAttention(16, heads=2, dropout=0.0).double()
    exact.load_state_dict(layer.state_dict())
    short, long = torch.randn(2, 6, 16, dtype=torch.float64), torch.randn(2, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(short), exact(short))
    assert not torch.allclose(layer(long), exact(long))
    convolving = nystrom(landmarks=6, exact_if_short=True)
    convolving.load_state_dict(exact.state_dict(), strict=False)
    values = exact.split(exact.project(short), 3)[2]
    torch.testing.assert_close(
        convolving(short), exact.merge(exact.exact(*exact.split(exact.project(short), 3), None) + convolving.convolution(values))
    )


def test_an_unknown_padding_or_norm_is_refused():
    with pytest.raises(InputError, match="'padding'"):
        nystrom(padding="none")
    with pytest.raises(InputError, match="'norm'"):
        nystrom(norm="all")


def test_with_a_landmark_a_token_it_is_exact_attention():
    tokens, mask = 3 * torch.randn(2, 6, 16, dtype=torch.float64), torch.ones(2, 6, dtype=torch.bool)
    mask[0, 2] = mask[1, 4:] = False
    layer = nystrom(landmarks=9, iterations=40, convolution=None)  # 6 tokens, 3 of the padding
    exact = SelfAttention(16, heads=2, dropout=0.0).double()
    exact.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(tokens, mask)[mask], exact(tokens, mask)[mask], atol=1e-6, rtol=1e-5)


def test_what_a_masked_token_holds_does_not_matter():
    layer, tokens, mask = nystrom(), torch.randn(2, 10, 16, dtype=torch.float64), torch.rand(2, 10) > 0.4
    mask[:, 0] = True
    other = torch.where(mask[..., None], tokens, torch.full_like(tokens, 50.0))
    torch.testing.assert_close(layer(other, mask)[mask], layer(tokens, mask)[mask])
    assert not torch.allclose(layer(other)[mask], layer(tokens)[mask])


def test_a_patient_does_not_depend_on_his_batch_unless_the_published_norm_is_asked_for():
    tokens = torch.randn(3, 10, 16, dtype=torch.float64) * torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)[:, None, None]
    ours, published = nystrom(iterations=2), nystrom(iterations=2, norm="global")
    torch.testing.assert_close(ours(tokens)[:1], ours(tokens[:1]))
    assert not torch.allclose(published(tokens)[:1], published(tokens[:1]))


def test_the_iteration_finds_the_pseudo_inverse():
    matrix = torch.randn(2, 3, 8, 8, dtype=torch.float64).softmax(dim=-1)
    scale = matrix.sum(dim=-2).amax(dim=-1)[..., None, None]  # rows sum to 1
    torch.testing.assert_close(pseudo_inverse(matrix, 40, scale), torch.linalg.pinv(matrix), atol=1e-6, rtol=1e-6)
    assert pseudo_inverse(matrix.half(), 6, scale.amax(0, keepdim=True)).dtype == torch.float32
