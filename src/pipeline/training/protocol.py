"""The settings of one training run, and what follows from them: optimiser, learning rate, order of patients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import InputError, nearest

OPTIMIZERS = {
    "adam": torch.optim.Adam,  # weight decay is added to the gradient (L2)
    "adamw": torch.optim.AdamW,  # decoupled
    "radam": partial(torch.optim.RAdam, decoupled_weight_decay=True),  # decoupled, as in SurvPath's code
}


@dataclass(frozen=True)
class Protocol:
    """One training run. Sources of a method's values stand in its ``config/models/<model>.yaml``; these are the fallbacks.

    batch_size: patients an optimiser step; a step is cut into passes of at most `max_patches_pass` padded patches.
    selection: `last` epoch; `inner` = lowest loss on `inner_share` of the training fold, stop after `patience` epochs without
    a better one; `best_val` = highest C-index on the test fold (the papers' habit, optimistic).
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
    max_patches_train: int | None = None
    max_patches_pass: int = 131_072
    l1_lambda: float = 0.0
    l1_scope: str = "all"
    l1_per_sample: bool = False
    carry_remainder: bool = False
    modality_dropout: float = 0.0
    selection: str = "last"
    bins_from: str = "train"
    inner_share: float = 0.2
    patience: int = 10
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

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of all parameters that can be trained."""
        return OPTIMIZERS[self.optimizer](model.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The rate of optimiser step `step` (from 0): linear warm-up over `warmup_epochs`, then a half cosine to 0."""
        if self.schedule == "none":
            return self.lr
        warm = self.warmup_epochs * steps_per_epoch
        if step < warm:
            return self.lr * step / warm
        progress = (step - warm) / max(1.0, self.epochs * steps_per_epoch - warm)
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

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
