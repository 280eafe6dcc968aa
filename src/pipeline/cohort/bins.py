"""Time bins of the discrete-time models (labels as in MCAT; specs: SNN §4), fitted on the training fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import InputError

MARGIN = 1e-6


@dataclass(frozen=True)
class TimeBins:
    """edges: K + 1 increasing times in months; bin k is [edges[k], edges[k + 1])."""

    edges: tuple[float, ...]

    @property
    def count(self) -> int:
        """Number of bins K (1: a binary label); smaller than asked for where quantiles coincide, so build the model's head from it."""
        return len(self.edges) - 1

    @classmethod
    def fit(cls, time: np.ndarray, event: np.ndarray, bins: int = 4) -> TimeBins:
        """Edges from the TRAINING patients: time [n] in months, event [n] 0/1.

        Quantiles 0, 1/bins, …, 1 (linear interpolation) of the times of patients with an event; coinciding ones are merged;
        the outer edges become the smallest time of all training patients − 1e-6 and the largest + 1e-6. The public code takes
        test patients in; this one does not. Raises `InputError` when no training patient has an event, and when fewer than two
        bins remain.
        """
        time, event = np.asarray(time, dtype=np.float64), np.asarray(event)
        events = time[event == 1]
        if not len(events):
            raise InputError(
                "no training patient has an event, so there are no time bins",
                found=f"{len(time)} patients, 0 events",
                expected="at least 2 events at different times",
                remedy="Use fewer folds, another endpoint, or more patients.",
            )
        edges = np.unique(np.quantile(events, np.linspace(0, 1, bins + 1)))
        if len(edges) < 3:
            raise InputError(
                "fewer than two time bins remain after merging equal edges",
                found=f"{len(events)} events at {len(np.unique(events))} different times, {bins} bins asked for",
                expected="at least 2 bins",
                remedy="Set `bins` to 2 or more, or use an endpoint with more events.",
            )
        return cls((float(time.min()) - MARGIN, *map(float, edges[1:-1]), float(time.max()) + MARGIN))

    @classmethod
    def window(cls, length: float) -> TimeBins:
        """The one bin of a binary label: event by `length` months or not."""
        return cls((0.0, float(length)))

    def assign(self, time: np.ndarray) -> np.ndarray:
        """The bin [n] int64 of each time [n] in months; times outside the training range fall into the end bins."""
        return np.searchsorted(np.asarray(self.edges[1:-1]), np.asarray(time, dtype=np.float64), side="right").astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """What YAML can hold; floats survive to the bit."""
        return {"edges": list(self.edges)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> TimeBins:
        """The bins that `to_dict` described."""
        return cls(tuple(map(float, saved["edges"])))
