"""What every model takes and gives: `Inputs`, `Patient` in, `Output` out, and the base class `SurvivalModel`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.cohort.record import Labels, Patient
from pipeline.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """What a cohort offers.

    bags: modality → feature width d, e.g. ``{"wsi": 1024}``.
    vectors: modality → length, e.g. ``{"omics": 3062}``.
    groups: grouping → group sizes n_g, e.g. ``{"families": (94, 334, …)}``; groups belong to the modality ``omics``.
    bins: number of time intervals; 1 = a single log-risk (Cox).
    """

    bags: Mapping[str, int] = field(default_factory=dict)
    vectors: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bins: int = 4

    def bag(self, modality: str, reader: str) -> int:
        """Feature width of a bag; `InputError` naming the model `reader` when the cohort has no such bag."""
        return _offered(self.bags, modality, "a bag of instances", reader, "Give the cohort slides, or choose another model.")

    def vector(self, modality: str, reader: str) -> int:
        """Length of a vector; `InputError` naming the model `reader` when the cohort has no such table."""
        return _offered(self.vectors, modality, "a vector a patient", reader, "Give the cohort this table, or choose another model.")

    def grouping(self, name: str, reader: str) -> tuple[int, ...]:
        """Group sizes; `InputError` naming the model `reader` when the cohort does not group its genes so."""
        remedy = "List a gene-set file under the cohort's omics.groups, or set the model's `groups` to a grouping it has."
        return _offered(self.groups, name, "a grouping of the omics features", reader, remedy)


def _offered(offers: Mapping[str, T], name: str, kind: str, reader: str, remedy: str) -> T:
    if name in offers:
        return offers[name]
    found = ", ".join(offers) or "none"
    raise InputError(f"{reader} reads {name!r}, {kind}, which the cohort does not offer", found=found, expected=repr(name), remedy=remedy)


@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    logits [B, bins]. losses: auxiliary terms by name, scalars, the mean over the B patients. auxiliary: tensors by name that
    `SurvivalModel.supervised` needs (predictions of further heads). losses and auxiliary are filled in training mode only.
    attention: maps by name whose last dimension sums to 1. details: whatever else the method's paper looks at, by name (gates,
    allocations, kept tokens), [B, …]. What costs time or memory is there only when the model's `explain` is set.
    """

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, Tensor] = field(default_factory=dict)
    details: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def joined(cls, outputs: Sequence[Output]) -> Output:
        """One output of patients that were processed one by one: rows stacked (shorter maps filled with zeros), losses averaged."""
        first = outputs[0]
        losses = {name: torch.stack([o.losses[name] for o in outputs]).mean() for name in first.losses}
        stacked = [{name: _stack([getattr(o, kind)[name] for o in outputs]) for name in getattr(first, kind)} for kind in STACKED]
        return cls(torch.cat([o.logits for o in outputs]), losses, *stacked)


STACKED = ("auxiliary", "attention", "details")


def _stack(rows: Sequence[Tensor]) -> Tensor:
    """[1, …] tensors as one [B, …], each filled with zeros up to the largest size of every dimension."""
    shape = [max(row.shape[d] for row in rows) for d in range(1, rows[0].dim())]
    filled = rows[0].new_zeros(len(rows), *shape)
    for at, row in enumerate(rows):
        filled[(at, *map(slice, row.shape[1:]))] = row[0]
    return filled


@dataclass(frozen=True)
class Target:
    """The labels of a batch, for losses of a model's own: y [B] time bin, event [B] bool.

    loss: logits [B, bins] → [B], the study's likelihood of these labels (for one bin and a binary endpoint, the cross-entropy).
    """

    y: Tensor
    event: Tensor
    loss: Callable[[Tensor], Tensor]


class SurvivalModel(nn.Module):
    """Base of all models: ``forward(patient) -> Output``.

    `modalities` lists what the model reads; `requires` what every patient must have for a prediction (a subset). Options may
    change both, so a constructor sets them on the instance. A patient must have at least one of `modalities` in any case.
    `stages`: trained one after the other; a model that has several overrides `enter` and `watched`.
    `whole_step`: its losses compare the patients of a step with each other, so that in training a step is one pass; the losses of other
    models are means over the patients, and their steps are cut into passes of like bags.
    `ordered`: the order of a bag's instances matters (position encodings, landmarks). `explain`: fill `attention` and `details` with
    what is costly, too.
    """

    modalities: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    stages: tuple[str, ...] = ("all",)
    whole_step: bool = False
    ordered: bool = False
    explain: bool = False

    def refusal(self, present: Collection[str]) -> str | None:
        """Why a patient with only the modalities `present` cannot be predicted; None when he can."""
        lacking = [m for m in self.requires if m not in present]
        if lacking:
            return f"lacks {' and '.join(lacking)}"
        if not set(present) & set(self.modalities):
            return f"has none of {', '.join(self.modalities)}"
        return None

    def check(self, patient: Patient) -> None:
        """Raise `InputError` if any patient of the batch cannot be predicted."""
        flags = {name: present.tolist() for name, present in patient.present.items()}  # one transfer a modality, not one a patient
        for row in range(patient.size):
            reason = self.refusal({name for name, present in flags.items() if present[row]})
            if reason:
                raise InputError(
                    f"{type(self).__name__} cannot predict patient {row} of the batch: {reason}",
                    expected=" and ".join(self.requires) or " or ".join(self.modalities),
                )

    def supervised(self, output: Output, target: Target) -> dict[str, Tensor]:
        """Auxiliary losses that need the labels, scalars by name (mean over the batch); called in training with the batch's output."""
        return {}

    def enter(self, stage: str) -> None:
        """Called before the first epoch of a stage (again after a restart): freeze what it does not train, choose its losses."""

    def watched(self, output: Output, target: Target) -> Tensor:
        """What a stage that is not the last has to lower, a scalar: it chooses that stage's epoch on the inner split, in eval mode."""
        raise TypeError(f"{type(self).__name__} has stages {', '.join(self.stages)} and must say what each lowers: override `watched`")

    def prepare(self, training: Iterable[tuple[Patient, Labels]]) -> None:
        """Hook called once before the first epoch with the training fold's batches and their labels: prototypes, clusters, earlier stages.

        Does nothing here; a model that needs something fitted overrides it. One that is fitted by other means than gradients does all its
        fitting here and states `epochs: 0` in its configuration; what it learns it keeps in buffers.
        """
