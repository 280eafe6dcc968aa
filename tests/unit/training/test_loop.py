"""The loop on a small made cohort: what it learns, what it must not learn, and that a kill changes nothing."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.cohort.bins import TimeBins
from pipeline.cohort.loader import BagStore, CohortData
from pipeline.cohort.record import Labels
from pipeline.evaluation.concordance import harrell
from pipeline.models import build_model
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.nn.hazards import risk_score
from pipeline.training.loop import NonFiniteLossError, Trainer
from pipeline.training.protocol import Protocol

PATIENTS, GENES = 120, 20
PROTOCOL = Protocol(epochs=12, batch_size=16, lr=2e-3, checkpoint_seconds=0.0)


@pytest.fixture
def cohort():
    rng = np.random.default_rng(0)
    genes = rng.standard_normal((PATIENTS, GENES)).astype(np.float32)
    ids = [f"p{i:03d}" for i in range(PATIENTS)]
    bags = {p: [rng.standard_normal((5 + i % 7, 6)).astype(np.float16)] for i, p in enumerate(ids)}
    data = CohortData(vectors={"omics": ({p: i for i, p in enumerate(ids)}, genes)}, bags={"wsi": BagStore(6, bags)})
    time = rng.exponential(np.exp(-1.5 * genes[:, 0])) * 20 + 0.1
    event = (rng.random(PATIENTS) < 0.7).astype(int)
    return ids, data, time, event


def sides(cohort, permute: bool = False):
    ids, data, time, event = cohort
    if permute:
        order = np.random.default_rng(1).permutation(80)
        time, event = np.concatenate([time[:80][order], time[80:]]), np.concatenate([event[:80][order], event[80:]])
    bins = TimeBins.fit(time[:80], event[:80], 4)
    labels = Labels(ids, time, event, bins.assign(time))
    return data, labels.take(np.arange(80)), labels.take(np.arange(80, PATIENTS))


def snn(seed: int = 0):
    torch.manual_seed(seed)
    return build_model("snn", Inputs(vectors={"omics": GENES}), hidden=[32, 32])


def run(cohort, path, protocol=PROTOCOL, permute=False, inner=None):
    data, train, test = sides(cohort, permute)
    trainer = Trainer(snn(), data, protocol, seed=3)
    history = trainer.fit(train, inner, test, path, "key")
    return trainer, history, test


def test_it_recovers_a_planted_signal_and_finds_none_in_permuted_labels(cohort, tmp_path):
    for permute, low, high in ((False, 0.70, 1.0), (True, 0.35, 0.65)):
        trainer, _, test = run(cohort, tmp_path / f"{permute}.pt", replace(PROTOCOL, epochs=40, lr=5e-3), permute=permute)
        value = harrell(test.time, test.event, risk_score(trainer.predict(test.patients)).numpy()).value
        assert low < value < high


def test_training_twice_gives_the_same_bits(cohort, tmp_path):
    first, again = (run(cohort, tmp_path / name)[0] for name in ("a.pt", "b.pt"))
    for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class KilledError(Exception):
    """Stands for SIGKILL between two epochs."""


@pytest.mark.parametrize(
    "protocol", [PROTOCOL, replace(PROTOCOL, carry_remainder=True, batch_size=32), replace(PROTOCOL, selection="best_val")]
)
@pytest.mark.parametrize("after", [1, 7])
def test_a_killed_run_resumes_to_the_same_bits(cohort, tmp_path, monkeypatch, protocol, after):
    whole, history, _ = run(cohort, tmp_path / "whole.pt", protocol)
    epoch = Trainer._epoch

    def dying(self, number, *rest):
        if number == after:
            raise KilledError
        return epoch(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", dying)
        with pytest.raises(KilledError):
            run(cohort, tmp_path / "cut.pt", protocol)
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", lambda self, number, *rest: seen.append(number) or epoch(self, number, *rest))
        resumed, resumed_history, _ = run(cohort, tmp_path / "cut.pt", protocol)
    assert seen[0] == after
    assert resumed_history == history
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("protocol", [PROTOCOL, replace(PROTOCOL, batch_size=32, carry_remainder=True, checkpoint_seconds=1e9)])
@pytest.mark.parametrize("calls", [[1], [4], [7, 3, 4], [31], [36]])  # 36: while the last epoch but five is scored
def test_sigterm_is_obeyed_at_the_next_step_and_loses_nothing(cohort, tmp_path, monkeypatch, protocol, calls):
    """`calls`: at which pass through the model the signal comes, run after run; nothing else is kept under the second protocol."""
    whole, history, _ = run(cohort, tmp_path / "whole.pt", protocol)
    forward, before = Trainer._forward, signal.getsignal(signal.SIGTERM)
    passes = 0

    def warned(self, record):
        nonlocal passes
        passes += 1
        if passes == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_forward", warned)
        for call in calls:
            passes = 0
            with pytest.raises(SystemExit, match="143"):
                run(cohort, tmp_path / "cut.pt", protocol)
            assert passes <= call + 1  # the step is ended, and no other begun
    resumed, resumed_history, _ = run(cohort, tmp_path / "cut.pt", protocol)
    assert resumed_history == history
    assert signal.getsignal(signal.SIGTERM) is before
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_spoilt_checkpoint_is_said_and_ignored(cohort, tmp_path, caplog):
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint")
    _, history, _ = run(cohort, tmp_path / "c.pt")
    assert len(history) == PROTOCOL.epochs
    assert "cannot be read" in caplog.text


def test_inner_selection_stops_early_and_never_looks_at_the_test_side(cohort, tmp_path):
    data, train, test = sides(cohort)
    fit, held = train.take(np.arange(60)), train.take(np.arange(60, 80))
    protocol = replace(PROTOCOL, selection="inner", epochs=60, patience=4, lr=1e-2)
    outcomes = []
    for scored in (test, replace(test, time=test.time[::-1].copy())):
        trainer = Trainer(snn(), data, protocol, seed=3)
        history = trainer.fit(fit, held, scored, tmp_path / f"{len(outcomes)}.pt", "key")
        assert len(history) < 60
        best = min(range(len(history)), key=lambda i: history[i]["inner_loss"])
        assert len(history) == best + 1 + protocol.patience
        outcomes.append(trainer.predict(test.patients))
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("least, length", [(0, 5), (5, 5), (9, 9), (99, 12)])
def test_training_does_not_stop_before_its_least_number_of_epochs(cohort, tmp_path, monkeypatch, least, length):
    """The first epoch is the best; without a least number, patience ends at the fifth."""
    data, train, test = sides(cohort)
    trainer = Trainer(snn(), data, replace(PROTOCOL, selection="inner", epochs=12, patience=4, min_epochs=least), seed=3)
    losses = iter(range(12))
    monkeypatch.setattr(trainer, "_inner_loss", lambda *_: float(next(losses)))
    assert len(trainer.fit(train, test, test, tmp_path / "c.pt", "key")) == length


def test_passes_of_any_size_accumulate_to_the_same_gradient(cohort):
    """Gradient accumulation over passes of few patients equals one padded batch (dropout off)."""
    data, train, _ = sides(cohort)
    torch.manual_seed(0)
    model = build_model("abmil", Inputs(bags={"wsi": 6}), dropout=0.0, attention_dropout=0.0)
    gradients = []
    for most in (10_000, 12):
        trainer = Trainer(model, data, replace(PROTOCOL, max_patches_pass=most), seed=1)
        trainer._accumulate(train.take(np.arange(16)), 16, np.random.default_rng(0))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad()
    assert torch.allclose(*gradients, atol=1e-6)


def test_modality_dropout_never_takes_the_last_one(cohort):
    data, train, _ = sides(cohort)
    trainer = Trainer(snn(), data, replace(PROTOCOL, modality_dropout=0.9), seed=1)
    record = trainer._drop_modalities(data.batch(train.patients))
    left = torch.stack(list(record.present.values())).sum(0)
    assert left.min() == 1
    assert (left == 1).float().mean() > 0.9


def test_a_diverging_loss_is_one_clear_failure(cohort, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"the loss became .* in epoch \d+.*Lower training.lr"):
        run(cohort, tmp_path / "x.pt", replace(PROTOCOL, lr=1e18))


def test_patch_sampling_is_only_for_training(cohort, tmp_path):
    data, train, _ = sides(cohort)
    model = build_model("abmil", Inputs(bags={"wsi": 6}))
    sizes = []
    model.register_forward_pre_hook(lambda module, arguments: sizes.append((module.training, arguments[0].bags["wsi"].features.shape[1])))
    trainer = Trainer(model, data, replace(PROTOCOL, epochs=1, max_patches_train=4), seed=1)
    trainer.fit(train, None, train, tmp_path / "s.pt", "key")
    assert max(n for training, n in sizes if training) == 4
    assert max(n for training, n in sizes if not training) == 11


def test_patches_of_an_evaluation_are_drawn_by_the_patient_alone(cohort):
    data, train, _ = sides(cohort)
    model = build_model("abmil", Inputs(bags={"wsi": 6}))
    trainer = Trainer(model, data, replace(PROTOCOL, max_patches_eval=4), seed=1)
    together = trainer.predict(train.patients)
    alone = torch.cat([trainer.predict([p]) for p in reversed(train.patients)]).flip(0)
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, Trainer(model, data, PROTOCOL, seed=1).predict(train.patients))


class TwoStages(SurvivalModel):
    """A vector's projection, fitted first to reproduce its first column, then frozen under a head."""

    modalities, stages = ("omics",), ("projection", "head")

    def __init__(self):
        super().__init__()
        self.projection, self.head = torch.nn.Linear(GENES, 1), torch.nn.Linear(1, 4)
        self.entered = []

    def enter(self, stage):
        self.entered.append(stage)
        self.projection.requires_grad_(stage == "projection")

    def forward(self, patient):
        x = patient.vectors["omics"]
        z = self.projection(x)
        return Output(self.head(z), auxiliary={"error": (z[:, 0] - x[:, 0]).square()})

    def supervised(self, output, target):
        return {"error": output.auxiliary["error"].mean()} if self.projection.weight.requires_grad else {}

    def watched(self, output, target):
        return output.auxiliary["error"].mean()


