"""The metrics of one fold beside Harrell's C, and the log-rank test over folds.

The training fold is the reference for censoring. What cannot be computed is NaN with the reason, never 0 and never left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.folds import Fold, FollowUp

GRID_POINTS = 100


class Figure(NamedTuple):
    """A value, or NaN and the reason in `note`."""

    value: float
    note: str = ""


def horizon(train: FollowUp) -> float:
    """The last time (months) up to which censoring is known well enough to weight by it.

    The largest training time not above the 90th percentile of follow-up at which the censoring survival is above 0 (our
    choice: beyond it, single patients carry weights of 1/G² in the hundreds). NaN where there is none.
    """
    from sksurv.nonparametric import kaplan_meier_estimator

    if train.event.all():
        return float(np.quantile(train.time, 0.9, method="lower"))
    times, censoring_survival = kaplan_meier_estimator(train.event, train.time, reverse=True)
    usable = times[(censoring_survival > 0) & (times <= np.quantile(train.time, 0.9))]
    return float(usable.max()) if len(usable) else np.nan


def time_grid(fold: Fold) -> np.ndarray:
    """Up to 100 equally spaced times (months) where the fold is identifiable; raises `ValueError` with the reason if there are none.

    From the 10th percentile of the training follow-up or the first test event, whichever is later, to the horizon, the last
    time bin or the end of test follow-up, whichever is first (our choice).
    """
    if not fold.test.event.any():
        raise ValueError("no event in the test fold")
    if not len(fold.edges):
        raise ValueError("predictions.tsv has no survival curve (surv_<t>)")
    start = max(np.quantile(fold.train.time, 0.1), fold.test.time[fold.test.event].min())
    observed = np.nextafter(min(horizon(fold.train), fold.test.time.max()), 0)  # times must lie before the end of (truncated) follow-up
    end = min(observed, fold.edges.max())
    if not start < end:
        raise ValueError(f"no identifiable time: starts at {start:.4g}, ends at {end:.4g} months")
    return np.linspace(start, end, GRID_POINTS)


def survival_at(fold: Fold, times: np.ndarray) -> np.ndarray:
    """[n, len(times)]: the predicted survival curves, linear between the time bins' edges, with S(0) = 1."""
    order = np.argsort(fold.edges)
    edges = np.concatenate([[0.0], fold.edges[order]])
    curves = np.column_stack([np.ones(len(fold.survival)), fold.survival[:, order]])
    return np.array([np.interp(times, edges, curve) for curve in curves])


def fold_metrics(fold: Fold) -> dict[str, Figure]:
    """``c_index_uno`` (truncated at the horizon), ``ibs`` and ``auc`` (cumulative/dynamic AUC of the risk, mean over the grid).

    Uno et al. 2011; Graf et al. 1999; Uno et al. 2007 with the mean of Lambert and Chevret 2016; all by scikit-survival.
    """
    from sksurv import metrics
    from sksurv.util import Surv

    def data() -> tuple[np.ndarray, np.ndarray]:
        end = horizon(fold.train)
        if not np.isfinite(end):
            raise ValueError("the training fold has no time at which patients are still under observation")
        event, time = fold.test.event & (fold.test.time <= end), np.minimum(fold.test.time, end)
        return Surv.from_arrays(fold.train.event, fold.train.time), Surv.from_arrays(event, time)

    def uno() -> float:
        return metrics.concordance_index_ipcw(*data(), fold.risk)[0]

    def ibs() -> float:
        times = time_grid(fold)
        return metrics.integrated_brier_score(*data(), survival_at(fold, times), times)

    def auc() -> float:
        times = time_grid(fold)
        return metrics.cumulative_dynamic_auc(*data(), fold.risk, times)[1]

    return {"c_index_uno": _attempt(uno), "ibs": _attempt(ibs), "auc": _attempt(auc)}


def _attempt(compute: Callable[[], float]) -> Figure:
    """Small folds break these metrics in many ways (zero weights, no case, no control); each becomes NaN with its reason."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            value = float(compute())
    except Exception as error:  # whatever a library raises here is this figure's reason, not the end of the evaluation
        return Figure(np.nan, " ".join(str(error).split()) or type(error).__name__)
    return Figure(value) if np.isfinite(value) else Figure(np.nan, "undefined (no case or no control at some time)")


def median_split(folds: list[Fold]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """time [n], event [n], high [n] (bool) of all folds: high = risk above the median of the patient's own fold.

    Risks of different folds are not on one scale, hence the split within each; the groups are pooled over folds.
    """
    time = np.concatenate([fold.test.time for fold in folds])
    event = np.concatenate([fold.test.event for fold in folds])
    high = np.concatenate([fold.risk > np.median(fold.risk) for fold in folds if len(fold.risk)] or [np.zeros(0, bool)])
    return time, event, high


def logrank(folds: list[Fold]) -> Figure:
    """p of the log-rank test between the halves of `median_split` (lifelines)."""
    time, event, high = median_split(folds)
    if not len(time):
        return Figure(np.nan, "no patient was predicted")
    if high.all() or not high.any():
        return Figure(np.nan, "one of the risk groups is empty")
    if not event.any():
        return Figure(np.nan, "no event")

    def compute() -> float:
        from lifelines.statistics import logrank_test

        return logrank_test(time[high], time[~high], event[high], event[~high]).p_value

    return _attempt(compute)
