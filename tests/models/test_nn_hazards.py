import math

import pytest
import torch

from pipeline.nn.hazards import hazards, log_hazards, log_survival, risk_score, survival


def test_hazards_survival_and_risk_of_logits_worked_out_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0), -math.log(3.0)]])  # h = 1/2, 3/4, 1/4; S = 1/2, 1/8, 3/32
    torch.testing.assert_close(hazards(logits), torch.tensor([[0.5, 0.75, 0.25]]))
    torch.testing.assert_close(survival(logits), torch.tensor([[0.5, 0.125, 0.09375]]))
    torch.testing.assert_close(risk_score(logits), torch.tensor([-0.71875]))


def test_one_bin_is_a_log_risk():
    torch.testing.assert_close(risk_score(torch.tensor([[1.5], [-2.0]])), torch.tensor([1.5, -2.0]))


@pytest.mark.parametrize("size", [80.0, 1e4])
def test_extreme_logits_stay_finite_with_finite_gradients(size):
    logits = torch.tensor([[size, -size, size]], requires_grad=True)
    total = log_hazards(logits).sum() + log_survival(logits).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()
    torch.testing.assert_close(log_hazards(logits.detach())[0, 1], torch.tensor(-size))


def test_hazards_lie_in_the_unit_interval_and_survival_never_rises():
    logits = torch.randn(50, 4) * 3
    assert ((hazards(logits) > 0) & (hazards(logits) < 1)).all()
    assert (survival(logits).diff(dim=1) <= 0).all()
    torch.testing.assert_close(log_survival(logits), torch.log(torch.cumprod(1 - hazards(logits.double()), 1)).float())
