import pytest
import torch
from torch import nn

from pipeline.nn.dropout import Dropout, alpha_dropout, kept

MANY = 400_003  # not a multiple of the four elements of a draw


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_the_mask_has_the_asked_share_and_no_pattern(probability):
    mask = kept(torch.empty(MANY), probability)
    assert mask.shape == (MANY,)
    for lane in range(4):  # the four elements of a draw
        assert float(mask[lane::4].float().mean()) == pytest.approx(1 - probability, abs=0.006)
    together = (mask[1:] & mask[:-1]).float().mean()
    assert float(together) == pytest.approx((1 - probability) ** 2, abs=0.006)


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5])
def test_alpha_dropout_gives_the_two_values_of_torchs_own(probability):
    x = torch.full((10_000,), 0.7)
    ours, theirs = (f.unique() for f in (alpha_dropout(x, probability), nn.AlphaDropout(probability)(x)))
    torch.testing.assert_close(ours, theirs)


def test_alpha_dropout_keeps_mean_and_variance_of_a_standard_normal():
    dropped = alpha_dropout(torch.randn(MANY), 0.25)
    assert float(dropped.mean()) == pytest.approx(0, abs=0.01)
    assert float(dropped.var()) == pytest.approx(1, abs=0.01)


def test_dropout_scales_what_it_keeps_in_value_and_gradient():
    x = torch.randn(1000, requires_grad=True)
    y = Dropout(0.2)(x)
    y.sum().backward()
    alive = y != 0
    torch.testing.assert_close(y[alive], x[alive] / 0.8)
    torch.testing.assert_close(x.grad, alive.float() / 0.8)


def test_nothing_is_dropped_in_evaluation_and_the_seed_decides_in_training():
    layer, x = Dropout(0.5), torch.randn(50, 3)
    assert torch.equal(layer.eval()(x), x)
    layer.train()
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_of_the_input_is_kept(dtype):
    x = torch.randn(8, dtype=dtype)
    assert Dropout(0.5)(x).dtype == alpha_dropout(x, 0.5).dtype == dtype
