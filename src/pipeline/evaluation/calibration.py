"""Whether predicted probabilities mean what they say: D-calibration and the calibration table, over folds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from pipeline.evaluation.censored import Z95, kaplan_meier
from pipeline.evaluation.folds import Fold
from pipeline.evaluation.metrics import NO_CURVE, Figure, attempt, survival_at

DECILES = 10
HORIZONS = (0.25, 0.5, 0.75)  # quantiles of follow-up
GROUPS, GROUP_SIZE = 5, 20
COLUMNS = ("time", "group", "patients", "predicted", "observed", "ci_low", "ci_high")


def d_calibration(folds: list[Fold]) -> Figure:
    """p of the chi-square test (9 degrees of freedom) that the predicted survival at death is uniform (Haider et al. 2020, JMLR 21:85).

    A censored patient with survival s at his last contact is spread evenly over [0, s]. A patient who outlives the last edge,
    beyond which no curve is predicted, is spread over [0, S(last edge)]; one who is tested in m folds counts 1/m in each (our
    choices). A small p means miscalibration. NaN without a curve.
    """

    def p() -> float:
        from scipy.special import chdtrc

        counts = decile_counts(folds)
        expected = counts.sum() / DECILES
        return float(chdtrc(DECILES - 1, ((counts - expected) ** 2 / expected).sum()))

    return attempt(p)


def decile_counts(folds: list[Fold]) -> np.ndarray:
    """[10]: how many patients the deciles [0, 0.1), … [0.9, 1] of predicted survival hold; raises `ValueError` without curves."""
    folds = _with_curves(folds)
    _, which, tested = np.unique(np.concatenate([f.test.patient_id for f in folds]), return_inverse=True, return_counts=True)
    chance = np.concatenate([survival_at(fold, fold.test.time[:, None])[:, 0] for fold in folds])
    died = np.concatenate([fold.test.event & (fold.test.time <= fold.edges.max()) for fold in folds])
    weight = 1 / tested[which]
    lower = np.arange(DECILES) / DECILES
    exact = np.minimum((chance * DECILES).astype(int), DECILES - 1)[:, None] == np.arange(DECILES)
    known = np.maximum(chance, np.finfo(float).tiny)[:, None]
    spread = np.clip(known - lower, 0, 1 / DECILES) / known
    return weight @ np.where(died[:, None], exact, spread)


def calibration_table(folds: list[Fold], kind: str = "survival") -> pd.DataFrame:
    """`COLUMNS`: at each horizon (months) groups 1, 2, … of patients by ascending prediction: mean predicted, observed, 95 % interval.

    survival: at the quartiles of follow-up up to which every fold has a curve; survival probability against Kaplan–Meier, interval
    by log(−log S). binary: at the window; probability of the event against its share, Wilson's interval. Up to five groups of at
    least 20 patients, cut at quantiles; a patient who is tested in several folds enters once with the mean of his predictions (our
    choices). Empty where nobody has a curve.
    """
    try:
        folds = _with_curves(folds)
    except ValueError:
        return pd.DataFrame(columns=list(COLUMNS))
    ids = np.concatenate([f.test.patient_id for f in folds])
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    time, event = (np.concatenate([getattr(f.test, name) for f in folds])[first] for name in ("time", "event"))
    end = min(fold.edges.max() for fold in folds)
    times = np.unique(np.quantile(time, HORIZONS)) if kind == "survival" else np.array([end])
    rows = []
    for at in times[times <= end]:
        each = np.concatenate([survival_at(fold, np.array([at]))[:, 0] for fold in folds])
        predicted = np.bincount(which, weights=each) / np.bincount(which)
        predicted = predicted if kind == "survival" else 1 - predicted
        for number, group in enumerate(_groups(predicted), start=1):
            known = _observed(time[group], event[group], at) if kind == "survival" else _share(event[group])
            rows.append((at, number, int(group.sum()), predicted[group].mean(), *known))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _with_curves(folds: list[Fold]) -> list[Fold]:
    folds = [fold for fold in folds if len(fold.risk)]
    if not folds:
        raise ValueError("no patient was predicted")
    if not all(len(fold.edges) for fold in folds):
        raise ValueError(NO_CURVE)
    return folds


def _groups(predicted: np.ndarray) -> Iterator[np.ndarray]:
    """Masks [n] of patients between quantiles; equal predictions are never torn apart, groups may therefore be fewer."""
    count = int(np.clip(len(predicted) // GROUP_SIZE, 1, GROUPS))
    cuts = np.quantile(predicted, np.arange(1, count) / count, method="lower")
    number = np.searchsorted(cuts, predicted, "left")
    return (number == k for k in np.unique(number))


def _observed(time: np.ndarray, event: np.ndarray, at: float) -> tuple[float, float, float]:
    curve = kaplan_meier(time, event)
    if at > time.max() and curve.survival[-1] > 0:
        return np.nan, np.nan, np.nan  # nobody of the group was followed so long
    return float(curve.at(at)), *curve.interval(at)


def _share(event: np.ndarray) -> tuple[float, float, float]:
    """Share of events with Wilson's interval."""
    n, share = len(event), float(event.mean())
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    return share, max(0.0, centre - half), min(1.0, centre + half)
