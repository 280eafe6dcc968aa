"""The settings of one training run, and what follows from them: optimiser, learning rate, order of patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import nn

from pipeline.errors import InputError, nearest
from pipeline.training.optimizers import Optimizer

# Padded patches of a pass at most, which bound its memory (a pass of one longer bag apart), and what a pass costs beside them, in patches:
# on a CPU some milliseconds of calls, on a GPU a launch of kernels that work on thousands at a time (our choice). On a CPU a block of 8,000
# patches of 1024 numbers is below the 32 MB from which glibc maps memory anew each time.
PATCHES_PASS = {"cpu": 8_000, "cuda": 131_072}
PASS_COST = {"cpu": 512, "cuda": 32_768}


@dataclass(frozen=True)
class Protocol:
    """One training run. Sources of a method's values stand in its ``config/models/<model>.yaml``; these are the fallbacks.

    batch_size: patients an optimiser step; a step is cut into passes of like bags of at most `max_patches_pass` padded patches (by
    default `PATCHES_PASS` of the device), except under the Cox loss and for a model that needs its step whole.
    selection: `last` epoch; `inner` = lowest loss on `inner_share` of the training fold, stop after `patience` epochs without
    a better one (by more than `min_improvement`), not before `min_epochs`; `best_val` = highest C-index on the test fold (the papers'
    habit, optimistic).
    max_patches_train: a new sample of that many patches every epoch; max_patches_eval: one that depends on the patient alone.
    schedule: `none`; `cosine_warmup`; `linear` (constant for `constant_epochs`, then down to nearly 0, per epoch); `polynomial`
    ((1 − epoch/epochs)^decay_power, per epoch); `plateau` (× `plateau_factor` after `plateau_patience` epochs without a lower loss on
    the inner split, or on the training side where there is none).
    """

    loss: str = "nll"
    alpha: float = 0.0
    optimizer: str = "adam"
    lr: float = 2e-4
    weight_decay: float = 1e-5
    batch_size: int = 32
    epochs: int = 20
    sampler: str = "balanced"
    schedule: str = "none"
    warmup_epochs: float = 1
    constant_epochs: int = 0
    decay_power: float = 0.9
    plateau_factor: float = 0.5
    plateau_patience: int = 15
    max_patches_train: int | None = None
    max_patches_eval: int | None = None
    max_patches_pass: int | None = None
    l1_lambda: float = 0.0
    l1_scope: str = "all"
    l1_per_sample: bool = False
    carry_remainder: bool = False
    modality_dropout: float = 0.0
    selection: str = "last"
    bins_from: str = "train"
    inner_share: float = 0.2
    patience: int = 10
    min_epochs: int = 0
    min_improvement: float = 0.0
    checkpoint_seconds: float = 2.0
    amp: bool = True

    @classmethod
    def of(cls, settings: Mapping[str, Any], file: str = "training") -> Protocol:
        """From a configuration block; raises `InputError` for a key that does not exist and for a loss that is always zero."""
        known = [f.name for f in fields(cls)]
        for key in settings:
            if key not in known:
                raise InputError(
                    f"unknown key 'training.{key}'", file=file, expected="one of " + ", ".join(known), remedy=nearest(key, known)
                )
        protocol = cls(**settings)
        if protocol.loss == "cox" and protocol.epochs and protocol.batch_size < 2:
            problem, remedy = (
                "the Cox loss compares the patients of a step, and there is one",
                "Raise training.batch_size, or set loss: nll.",
            )
            raise InputError(problem, file=file, found="batch_size 1", expected="2 or more", remedy=remedy)
        return protocol

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimiser of all parameters that can be trained."""
        return Optimizer(self.optimizer, model.parameters(), self.lr, self.weight_decay)

    def learning_rate(self, epoch: int, step: int, steps: int, watched: Sequence[float]) -> float:
        """The rate of optimiser step `step` of the `steps` of epoch `epoch` (both from 0).

        watched: the losses of the epochs before, which `plateau` looks at.
        """
        if self.schedule == "linear":
            return self.lr * (1.0 - max(0, epoch + 1 - self.constant_epochs) / (self.epochs - self.constant_epochs + 1))
        if self.schedule == "polynomial":
            return self.lr * (1.0 - epoch / self.epochs) ** self.decay_power
        if self.schedule == "plateau":
            return self.lr * self.plateau_factor ** self._plateaus(watched)
        if self.schedule == "cosine_warmup":
            return self.lr * self._cosine(epoch * steps + step, steps)
        return self.lr

    def _cosine(self, step: int, steps: int) -> float:
        """Linear warm-up over `warmup_epochs`, then a half cosine to 0."""
        warm = self.warmup_epochs * steps
        if step < warm:
            return step / warm
        progress = (step - warm) / max(1.0, self.epochs * steps - warm)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def _plateaus(self, losses: Sequence[float]) -> int:
        """How often `plateau_patience` epochs in a row had no loss lower than the best before by more than `min_improvement`."""
        best, waited, found = math.inf, 0, 0
        for loss in losses:
            waited = 0 if loss < best - self.min_improvement else waited + 1
            best = loss if waited == 0 else best
            if waited > self.plateau_patience:
                found, waited = found + 1, 0
        return found

    def draw(self, y: np.ndarray, event: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Row numbers of one epoch, as many as there are patients.

        `balanced`: with replacement, weight 1/size of the patient's class, classes = time bin × event (snn.md §4).
        `uniform`: every patient once, shuffled.
        """
        if self.sampler == "uniform":
            return rng.permutation(len(y))
        _, stratum, size = np.unique(y * 2 + event, return_inverse=True, return_counts=True)
        weight = 1.0 / size[stratum]
        return rng.choice(len(y), size=len(y), replace=True, p=weight / weight.sum())
