import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.training.protocol import Protocol


def test_a_wrong_key_names_the_nearest_right_one():
    with pytest.raises(InputError, match=r"unknown key 'training.epoch'.*Did you mean 'epochs'\?"):
        Protocol.of({"epoch": 3})


def test_balanced_draws_give_every_class_the_same_weight():
    y = np.array([0] * 90 + [1] * 10)
    event = np.zeros(100, dtype=int)
    drawn = np.concatenate([Protocol().draw(y, event, np.random.default_rng(i)) for i in range(100)])
    assert np.mean(y[drawn] == 1) == pytest.approx(0.5, abs=0.02)


def test_uniform_draws_are_a_permutation():
    drawn = Protocol(sampler="uniform").draw(np.zeros(50), np.zeros(50), np.random.default_rng(0))
    assert sorted(drawn) == list(range(50))


def test_cosine_warmup_starts_at_zero_peaks_at_lr_and_ends_at_zero():
    protocol = Protocol(schedule="cosine_warmup", lr=1.0, epochs=5, warmup_epochs=1)
    rates = [protocol.learning_rate(step // 10, step % 10, 10, []) for step in range(51)]
    assert rates[0] == 0.0
    assert rates[10] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.5)
    assert rates[50] == pytest.approx(0.0)
    assert Protocol(lr=0.3).learning_rate(0, 7, 10, []) == 0.3


def test_linear_decay_is_constant_first_and_never_reaches_zero():
    protocol = Protocol(schedule="linear", lr=1.0, epochs=30, constant_epochs=10)
    rates = [protocol.learning_rate(epoch, 0, 5, []) for epoch in range(30)]
    assert rates[:10] == [1.0] * 10
    np.testing.assert_allclose(np.diff(rates[9:]), -1 / 21)
    assert rates[-1] == pytest.approx(1 / 21)


def test_polynomial_decay_follows_its_power():
    protocol = Protocol(schedule="polynomial", lr=2.0, epochs=4, decay_power=0.5)
    np.testing.assert_allclose([protocol.learning_rate(e, 3, 9, []) for e in range(4)], 2 * np.sqrt([1, 0.75, 0.5, 0.25]))


def test_a_plateau_halves_the_rate_as_torch_does():
    import torch

    protocol = Protocol(schedule="plateau", lr=1.0, plateau_patience=3, min_improvement=1e-3)
    losses = [*np.linspace(1, 0.5, 5), *[0.4999] * 9, 0.3, *[0.31] * 5]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3, threshold=1e-3, threshold_mode="abs")
    for epoch, loss in enumerate(losses):
        peer.step(loss)
        assert protocol.learning_rate(epoch + 1, 0, 1, losses[: epoch + 1]) == optimizer.param_groups[0]["lr"]
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_a_cox_loss_of_one_patient_a_step_would_learn_nothing_and_is_refused():
    with pytest.raises(InputError) as error:
        Protocol.of({"loss": "cox", "batch_size": 1}, "config/models/mlp.yaml")
    assert str(error.value) == (
        "config/models/mlp.yaml: the Cox loss compares the patients of a step, and there is one; found 'batch_size 1', expected 2 or more. "
        "Raise training.batch_size, or set loss: nll."
    )
    assert Protocol.of({"loss": "cox", "batch_size": 1, "epochs": 0}).loss == "cox"
