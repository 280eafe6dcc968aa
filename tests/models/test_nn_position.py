import pytest
import torch

from pipeline.nn.position import EPEG, PPEG, fill_square


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_sizes_are_transmils_and_adamhfs():
    assert parameters(PPEG(512)) == 44_032
    assert parameters(PPEG(256)) == 22_016
    assert parameters(EPEG(256)) == 4_096


def test_ppeg_is_the_sum_of_three_convolutions_and_the_picture():
    layer, tokens = PPEG(4).double(), torch.randn(2, 26, 4, dtype=torch.float64)
    picture = tokens[:, 1:].transpose(1, 2).reshape(2, 4, 5, 5)
    expected = picture + sum(convolve(picture) for convolve in layer.filters)
    torch.testing.assert_close(layer(tokens)[:, 1:].transpose(1, 2).reshape(2, 4, 5, 5), expected)


def test_ppeg_convolves_the_picture_and_leaves_the_first_token():
    layer, tokens = PPEG(4), torch.randn(2, 10, 4)
    out = layer(tokens)
    assert torch.equal(out[:, 0], tokens[:, 0])
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


@pytest.mark.parametrize("residual", [True, False])
def test_epeg_convolves_along_a_column_of_the_grid(residual):
    layer, tokens = EPEG(4, kernel=3, residual=residual), torch.randn(1, 10, 4)
    taps = layer.filter.weight[:, 0, :, 0]  # [4, 3]
    expected = layer.filter.bias + sum(taps[:, i] * tokens[0, 1 + 3 * i + 1] for i in range(3))  # the middle one: tokens 1, 4, 7 of 9
    out = layer(tokens)
    torch.testing.assert_close(out[0, 5], expected + residual * tokens[0, 5])
    assert torch.equal(out[:, 0], tokens[:, 0])


@pytest.mark.parametrize("layer", [PPEG(4), EPEG(4)], ids=["ppeg", "epeg"])
def test_one_token_is_a_grid(layer):
    assert layer(torch.randn(3, 2, 4)).shape == (3, 2, 4)


@pytest.mark.parametrize("count, filled", [(1, [0]), (2, [0, 1, 0, 1]), (4, [0, 1, 2, 3]), (6, [0, 1, 2, 3, 4, 5, 0, 1, 2])])
def test_a_square_is_filled_with_the_first_tokens(count, filled):
    assert fill_square(torch.arange(count)[None])[0].tolist() == filled


def test_every_number_of_tokens_becomes_the_next_square():
    assert [fill_square(torch.zeros(1, n, 1)).shape[1] for n in (3, 5, 9, 10, 2048)] == [4, 9, 9, 16, 2116]
