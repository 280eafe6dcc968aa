"""Several vectors of a patient, side by side, for models that read any number of tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.cohort.record import Patient
from pipeline.models.interface import Inputs


class Concatenation:
    """The vectors `modalities` (None = all that the cohort offers, sorted by name) as one row a patient.

    A table that a patient lacks becomes zeros: the training mean where tables are z-scored, the smallest training value where they
    are min–max scaled. `flags` appends one column a table, 1 where it is missing. Raises `InputError` naming the model `reader` for
    a table that the cohort does not offer.
    """

    def __init__(self, inputs: Inputs, modalities: Sequence[str] | None, reader: str, *, flags: bool = False) -> None:
        self.modalities = tuple(sorted(inputs.vectors) if modalities is None else modalities) or ("tables",)
        self.widths = {name: inputs.vector(name, reader) for name in self.modalities}
        self.flags = flags

    @property
    def width(self) -> int:
        """Number of columns D."""
        return sum(self.widths.values()) + self.flags * len(self.widths)

    def __call__(self, patient: Patient) -> Tensor:
        """[B, D]: the vectors in the order of `modalities`, then the flags."""
        has = torch.stack([patient.has(name) for name in self.modalities], dim=1).float()
        rows = [patient.vectors.get(name, has.new_zeros(patient.size, width)) for name, width in self.widths.items()]
        kept = [x * has[:, [at]].to(x.dtype) for at, x in enumerate(rows)]
        return torch.cat([*kept, (1 - has).to(kept[0].dtype)] if self.flags else kept, dim=1)