def test_stages_are_trained_one_after_the_other_each_to_its_own_end(cohort, tmp_path, monkeypatch):
    data, train, test = sides(cohort)
    fit, held = train.take(np.arange(60)), train.take(np.arange(60, 80))
    protocol = replace(PROTOCOL, selection="inner", epochs=25, patience=3, lr=3e-2)

    def trained(path):
        torch.manual_seed(0)
        trainer = Trainer(TwoStages(), data, protocol, seed=3)
        return trainer, trainer.fit(fit, held, test, path, "key")

    trainer, history = trained(tmp_path / "whole.pt")
    first = [row for row in history if row["stage"] == 0]
    assert trainer.model.entered == ["projection", "head"]
    assert first[0]["inner_loss"] > 5 * min(row["inner_loss"] for row in first)
    x = torch.from_numpy(data.vectors["omics"][1][60:80])
    best = (trainer.model.projection(x)[:, 0] - x[:, 0]).square().mean()
    assert float(best.detach()) == pytest.approx(min(row["inner_loss"] for row in first), rel=1e-5)  # frozen at its best epoch
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    epoch = Trainer._epoch

    def dying(self, number, *rest):
        if number == len(first) + 2:
            raise KilledError
        return epoch(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", dying)
        with pytest.raises(KilledError):
            trained(tmp_path / "cut.pt")
    again, resumed = trained(tmp_path / "cut.pt")
    assert resumed == history
    assert again.model.entered == ["head"]
    for a, b in zip(trainer.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_habit_of_the_best_test_epoch_chooses_none_in_a_stage_that_predicts_nothing(cohort, tmp_path, monkeypatch):
    data, train, test = sides(cohort)
    entered, enter = [], TwoStages.enter

    def noting(self, stage):
        entered.append({key: value.clone() for key, value in self.state_dict().items()})
        enter(self, stage)

    monkeypatch.setattr(TwoStages, "enter", noting)
    for selection in ("last", "best_val"):
        torch.manual_seed(0)
        protocol = replace(PROTOCOL, selection=selection, epochs=4, lr=3e-2)
        Trainer(TwoStages(), data, protocol, seed=3).fit(train, None, test, tmp_path / f"{selection}.pt", "key")
    _, after_last, _, after_habit = entered
    assert all(torch.equal(after_last[key], after_habit[key]) for key in after_last)


def test_a_model_with_stages_that_does_not_say_what_they_lower_is_told_so():
    with pytest.raises(TypeError, match="TwoStages has stages projection, head and must say what each lowers: override `watched`"):
        SurvivalModel.watched(TwoStages(), None, None)
