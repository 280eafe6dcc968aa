"""What models share that are fitted in one go (`SurvivalModel.prepare`) and not by gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.cohort.record import Labels, Patient
from pipeline.errors import InputError


def gather(training: Iterable[tuple[Patient, Labels]], read: Callable[[Patient], Tensor]) -> tuple[np.ndarray, Labels]:
    """The training side as one matrix [n, D] float32 (`read` of each batch) with its labels, sorted by patient id.

    The order makes what is fitted independent of the order of any table. Raises `InputError` when there is no patient.
    """
    batches = [(read(patient).detach().cpu().numpy(), labels) for patient, labels in training]
    if not batches:
        raise InputError("no patient to fit the model on", expected="at least one training patient with a table that the model reads")
    parts = [labels for _, labels in batches]
    ids = [patient for labels in parts for patient in labels.patients]
    time, event, y = (np.concatenate([getattr(labels, name) for labels in parts]) for name in ("time", "event", "y"))
    order = np.argsort(ids, kind="stable")
    everyone = replace(parts[0], patients=ids, time=time, event=event, y=y)
    return np.concatenate([x for x, _ in batches])[order], everyone.take(order)


def is_binary(labels: Labels) -> bool:
    """Whether these are labels of a binary endpoint: one bin, and the same time (its window) for everybody."""
    return len(labels.edges) <= 2 and np.ptp(labels.time) == 0


def require_survival(labels: Labels, reader: str) -> None:
    """Raise `InputError` naming the model when the endpoint is binary."""
    if is_binary(labels):
        raise InputError(
            f"{reader} predicts survival times, and the endpoint is binary",
            found="one time for all patients",
            expected="follow-up times",
            remedy="Use logistic, forest or tabular_mlp, or choose a survival endpoint.",
        )


def require_binary(labels: Labels, reader: str) -> None:
    """Raise `InputError` naming the model when the endpoint is not binary, or when all patients have the same label."""
    if not is_binary(labels):
        raise InputError(
            f"{reader} predicts a binary label, and the endpoint is survival",
            found=f"{max(1, len(labels.edges) - 1)} time bins",
            expected="a binary endpoint",
            remedy="Use coxnet, rsf or tabular_mlp, or choose a binary endpoint.",
        )
    if len(np.unique(labels.event)) < 2:
        raise InputError(
            f"{reader} cannot be fitted: all training patients have the same label",
            found=f"{len(labels.event)} patients with label {int(labels.event[0])}",
            expected="both labels",
        )


def drawn_seed() -> int:
    """A seed for a library that has its own generator, drawn from torch's, which the fold has seeded."""
    return int(torch.randint(2**31 - 1, ()))
