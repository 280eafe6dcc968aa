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
    rates = [protocol.learning_rate(step, 10) for step in range(51)]
    assert rates[0] == 0.0
    assert rates[10] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.5)
    assert rates[50] == pytest.approx(0.0)
    assert Protocol(lr=0.3).learning_rate(7, 10) == 0.3


def test_a_cox_loss_of_one_patient_a_step_would_learn_nothing_and_is_refused():
    with pytest.raises(InputError) as error:
        Protocol.of({"loss": "cox", "batch_size": 1}, "config/models/mlp.yaml")
    assert str(error.value) == (
        "config/models/mlp.yaml: the Cox loss compares the patients of a step, and there is one; found 'batch_size 1', expected 2 or more. "
        "Raise training.batch_size, or set loss: nll."
    )
    assert Protocol.of({"loss": "cox", "batch_size": 1, "epochs": 0}).loss == "cox"
