import math

import pytest
import torch

from pipeline.training.losses import cox_partial, discrete_nll, l1_penalty


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_nll_equals_the_hand_computed_likelihood():
    logits = torch.tensor([[0.3, -1.2, 0.7, 2.0], [0.3, -1.2, 0.7, 2.0]])
    h = [sigmoid(z) for z in (0.3, -1.2, 0.7, 2.0)]
    event = -math.log((1 - h[0]) * (1 - h[1])) - math.log(h[2])
    censored = -math.log((1 - h[0]) * (1 - h[1]) * (1 - h[2]))
    loss = discrete_nll(logits, torch.tensor([2, 2]), torch.tensor([True, False]))
    assert loss.tolist() == pytest.approx([event, censored], abs=1e-6)


def test_alpha_scales_the_censored_term_alone():
    logits, y, event = torch.randn(2, 4), torch.tensor([1, 3]), torch.tensor([True, False])
    plain, half = discrete_nll(logits, y, event), discrete_nll(logits, y, event, alpha=0.5)
    assert torch.equal(plain[0], half[0])
    assert half[1] == pytest.approx(0.5 * plain[1].item())


def test_nll_stays_finite_where_a_probability_underflows():
    loss = discrete_nll(torch.tensor([[500.0, -500.0]]), torch.tensor([1]), torch.tensor([True]))
    assert loss.item() == pytest.approx(1000.0)


def test_cox_equals_the_hand_computed_partial_likelihood_with_ties():
    risk, time = torch.tensor([0.5, -0.2, 1.0, 0.0]), torch.tensor([2.0, 2.0, 5.0, 7.0])
    event = torch.tensor([True, True, True, False])
    e = [math.exp(r) for r in (0.5, -0.2, 1.0, 0.0)]
    first = math.log(sum(e))  # Breslow: both tied events see the whole risk set
    expected = ((first - 0.5) + (first + 0.2) + (math.log(e[2] + e[3]) - 1.0)) / 3
    assert cox_partial(risk, time, event).item() == pytest.approx(expected, abs=1e-6)


def test_cox_does_not_depend_on_the_order_of_patients_and_is_zero_without_events():
    risk, time, event = torch.randn(9), torch.rand(9), torch.rand(9) > 0.4
    order = torch.randperm(9)
    assert cox_partial(risk, time, event).item() == pytest.approx(cox_partial(risk[order], time[order], event[order]).item(), abs=1e-6)
    assert cox_partial(risk, time, torch.zeros(9, dtype=torch.bool)).item() == 0.0


def test_l1_counts_biases_only_when_all_are_asked_for():
    layer = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(layer.weight, -2.0)
    torch.nn.init.constant_(layer.bias, 3.0)
    assert l1_penalty(layer, "weights").item() == 4.0
    assert l1_penalty(layer, "all").item() == 7.0
