"""The training loop: any model, any protocol, resumable after every epoch to the bit-identical result."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cohort.loader import CohortData
from pipeline.cohort.passes import cut_passes, whole_passes
from pipeline.cohort.record import Labels, Patient
from pipeline.errors import InputError
from pipeline.evaluation.concordance import harrell
from pipeline.models.interface import SurvivalModel, Target
from pipeline.nn.hazards import risk_score
from pipeline.seeds import seed_from
from pipeline.stopping import STATUS, deferred
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.losses import cox_partial, discrete_nll, l1_penalty
from pipeline.training.protocol import PASS_COST, PATCHES_PASS, Protocol

log = logging.getLogger(__name__)


class NonFiniteLossError(InputError):
    """Training diverged; the fold is listed as failed."""


class StopAskedError(Exception):
    """SIGTERM has come, and a step has ended."""


class Trainer:
    """One model, one fold. `fit` trains; `predict` gives the logits of any patients."""

    def __init__(self, model: SurvivalModel, data: CohortData, protocol: Protocol, seed: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.data, self.protocol, self.seed = model.to(self.device), data, protocol, seed
        self.optimizer = protocol.make_optimizer(model) if protocol.epochs else None  # without epochs the model fits itself
        self.whole_step = model.whole_step or protocol.loss == "cox"  # its patients are compared with each other
        self.stage = 0
        self.stop_asked: Callable[[], bool] = lambda: False
        self.amp = protocol.amp and self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    def fit(self, train: Labels, inner: Labels | None, test: Labels, checkpoint: Path, key: str) -> list[dict[str, float]]:
        """Train all epochs; returns the history, one row an epoch, and leaves the selected weights in the model.

        `inner` decides under selection `inner`; `test` is scored for the history and decides only under `best_val`. A model with several
        `stages` is trained in one after the other, each for at most `epochs` epochs and from the weights selected in the one before.
        Raises `NonFiniteLossError`.
        """
        history: list[dict[str, float]] = []
        best: dict[str, Any] = {}
        begun: dict[str, Any] = {}  # how far the epoch is at which SIGTERM came
        state = load_checkpoint(checkpoint, key)
        if state:
            self._restore(state)
            history, best, begun = state["history"], state["best"], state["begun"]
            log.info("resumed after epoch %d%s", len(history), f" and step {begun['step']} of the next" if begun else "")
        else:
            torch.manual_seed(seed_from(self.seed, "prepare"))
            self.model.prepare(self._batches(train))
            if not self.protocol.epochs:  # the model has fitted itself
                history.append({"epoch": 0} | self._score(inner, "inner") | self._score(test, "test"))

        def keep() -> None:
            save_checkpoint(checkpoint, {**self._state(), "history": history, "best": best, "begun": begun, "stage": self.stage}, key)

        def stop() -> None:
            keep()
            log.info("told to stop after epoch %d and %d steps of the next: the state is kept", len(history), begun.get("step", 0))
            sys.exit(STATUS)

        saved = time.monotonic()
        say = progress(self.protocol.epochs * len(self.model.stages))
        for stage in range(state["stage"] if state else 0, len(self.model.stages)):
            self._enter(stage)
            past = [row for row in history if row.get("stage") == stage]
            while len(past) < self.protocol.epochs and not self._stopped(past, best):
                with deferred() as self.stop_asked:  # and that a second one cannot break the writing off
                    try:
                        row = {"epoch": len(history) + 1, "stage": stage, "train_loss": self._epoch(len(history), past, train, begun)}
                        row |= self._score(inner, "inner") | self._score(test, "test")
                    except StopAskedError:
                        stop()
                    begun = {}
                    history.append(row)
                    past.append(row)
                    best = self._better(row, best)
                    say(row)
                    if self.stop_asked():  # it came after the last step
                        stop()
                if time.monotonic() - saved >= self.protocol.checkpoint_seconds and len(past) < self.protocol.epochs:
                    keep()
                    saved = time.monotonic()
            if best:
                self.model.load_state_dict(best["weights"])
            best = {}
        return history

    @torch.no_grad()
    def predict(self, patients: Sequence[str]) -> Tensor:
        """Logits [P, bins] on the CPU, float32, in eval mode; all patches, or the protocol's sample of them.

        Where a model draws random numbers even here, they are the same ones every time.
        """
        parts, order = [], []
        for output, rows in self._evaluated(patients):
            parts.append(output.logits.float().cpu())
            order.append(rows)
        return torch.cat(parts)[np.argsort(np.concatenate(order))]

    def _evaluated(self, patients: Sequence[str], whole: bool = False) -> Iterator[tuple[Any, np.ndarray]]:
        """The output of each pass over `patients` in eval mode, and which of them it holds; `whole`: see `_passes`."""
        limit = self.protocol.max_patches_eval
        self.model.eval()
        torch.manual_seed(seed_from(self.seed, "predict"))
        for rows in self._passes(patients, limit, whole):
            if self.stop_asked():
                raise StopAskedError
            yield self._forward(self.data.batch([patients[i] for i in rows], limit).to(self.device)), rows

    # --- one epoch ---

    def _enter(self, stage: int) -> None:
        self.stage = stage
        self.model.enter(self.model.stages[stage])

    def _epoch(self, epoch: int, past: Sequence[dict[str, float]], train: Labels, begun: dict[str, Any]) -> float:
        """One pass over the drawn patients; the mean loss a patient. `past`: the history of the stage.

        `begun` says how far the epoch is, and is taken up: the steps done, their loss and, where it was left, the random states.
        """
        p, steps = self.protocol, -(-len(train.patients) // self.protocol.batch_size)
        watched = [row.get("inner_loss", row["train_loss"]) for row in past]
        seed = seed_from(self.seed, "epoch", epoch)
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.model.train()
        drawn = train.take(p.draw(train.y, train.event, rng))
        total = begun.get("total", 0.0)
        if "random" in begun:
            _restore_random(begun["random"], rng)
        for step in range(begun.setdefault("step", 0), steps):
            if self.stop_asked():
                begun["random"] = _random(rng)
                raise StopAskedError
            rows = np.arange(step * p.batch_size, min((step + 1) * p.batch_size, len(drawn.patients)))
            carried = p.carry_remainder and len(rows) < p.batch_size
            total += self._accumulate(drawn.take(rows), p.batch_size if p.carry_remainder else len(rows), rng)
            if not carried:
                self.optimizer.lr = p.learning_rate(len(past), step, steps, watched)
                self.optimizer.step()
                self.optimizer.zero_grad()
            begun |= {"step": step + 1, "total": total}
        if not np.isfinite(total):
            raise NonFiniteLossError(
                f"the loss became {total} in epoch {epoch + 1}", remedy="Lower training.lr or look for extreme input values."
            )
        return total / len(drawn.patients)

    def _accumulate(self, batch: Labels, divisor: int, rng: np.random.Generator) -> float:
        """Backward passes of one optimiser step; returns the summed loss of its patients."""
        p, total = self.protocol, 0.0
        for rows in self._passes(batch.patients, p.max_patches_train, self.whole_step):
            part = batch.take(rows)
            record = self._drop_modalities(self.data.batch(part.patients, p.max_patches_train, rng)).to(self.device)
            output = self._forward(record)
            auxiliary = [*output.losses.values(), *self.model.supervised(output, self._target(part)).values()]
            summed = self._loss(output.logits, part).sum() + len(rows) * sum(auxiliary, torch.zeros((), device=self.device))
            loss = summed / divisor
            if p.l1_lambda:
                loss = loss + p.l1_lambda * l1_penalty(self.model, p.l1_scope) * (len(rows) if p.l1_per_sample else len(rows) / divisor)
            loss.backward()
            total += float(summed.detach())
        return total

    def _loss(self, logits: Tensor, labels: Labels) -> Tensor:
        """The likelihood's loss of the patients of one pass [B]; Cox's, which is of all of them together, once for each."""
        event, logits = torch.from_numpy(labels.event.astype(bool)).to(self.device), logits.float()
        if self.protocol.loss == "cox":
            return cox_partial(logits[:, 0], torch.from_numpy(labels.time).to(self.device), event).expand(len(labels.patients))
        return discrete_nll(logits, torch.from_numpy(labels.y).to(self.device), event, self.protocol.alpha)

    def _target(self, labels: Labels) -> Target:
        """The labels of one pass for the model's own losses."""
        event = torch.from_numpy(labels.event.astype(bool)).to(self.device)
        return Target(torch.from_numpy(labels.y).to(self.device), event, lambda logits: self._loss(logits, labels))

    def _forward(self, record: Patient) -> Any:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return self.model(record)

    def _drop_modalities(self, record: Patient) -> Patient:
        """Training-time dropout of whole modalities, each with probability p, never a patient's last one."""
        p = self.protocol.modality_dropout
        if p:
            left = sum(flags.int() for flags in record.present.values())
            for modality in sorted(record.present):
                drop = record.has(modality) & (torch.rand(record.size) < p) & (left > 1)
                record, left = record.without(modality, drop), left - drop.int()
        return record

    def _passes(self, patients: Sequence[str], sampled: int | None, whole: bool = False) -> list[np.ndarray]:
        """Row numbers of each pass over `patients`, see `cut_passes`; `whole`: `batch_size` of them each, in their order, as far as
        `max_patches_pass` allows where a method states it.
        """
        size, most, lengths = self.protocol.batch_size, self.protocol.max_patches_pass, self.data.lengths(patients, sampled)
        if whole:
            return whole_passes(lengths, size, most)
        return cut_passes(lengths, size, most or PATCHES_PASS[self.device.type], PASS_COST[self.device.type])

    def _batches(self, labels: Labels) -> Iterator[tuple[Patient, Labels]]:
        for rows in self._passes(labels.patients, None):
            part = labels.take(rows)
            yield self.data.batch(part.patients).to(self.device), part

    # --- selection ---

    def _score(self, labels: Labels | None, name: str) -> dict[str, float]:
        """Loss and C-index of one side, by name; empty where there is no such side."""
        if labels is None or not labels.patients:
            return {}
        logits = self.predict(labels.patients)
        row = {f"{name}_c_index": harrell(labels.time, labels.event, risk_score(logits).numpy()).value}
        if name == "inner":
            row["inner_loss"] = self._inner_loss(logits, labels)
        return row

    @torch.no_grad()
    def _inner_loss(self, logits: Tensor, labels: Labels) -> float:
        """What decides on the inner split: the likelihood, or in an earlier stage of a model what that stage fits."""
        if self.stage == len(self.model.stages) - 1:
            return float(self._loss(logits.to(self.device), labels).mean())
        total = 0.0
        for output, rows in self._evaluated(labels.patients, self.whole_step):
            total += len(rows) * float(self.model.watched(output, self._target(labels.take(rows))))
        return total / len(labels.patients)

    def _better(self, row: dict[str, float], best: dict[str, Any]) -> dict[str, Any]:
        """The best epoch so far with its weights; stays empty under selection `last`.

        `best_val` chooses among the epochs of the last stage; before it nothing predicts, and a C-index would choose by chance.
        """
        predicting = self.stage == len(self.model.stages) - 1
        of_test = row.get("test_c_index", np.nan) if predicting else None
        score = {"last": None, "inner": -row.get("inner_loss", np.nan), "best_val": of_test}[self.protocol.selection]
        least = self.protocol.min_improvement if self.protocol.selection == "inner" else 0.0
        if score is None or np.isnan(score) or (best and score <= best["score"] + least):
            return best
        return {"score": score, "epoch": row["epoch"], "weights": {k: v.detach().clone() for k, v in self.model.state_dict().items()}}

    def _stopped(self, past: list[dict[str, float]], best: dict[str, Any]) -> bool:
        if self.protocol.selection != "inner" or not best or len(past) < self.protocol.min_epochs:
            return False
        return past[-1]["epoch"] - best["epoch"] >= self.protocol.patience

    # --- state ---

    def _state(self) -> dict[str, Any]:
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}  # carried remainder
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "gradients": gradients}

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, parameter in self.model.named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(self.device)


def _random(rng: np.random.Generator) -> dict[str, Any]:
    """The states of all generators that a step draws from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"numpy": rng.bit_generator.state, "torch": torch.get_rng_state(), "cuda": cuda}


def _restore_random(states: dict[str, Any], rng: np.random.Generator) -> None:
    rng.bit_generator.state = states["numpy"]
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def progress(epochs: int) -> Callable[[dict[str, float]], None]:
    """Says the loss of about every tenth of the epochs in the log."""
    every = max(1, epochs // 10)

    def line(row: dict[str, float]) -> None:
        if row["epoch"] % every == 0 or row["epoch"] == epochs:
            log.info("epoch %d/%d  loss %.4f", row["epoch"], epochs, row["train_loss"])

    return line
