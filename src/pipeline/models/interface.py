"""What every model takes and gives: `Inputs`, `Patient` in, `Output` out, and the base class `SurvivalModel`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from pipeline.cohort.record import Patient
from pipeline.errors import InputError


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


@dataclass(frozen=True)
class Output:
    """logits [B, bins]; losses: auxiliary terms by name (scalars); attention: maps by name, never detached copies of the input."""

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, Tensor] = field(default_factory=dict)


class SurvivalModel(nn.Module):
    """Base of all models: ``forward(patient) -> Output``.

    `modalities` lists what the model reads; `requires` what every patient must have for a prediction (a subset).
    A patient must have at least one of `modalities` in any case.
    """

    modalities: ClassVar[tuple[str, ...]] = ()
    requires: tuple[str, ...] = ()

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
        for row in range(patient.size):
            reason = self.refusal(patient.modalities(row))
            if reason:
                raise InputError(
                    f"{type(self).__name__} cannot predict patient {row} of the batch: {reason}",
                    expected=" and ".join(self.requires) or " or ".join(self.modalities),
                )

    def prepare(self, training: Iterable[Patient]) -> None:
        """Hook called once before the first epoch with the training fold's batches: prototypes, clusters, earlier stages.

        Does nothing here; a model that needs something fitted overrides it.
        """
