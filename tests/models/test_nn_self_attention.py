import math

import pytest
import torch
from torch import nn

from pipeline.nn.self_attention import NystromAttention, PositionEncoding, SelfAttention, fill_square, pseudo_inverse


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
    assert parameters(PositionEncoding(512)) == 44_032
    single = NystromAttention(256, heads=1, head_width=128, dropout=0.0, landmarks=256, convolution=None)
    assert parameters(single) == 256 * 384 + 128 * 256 + 256
    assert single(torch.randn(1, 9, 256)).shape == (1, 9, 256)


@pytest.mark.parametrize("norm", ["global", "per_head"])
def test_nystrom_is_what_the_formula_says(norm):
    """Written out step by step, without a shared line."""
    layer, tokens = nystrom(norm=norm), torch.randn(1, 10, 16, dtype=torch.float64)
    m, heads, d = 4, 2, 8
    padded = torch.cat([torch.zeros(2, 16, dtype=torch.float64), tokens[0]])  # 12 = 4 × 3
    q, k, v = (padded @ layer.project.weight[i * 16 : (i + 1) * 16].T for i in range(3))
    parts, inverses = [], []
    for h in range(heads):
        one = slice(h * d, (h + 1) * d)
        qh, kh = q[:, one] / math.sqrt(d), k[:, one]
        qm, km = (torch.stack([x[3 * i : 3 * i + 3].mean(0) for i in range(m)]) for x in (qh, kh))
        parts.append((torch.softmax(qh @ km.T, 1), torch.softmax(qm @ km.T, 1), torch.softmax(qm @ kh.T, 1), v[:, one]))
    largest = max(a.sum(0).max() for _, a, _, _ in parts) * max(a.sum(1).max() for _, a, _, _ in parts)
    for _, a, _, _ in parts:
        z = a.T / (largest if norm == "global" else a.sum(0).max() * a.sum(1).max())
        for _ in range(6):
            z = z @ (13 * torch.eye(m) - a @ z @ (15 * torch.eye(m) - a @ z @ (7 * torch.eye(m) - a @ z))) / 4
        inverses.append(z)
    merged = []
    for h, ((f, _, b, vh), z) in enumerate(zip(parts, inverses, strict=True)):
        filters = layer.convolution.weight[h, 0, :, 0]
        convolved = torch.stack(
            [sum((filters[j] * vh[i + j - 16] for j in range(33) if 0 <= i + j - 16 < 12), torch.zeros(d)) for i in range(12)]
        )
        merged.append(f @ z @ (b @ vh) + convolved)
    expected = torch.cat(merged, dim=1)[2:] @ layer.output.weight.T + layer.output.bias
    torch.testing.assert_close(layer(tokens)[0], expected)


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
    torch.testing.assert_close(pseudo_inverse(matrix, 40, "per_head"), torch.linalg.pinv(matrix), atol=1e-6, rtol=1e-6)
    assert pseudo_inverse(matrix.half(), 6, "global").dtype == torch.float32


def test_position_encoding_convolves_the_picture_and_leaves_the_first_token():
    layer, tokens = PositionEncoding(4), torch.randn(2, 10, 4)
    out = layer(tokens)
    torch.testing.assert_close(out[:, 0], tokens[:, 0])
    moved = tokens.clone()
    moved[0, 1] += 1.0  # the upper left corner
    torch.testing.assert_close(layer(moved)[1], out[1])
    assert (layer(moved)[0, 1:] - out[0, 1:]).abs().amin() > 0  # kernels of 7 reach all of a 3 × 3 picture
    expected = tokens[0, 5] + sum(f.bias for f in layer.filters)  # the middle one
    for f, half in zip(layer.filters, (3, 2, 1), strict=True):
        for i in range(9):
            dy, dx = i // 3 - 1, i % 3 - 1
            expected = expected + f.weight[:, 0, half + dy, half + dx] * tokens[0, 1 + i]
    torch.testing.assert_close(out[0, 5], expected)


@pytest.mark.parametrize("count, filled", [(1, [0]), (2, [0, 1, 0, 1]), (4, [0, 1, 2, 3]), (6, [0, 1, 2, 3, 4, 5, 0, 1, 2])])
def test_a_square_is_filled_with_the_first_tokens(count, filled):
    assert fill_square(torch.arange(count)[None])[0].tolist() == filled
