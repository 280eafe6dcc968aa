"""The patient record: one patient or a batch, in which any modality may be absent; and the labels of patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Bag:
    """Instances of one modality: features [B, N, d], mask [B, N] bool (True = a real instance, False = padding)."""

    features: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> Bag:
        return Bag(self.features.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))


@dataclass(frozen=True)
class Patient:
    """A batch of B patients.

    bags: modality → `Bag`, e.g. ``wsi``.
    vectors: modality → [B, d], e.g. ``omics`` (scaled), ``clinical``.
    groups: grouping → [B, Σ n_g]: the scaled features of group 0, then of group 1, … (a gene may appear in several groups).
    present: modality → [B] bool. Where False, the patient lacks it and his rows above are zeros (bags: all masked).
    A modality that no patient of the batch has may be left out of every mapping.
    """

    bags: Mapping[str, Bag] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    present: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        bags: Mapping[str, Tensor | None] | None = None,
        vectors: Mapping[str, Tensor | None] | None = None,
        groups: Mapping[str, Sequence[Tensor] | None] | None = None,
    ) -> Patient:
        """One patient from plain tensors: bags [N, d], vectors [d], groups a list of [n_g]; None = absent."""
        some_bags = {m: x for m, x in (bags or {}).items() if x is not None}
        some_vectors = {m: x for m, x in (vectors or {}).items() if x is not None}
        some_groups = {g: x for g, x in (groups or {}).items() if x is not None}
        names = {*some_bags, *some_vectors, *(["omics"] if some_groups else [])}
        device = next(iter([*some_bags.values(), *some_vectors.values(), *(x[0] for x in some_groups.values())])).device
        return cls(
            bags={m: Bag(x[None], torch.ones(1, len(x), dtype=torch.bool, device=device)) for m, x in some_bags.items()},
            vectors={m: x[None] for m, x in some_vectors.items()},
            groups={g: torch.cat(list(x))[None] for g, x in some_groups.items()},
            present={m: torch.ones(1, dtype=torch.bool, device=device) for m in sorted(names)},
        )

    @property
    def size(self) -> int:
        """Number of patients B."""
        return len(next(iter(self.present.values())))

    def modalities(self, row: int) -> set[str]:
        """The modalities that patient `row` of the batch has."""
        return {name for name, flags in self.present.items() if bool(flags[row])}

    def has(self, modality: str) -> Tensor:
        """[B] bool: who has the modality."""
        if modality in self.present:
            return self.present[modality]
        return torch.zeros(self.size, dtype=torch.bool, device=self._device)

    def without(self, modality: str, rows: Tensor | None = None) -> Patient:
        """A copy in which the patients of `rows` ([B] bool; None = all) lack `modality`: zeros, masked, not present."""
        drop = torch.ones_like(self.has(modality)) if rows is None else rows
        keep = ~drop

        def blank(x: Tensor) -> Tensor:
            return x * keep.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)

        bags, vectors, groups, present = dict(self.bags), dict(self.vectors), dict(self.groups), dict(self.present)
        if modality in bags:
            bags[modality] = Bag(blank(bags[modality].features), bags[modality].mask & keep[:, None])
        if modality in vectors:
            vectors[modality] = blank(vectors[modality])
        if modality == "omics":
            groups = {name: blank(x) for name, x in groups.items()}
        if modality in present:
            present[modality] = present[modality] & keep
        return replace(self, bags=bags, vectors=vectors, groups=groups, present=present)

    def single(self, row: int) -> Patient:
        """Patient `row` alone, B = 1: padding cut off, what he lacks left out."""
        mine = self.modalities(row)
        bags = {}
        for name, bag in self.bags.items():
            if name in mine:
                features = bag.features[row][bag.mask[row]]
                bags[name] = Bag(features[None], torch.ones(1, len(features), dtype=torch.bool, device=features.device))
        vectors = {name: x[row : row + 1] for name, x in self.vectors.items() if name in mine}
        groups = {name: x[row : row + 1] for name, x in self.groups.items()} if "omics" in mine else {}
        return Patient(bags, vectors, groups, {name: self.present[name][row : row + 1] for name in sorted(mine)})

    def bag_or_zeros(self, modality: str, width: int) -> Bag:
        """The bag of `modality`; if no patient of the batch has it, one masked row of zeros [B, 1, width]."""
        if modality in self.bags:
            return self.bags[modality]
        return Bag(self._zeros(1, width), torch.zeros(self.size, 1, dtype=torch.bool, device=self._device))

    def groups_or_zeros(self, grouping: str, width: int) -> Tensor:
        """The features of `grouping` [B, Σ n_g]; zeros [B, width] if no patient of the batch has them."""
        return self.groups[grouping] if grouping in self.groups else self._zeros(width)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.present.values())).device

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.size, *shape, device=self._device)

    def to(self, device: torch.device | str) -> Patient:
        return Patient(
            {m: b.to(device) for m, b in self.bags.items()},
            {m: x.to(device, non_blocking=True) for m, x in self.vectors.items()},
            {g: x.to(device, non_blocking=True) for g, x in self.groups.items()},
            {m: x.to(device, non_blocking=True) for m, x in self.present.items()},
        )


@dataclass(frozen=True)
class Labels:
    """What is known of P patients, row by row.

    patients (ids), time [P] months, event [P] 0/1, y [P] time bin. edges: the K + 1 edges of the time bins (months). A binary label is one
    bin (K = 1): `event` is the label and `time` the same for all.
    """

    patients: Sequence[str]
    time: np.ndarray
    event: np.ndarray
    y: np.ndarray
    edges: tuple[float, ...] = ()

    def take(self, rows: np.ndarray) -> Labels:
        """The given rows, repeats allowed."""
        return Labels([self.patients[i] for i in rows], self.time[rows], self.event[rows], self.y[rows], self.edges)
