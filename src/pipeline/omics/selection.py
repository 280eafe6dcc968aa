"""Which features a fold's models read: chosen on its training rows alone, before scaling."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import InputError, nearest

log = logging.getLogger(__name__)

METHODS = ("none", "variance", "univariate")
BLOCK = 1024  # features whose risk sets are summed at once: bounds the memory


@dataclass(frozen=True)
class Selection:
    """columns [k]: sorted numbers of the chosen ones among `total` features."""

    method: str
    columns: np.ndarray
    total: int

    @classmethod
    def fit(
        cls,
        values: np.ndarray,
        time: np.ndarray,
        event: np.ndarray,
        method: str = "none",
        features: int | Mapping[str, int] = 0,
        kinds: Sequence[str] | None = None,
    ) -> Selection:
        """Choose among the features of training rows `values` [n, F] (NaN = missing, ignored); `time`, `event` [n].

        ``variance``: the largest variances, before scaling, as every feature has the same after it. ``univariate``: the smallest p of
        the Cox score test (`score_test`). ``none``: all. `features`: how many, or how many of each of the `kinds` [F] (e.g. rnaseq 240,
        cnv 79, mut 1); a kind that is not named keeps all of its features (our choice). Where there are fewer, all are kept.
        Equal ones are taken in column order. The choice does not depend on the order of the rows.
        Raises `InputError` for an unknown method, a number that is not positive, a mapping without or beyond the kinds, and training
        labels that rank no feature.
        """
        if method not in METHODS:
            raise InputError("unknown selection", found=method, expected=" or ".join(METHODS), remedy=nearest(method, METHODS))
        total = values.shape[1]
        if method == "none":
            return cls(method, np.arange(total), total)
        quotas = _quotas(features, kinds, total)
        if method == "variance":
            rank = _variance(values)
        else:
            rank = score_test(values, time, event)
            if not (rank > 0).any():
                problem = "the training labels rank no feature"
                raise InputError(problem, found=f"{int(np.sum(event))} events", expected="events at which others are at risk")
        # What ties but for the rounding of sums must tie: else the order of the rows would decide.
        rank = rank.astype(np.float32)
        best = [columns[np.argsort(-rank[columns], kind="stable")[:number]] for columns, number in quotas]
        return cls(method, np.sort(np.concatenate(best)), total)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Rows [P, F] → [P, k]. Raises `InputError` when F is not the number of features that the choice was made among."""
        if values.shape[-1] != self.total:
            raise InputError("the features were chosen among others", found=values.shape[-1], expected=f"{self.total} features")
        return values[..., self.columns]

    def to_dict(self) -> dict[str, Any]:
        """What YAML can hold; the columns as base64 of little-endian int32."""
        return {"method": self.method, "total": self.total, "columns": base64.b64encode(self.columns.astype("<i4").tobytes()).decode()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Selection:
        """The selection that `to_dict` described."""
        return cls(saved["method"], np.frombuffer(base64.b64decode(saved["columns"]), dtype="<i4").astype(np.int64), saved["total"])


def _quotas(features: int | Mapping[str, int], kinds: Sequence[str] | None, total: int) -> list[tuple[np.ndarray, int]]:
    """(columns, how many of them), for all features or for each kind."""
    if not isinstance(features, Mapping):
        if features < 1:
            raise InputError("number of features to select is not positive", found=features, expected="1 or more")
        return [(np.arange(total), int(features))]
    kind_of = np.array(list(kinds or ()), dtype=object)
    known = sorted(set(kind_of))
    if len(kind_of) != total:
        raise InputError("features are to be selected by kind, and have none", found=", ".join(features), expected="a number")
    for kind, number in features.items():
        if kind not in known:
            remedy = nearest(kind, known) or "Name kinds that the tables hold."
            raise InputError("no feature of this kind to select", found=kind, expected=" or ".join(known), remedy=remedy)
        if number < 0:
            raise InputError(f"number of {kind} features to select is negative", found=number, expected="0 or more")
    if not sum(features.get(kind, 1) for kind in known):
        raise InputError("no feature is to be selected", found=dict(features), expected="a number above 0 for at least one kind")
    return [(np.flatnonzero(kind_of == kind), int(features.get(kind, total))) for kind in known]


def _variance(values: np.ndarray) -> np.ndarray:
    """Population variance [F] of the known values, −1 where there is none."""
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    squares = (np.where(known, values - mean, 0.0) ** 2).sum(axis=0)
    return np.where(count > 0, squares / np.maximum(count, 1), -1.0)


def score_test(values: np.ndarray, time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """χ² [F] with one degree of freedom of the Cox score test of each feature of `values` [n, F]; 0 where nothing can be tested.

    U = Σ over events of (x − mean of x at risk), V = Σ over event times of d (r − d) / (r − 1) · variance of x at risk, χ² = U² / V
    (Cox 1972, section 6: tied events as a draw without replacement). So for a 0/1 feature it is the log-rank test, without ties the
    score test of the partial likelihood, and where all times are equal (a binary label) Mantel's test for trend, which ranks as the
    score test of a logistic regression. Patients whose value is missing are left out of that feature's risk sets.
    """
    order = np.lexsort((event, -np.asarray(time, dtype=np.float64)))
    times, events = np.asarray(time, dtype=np.float64)[order], np.asarray(event, dtype=bool)[order]
    last = np.flatnonzero(np.append(times[1:] != times[:-1], True))  # of each time, in descending order: whoever stands up to it is at risk
    statistics = [
        _score_block(np.asarray(values[order, start : start + BLOCK], dtype=np.float64), events, last)
        for start in range(0, values.shape[1], BLOCK)
    ]
    return np.concatenate(statistics) if statistics else np.zeros(0)


def _score_block(x: np.ndarray, events: np.ndarray, last: np.ndarray) -> np.ndarray:
    """`score_test` of x [n, f], sorted by descending time; `last` [t]: the last row of each time."""
    known = ~np.isnan(x)
    center = np.where(known, x, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    x = np.where(known, x - center, 0.0)  # about the mean, so that the difference of sums below keeps its digits
    first = np.concatenate([[0], last[:-1] + 1])

    def at_risk(rows: np.ndarray) -> np.ndarray:
        return np.add.reduceat(rows, first, axis=0).cumsum(axis=0)

    number = at_risk(known.astype(np.float64))
    mean = at_risk(x) / np.maximum(number, 1)
    variance = np.maximum(at_risk(x**2) / np.maximum(number, 1) - mean**2, 0.0)
    failed = events[:, None] & known
    deaths = np.add.reduceat(failed.astype(np.float64), first, axis=0)
    score = (np.add.reduceat(np.where(failed, x, 0.0), first, axis=0) - deaths * mean).sum(axis=0)
    information = (deaths * (number - deaths) / np.maximum(number - 1, 1) * variance).sum(axis=0)
    scale = (x**2).sum(axis=0)
    testable = information > 1e-12 * scale  # below it is the rounding of a constant feature
    chi2 = np.where(testable, score**2 / np.where(testable, information, 1.0), 0.0)
    return np.where(chi2 > 1e-12, chi2, 0.0)  # a score of 0 up to rounding must tie with one of 0
