"""A fold's patients in memory: features are read once, batches are cut from what is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.cohort.record import Bag, Patient
from pipeline.errors import InputError
from pipeline.omics.scaling import Scaler
from pipeline.seeds import seed_from

# Features up to this share of a job's memory are held in it, above it they stay on disk and are mapped: the rest is for PyTorch (half a
# gigabyte), the model, and the pass of each process, which `PATCHES_PASS` bounds.
RESIDENT_SHARE = 0.5
MEMORY_MB = 8000  # of a job, where nothing is said: what its rule asks for


def resident_bytes(memory_mb: float = MEMORY_MB) -> int:
    """How many bytes of features a job of `memory_mb` holds in memory."""
    return int(memory_mb * RESIDENT_SHARE * 1e6)


def _held(mapped: dict[str, list[np.ndarray]], resident: int | None) -> dict[str, list[np.ndarray]]:
    """The arrays in memory if they have at most `resident` bytes, as they are otherwise."""
    if sum(x.nbytes for arrays in mapped.values() for x in arrays) > (resident_bytes() if resident is None else resident):
        return mapped
    return {patient: [np.array(x) for x in arrays] for patient, arrays in mapped.items()}


@dataclass
class BagStore:
    """Patch features by patient: one float16 [N, d] array a slide, a patient's slides in the order of the cohort's table.

    `scaler` is applied when a bag is cut (None = as stored).
    """

    width: int
    slides: Mapping[str, Sequence[np.ndarray]]
    scaler: Scaler | None = None

    @classmethod
    def open(
        cls, files: Mapping[str, Sequence[str | Path]], resident: int | None = None, checksums: Mapping[str | Path, object] | None = None
    ) -> BagStore:
        """Open every patient's feature files; held in memory if they have at most `resident` bytes, mapped from disk otherwise.

        `checksums`: of files, as their manifest states them. Raises `InputError` for a file that cannot be read, is not as it was written
        or not the one that is listed, and for files of different widths.
        """
        from pipeline.slides.features import map_features

        known = checksums or {}
        mapped = _held({patient: [map_features(path, known.get(path)) for path in paths] for patient, paths in files.items()}, resident)
        widths = {x.shape[1]: path for patient, arrays in mapped.items() for x, path in zip(arrays, files[patient], strict=True)}
        if len(widths) > 1:
            found = "; ".join(f"{width} in {path}" for width, path in sorted(widths.items()))
            raise InputError("feature files of different widths", found=found, expected="one encoder for all slides")
        return cls(next(iter(widths)), mapped)

    @classmethod
    def of_bags(cls, bags: Mapping[str, np.ndarray], resident: int | None = None) -> BagStore:
        """The same of one bag a patient, as `pipeline.cohort.bags.read_bags` maps them from one file."""
        return cls(next(iter(bags.values())).shape[1], _held({patient: [bag] for patient, bag in bags.items()}, resident))

    def scaled_on(self, patients: Sequence[str]) -> BagStore:
        """The same bags, scaled by mean and standard deviation [d] over all patches of `patients` (the training fold); constant features
        divide by 1.
        """
        count, total, square = 0, np.zeros(self.width), np.zeros(self.width)
        for patient in patients:
            for features in self.slides.get(patient, ()):
                x = np.asarray(features, dtype=np.float64)
                count, total, square = count + len(x), total + x.sum(0), square + (x * x).sum(0)
        mean = total / max(count, 1)
        deviation = np.sqrt(np.maximum(square / max(count, 1) - mean**2, 0.0))
        spread = np.where(deviation > 1e-6, deviation, 1.0)
        return replace(self, scaler=Scaler("zscore", mean.astype(np.float32), spread.astype(np.float32), np.zeros(self.width, np.float32)))

    def length(self, patient: str) -> int:
        """Number of patches of the patient (0: no slide)."""
        return sum(len(x) for x in self.slides.get(patient, ()))

    def bag(self, patient: str, limit: int | None = None, rng: np.random.Generator | None = None) -> np.ndarray:
        """float32 [N, d]; with `limit` a sample of at most that many patches, without replacement, in slide order.

        Without `rng` the sample depends on the patient's id alone.
        """
        x = self._stored(patient, limit, rng)
        return x.astype(np.float32) if self.scaler is None else self.scaler.transform(x)

    def padded(self, patients: Sequence[str], limit: int | None = None, rng: np.random.Generator | None = None) -> Bag:
        """The bags of `patients` as one, as long as the longest; patients without a bag are all padding. `limit` and `rng` as in `bag`."""
        stored = [self._stored(p, limit, rng) if self.length(p) else np.zeros((0, self.width), np.float16) for p in patients]
        longest = max(1, max(len(x) for x in stored))
        features, mask = torch.empty(len(stored), longest, self.width), torch.zeros(len(stored), longest, dtype=torch.bool)
        for row, x in enumerate(stored):
            scaled = x if self.scaler is None else self.scaler.transform(x)
            features[row, : len(x)] = torch.from_numpy(scaled)  # PyTorch widens float16 faster than NumPy
            features[row, len(x) :] = 0
            mask[row, : len(x)] = True
        return Bag(features, mask)

    def _stored(self, patient: str, limit: int | None, rng: np.random.Generator | None) -> np.ndarray:
        slides = self.slides[patient]
        x = slides[0] if len(slides) == 1 else np.concatenate(list(slides))
        if limit is not None and len(x) > limit:
            rng = rng or np.random.default_rng(seed_from("patches", patient))
            x = x[np.sort(rng.choice(len(x), limit, replace=False))]
        return x if x.flags.writeable else np.array(x)  # what is mapped from disk may not be shared with a tensor


@dataclass
class CohortData:
    """Everything a model reads, already scaled, by patient.

    vectors: modality → (patient → row, float32 [P, d]); groups: grouping → column numbers of the ``omics`` vector, group after
    group; bags: modality → `BagStore`. A patient lacks a modality in whose mapping they are absent.
    """

    vectors: Mapping[str, tuple[Mapping[str, int], np.ndarray]] = field(default_factory=dict)
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    bags: Mapping[str, BagStore] = field(default_factory=dict)

    def modalities(self, patient: str) -> set[str]:
        """What the patient has."""
        vectors = {m for m, (rows, _) in self.vectors.items() if patient in rows}
        return vectors | {m for m, store in self.bags.items() if store.length(patient)}

    def batch(self, patients: Sequence[str], limit: int | None = None, rng: np.random.Generator | None = None) -> Patient:
        """The padded record of `patients`, in that order; `limit` and `rng` sample patches, see `BagStore.bag`."""
        bags, vectors, groups, present = {}, {}, {}, {}
        for modality, store in self.bags.items():
            bags[modality] = store.padded(patients, limit, rng)
            present[modality] = bags[modality].mask.any(1)
        for modality, (rows, values) in self.vectors.items():
            at = np.array([rows.get(p, -1) for p in patients])
            block = np.where(at[:, None] >= 0, values[at], np.float32(0))
            vectors[modality] = torch.from_numpy(block)
            present[modality] = torch.from_numpy(at >= 0)
            if modality == "omics":
                groups = {name: torch.from_numpy(block[:, columns]) for name, columns in self.groups.items()}
        return Patient(bags, vectors, groups, present)

    def lengths(self, patients: Sequence[str], sampled: int | None = None) -> list[int]:
        """Instances in the longest bag of each patient, of which at most `sampled` are taken."""
        counts = [max((store.length(patient) for store in self.bags.values()), default=0) for patient in patients]
        return [min(count, sampled) for count in counts] if sampled else counts
