"""Scaling and imputation, fitted on training rows alone."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import InputError, nearest

METHODS = ("zscore", "minmax", "minmax_global", "none")
IMPUTATIONS = ("mean", "median", "most_frequent")


@dataclass(frozen=True)
class Scaler:
    """(x − center) / spread, then clipped, then missing values filled.

    center, spread [F], or [1] when one serves all features; fill [F] = what `impute` says of the training feature, scaled. A feature
    that no training patient has becomes 0 for everybody. All float32, so that a scaler read back gives the same bits.
    """

    method: str
    center: np.ndarray
    spread: np.ndarray
    fill: np.ndarray
    clip: float | None = None
    impute: str = "mean"

    @classmethod
    def fit(cls, training: np.ndarray, method: str = "zscore", clip: float | None = None, impute: str = "mean") -> Scaler:
        """Fit on the training rows [n, F]; NaN = missing, ignored.

        ``zscore``: mean and population sd of each feature, a constant feature divides by 1 (MCAT's StandardScaler).
        ``minmax``: minimum and maximum of each feature go to 0 and 1, a constant feature to 0 (HAF). ``minmax_global``: ONE
        minimum and maximum of the whole training matrix go to −1 and 1 (SurvPath). Values of other patients may fall outside.
        ``none``: values as they are. `clip` bounds the scaled values to ±clip. `impute`: a missing value becomes the ``mean``,
        ``median`` or ``most_frequent`` value of the feature (of several the smallest), scaled like any other.
        Raises `InputError` for an unknown method or imputation, a clip that is not positive, and an empty training matrix.
        """
        for word, value, known in (("scaling", method, METHODS), ("imputation", impute, IMPUTATIONS)):
            if value not in known:
                raise InputError(f"unknown {word}", found=value, expected=" or ".join(known), remedy=nearest(value, known))
        if clip is not None and not clip > 0:
            raise InputError("clip is not positive", found=clip, expected="a number above 0, or nothing")
        values = np.asarray(training, dtype=np.float64)
        known = ~np.isnan(values)
        if not known.any():
            raise InputError("the training fold has no value to fit the scaling on", expected="at least one training patient with a value")
        center, spread = _range(values, known, method)
        spread = np.where(_is_constant(center, spread), 1.0, spread)
        if not (measured := known.any(axis=0)).all():
            spread = np.where(measured, spread, np.inf)  # 0 for everybody: on its own scale it would go to weights that never saw it
        fill = np.where(measured, (_typical(values, known, impute) - center) / spread, 0.0)
        bounded = fill if clip is None else np.clip(fill, -clip, clip)
        return cls(method, *(x.astype(np.float32) for x in (center, spread, bounded)), clip=clip, impute=impute)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Scale rows [P, F] → [P, F] float32 without NaN. Raises `InputError` when F is not the fitted number of features."""
        if values.shape[-1] != len(self.fill):
            raise InputError("the scaling was fitted on other features", found=values.shape[-1], expected=f"{len(self.fill)} features")
        scaled = (np.asarray(values, dtype=np.float32) - self.center) / self.spread
        if self.clip is not None:
            scaled = np.clip(scaled, -self.clip, self.clip)
        return np.where(np.isnan(scaled), self.fill, scaled)

    def to_dict(self) -> dict[str, Any]:
        """What YAML can hold; the arrays as base64 of little-endian float32 (twenty thousand YAML numbers would take seconds)."""
        arrays = {name: base64.b64encode(getattr(self, name).astype("<f4").tobytes()).decode() for name in ("center", "spread", "fill")}
        return {"method": self.method, "clip": self.clip, "impute": self.impute, **arrays}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Scaler:
        """The scaler that `to_dict` described, bit for bit; without `impute` (written before there was a choice) it is the mean."""
        arrays = [np.frombuffer(base64.b64decode(saved[name]), dtype="<f4").astype(np.float32) for name in ("center", "spread", "fill")]
        return cls(saved["method"], *arrays, clip=saved["clip"], impute=saved.get("impute", "mean"))


def _range(values: np.ndarray, known: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """center and spread, float64 [F] or [1], of rows [n, F]; 0 and 0 for a feature without a value."""
    if method == "zscore":
        mean = _mean(values, known)
        square = np.where(known, values - mean, 0.0) ** 2
        return mean, np.sqrt(square.sum(axis=0) / np.maximum(known.sum(axis=0), 1))
    if method == "minmax":
        some = known.any(axis=0)
        low = np.where(some, np.where(known, values, np.inf).min(axis=0), 0.0)
        return low, np.where(some, np.where(known, values, -np.inf).max(axis=0), 0.0) - low
    if method == "minmax_global":
        low, high = np.nanmin(values), np.nanmax(values)
        return np.array([(low + high) / 2]), np.array([(high - low) / 2])
    return np.zeros(1), np.ones(1)


def _typical(values: np.ndarray, known: np.ndarray, impute: str) -> np.ndarray:
    """What stands for a missing value, float64 [F]; 0 for a feature without a value."""
    if impute == "mean":
        return _mean(values, known)
    choose = np.median if impute == "median" else _most_frequent
    return np.array([choose(column[some]) if some.any() else 0.0 for column, some in zip(values.T, known.T, strict=True)])


def _mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)


def _most_frequent(values: np.ndarray) -> float:
    different, counts = np.unique(values, return_counts=True)
    return float(different[counts.argmax()])


def _is_constant(center: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Whether a spread is zero up to the rounding of the mean (a constant 0.1 has an sd of about 1e-17)."""
    return spread <= 10 * np.finfo(np.float64).eps * np.abs(center)
