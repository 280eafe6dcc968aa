"""The metrics of a fold beside Harrell's C, and the risk halves over folds.

The training fold is the reference for censoring. What cannot be computed is NaN with the reason, never 0 and never left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.evaluation import censored
from pipeline.evaluation.censored import kaplan_meier
from pipeline.evaluation.concordance import Concordance, harrell, harrell_and_uno
from pipeline.evaluation.folds import Fold, FollowUp

GRID_POINTS = 100
METRICS = {"survival": ("c_index_uno", "ibs", "auc"), "binary": ("auc", "brier", "accuracy", "majority")}
NO_CURVE = "predictions.tsv has no survival curve (surv_<t>)"


class Figure(NamedTuple):
    """A value with its 95 % interval where it has one, or NaN and the reason in `note`."""

    value: float
    note: str = ""
    low: float = np.nan
    high: float = np.nan


def attempt(compute: Callable[[], float]) -> Figure:
    """The figure, or NaN with the message of the `ValueError` that says why it does not exist."""
    try:
        with np.errstate(all="ignore"):
            value = float(compute())
    except ValueError as error:
        return Figure(np.nan, str(error))
    return Figure(value) if np.isfinite(value) else Figure(np.nan, "undefined (no case or no control at some time)")


def horizon(train: FollowUp) -> float:
    """The last time (months) up to which censoring is known well enough to weight by it.

    The largest training time not above the 90th percentile of follow-up at which the censoring survival is above 0 (our
    choice: beyond it, single patients carry weights of 1/G² in the hundreds). NaN where there is none.
    """
    if not len(train.time):
        return np.nan
    times, observed, _ = kaplan_meier(train.time, train.event, censoring=True)
    usable = times[(observed > 0) & (times <= np.quantile(train.time, 0.9))]
    return float(usable.max()) if len(usable) else np.nan


def time_grid(fold: Fold) -> np.ndarray:
    """Up to 100 equally spaced times (months) where the fold is identifiable; raises `ValueError` with the reason if there are none.

    From the 10th percentile of the training follow-up or the first test event, whichever is later, to the horizon, the last
    time bin or the end of test follow-up, whichever is first (our choice).
    """
    if not fold.test.event.any():
        raise ValueError("no event in the test fold")
    if not len(fold.edges):
        raise ValueError(NO_CURVE)
    start = max(np.quantile(fold.train.time, 0.1), fold.test.time[fold.test.event].min())
    observed = np.nextafter(min(horizon(fold.train), fold.test.time.max()), 0)  # times must lie before the end of (truncated) follow-up
    end = min(observed, fold.edges.max())
    if not start < end:
        raise ValueError(f"no identifiable time: starts at {start:.4g}, ends at {end:.4g} months")
    return np.linspace(start, end, GRID_POINTS)


def survival_at(fold: Fold, times: np.ndarray) -> np.ndarray:
    """[n, T]: the predicted curves at `times` ([T], or [n, T]: each patient's own).

    Linear between the time bins' edges, with S(0) = 1, and flat beyond the last.
    """
    order = np.argsort(fold.edges)
    edges = np.concatenate([[0.0], fold.edges[order]])
    curves = np.column_stack([np.ones(len(fold.survival)), fold.survival[:, order]])
    times = np.broadcast_to(np.clip(times, 0, edges[-1]), (len(curves), np.shape(times)[-1]))
    right = np.clip(np.searchsorted(edges, times, "left"), 1, len(edges) - 1)
    share = (times - edges[right - 1]) / (edges[right] - edges[right - 1])
    rows = np.arange(len(curves))[:, None]
    return (1 - share) * curves[rows, right - 1] + share * curves[rows, right]


def fold_metrics(fold: Fold, kind: str = "survival") -> tuple[Concordance, dict[str, Figure]]:
    """Harrell's C and the metrics of `METRICS[kind]`.

    survival: ``c_index_uno`` (truncated at the horizon; Uno et al. 2011), ``ibs`` (Graf et al. 1999), ``auc`` (of the risk over
    time; Uno et al. 2007, mean of Lambert and Chevret 2016). binary: ``auc``, ``brier`` (mean squared error of the probability),
    ``accuracy`` at probability 0.5, ``majority`` (share of test patients with the commoner label of the training fold: what guessing
    scores).
    """
    return _binary_metrics(fold) if kind == "binary" else _survival_metrics(fold)


def _survival_metrics(fold: Fold) -> tuple[Concordance, dict[str, Figure]]:
    test, risk, end = fold.test, fold.risk, horizon(fold.train)
    if not np.isfinite(end):
        unknown = Figure(np.nan, "the training fold has no time at which patients are still under observation")
        return harrell(test.time, test.event, risk), dict.fromkeys(METRICS["survival"], unknown)
    observed = kaplan_meier(fold.train.time, fold.train.event, censoring=True)
    event, time = test.event & (test.time <= end), np.minimum(test.time, end)

    def ibs() -> float:
        times = time_grid(fold)
        scores = censored.brier_scores(observed, time, event, survival_at(fold, times), times)
        return float(((scores[1:] + scores[:-1]) / 2 * np.diff(times)).sum() / (times[-1] - times[0]))

    def auc() -> float:
        times = time_grid(fold)
        alive = kaplan_meier(time, event).at(times)
        return censored.mean_auc(censored.dynamic_auc(observed, time, event, risk, times), alive)

    weight = censored.inverse_weights(observed, time, event) ** 2
    c, uno = harrell_and_uno(test.time, test.event, risk, weight)  # who outlives an event before the horizon does so without it
    known = Figure(uno) if np.isfinite(uno) else Figure(np.nan, c.reason or "no comparable pair before the horizon")
    return c, {"c_index_uno": known, "ibs": attempt(ibs), "auc": attempt(auc)}


def _binary_metrics(fold: Fold) -> tuple[Concordance, dict[str, Figure]]:
    label = fold.test.event
    c = harrell(fold.test.time, label, fold.risk)
    guess = 2 * fold.train.event.sum() > len(fold.train.event)
    figures = {"auc": Figure(c.value, c.reason), "majority": Figure(float(np.mean(label == guess)))}
    if len(fold.edges) != 1:
        unknown = Figure(np.nan, "predictions.tsv has no probability (one column surv_<window>)")
        return c, figures | {"brier": unknown, "accuracy": unknown}
    probability = 1 - fold.survival[:, 0]
    figures["brier"] = Figure(float(np.mean((probability - label) ** 2)))
    figures["accuracy"] = Figure(float(np.mean((probability > 0.5) == label)))
    return c, figures


def median_split(folds: list[Fold]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """time [n], event [n], high [n] (bool) of the n patients of all folds: high = risk above the median of the patient's own fold.

    Risks of different folds are not on one scale, hence the split within each; the groups are pooled over folds. A patient who
    is tested in several folds counts once, in the group of most of his folds, ties high (our choice).
    """
    return _halves(folds)[:3]


def _halves(folds: list[Fold]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`median_split` and the stratum [n]: the fold, or one for all once somebody is tested twice and belongs to no single fold."""
    folds = [fold for fold in folds if len(fold.risk)]
    ids = np.concatenate([np.zeros(0, str), *(fold.test.patient_id for fold in folds)])
    time, event = (np.concatenate([np.zeros(0), *(getattr(fold.test, name) for fold in folds)]) for name in ("time", "event"))
    high = np.concatenate([np.zeros(0), *(fold.risk > np.median(fold.risk) for fold in folds)])
    stratum = np.concatenate([np.zeros(0, int), *(np.full(len(fold.risk), fold.number) for fold in folds)])
    patients, first, which, times = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    if len(patients) < len(ids):
        high, stratum = (np.bincount(which, weights=high) / times)[which] >= 0.5, np.zeros(len(ids), int)
    return time[first], event[first].astype(bool), high[first].astype(bool), stratum[first]


def _group_table(folds: list[Fold]) -> censored.EventTable:
    time, event, high, stratum = _halves(folds)
    if not len(time):
        raise ValueError("no patient was predicted")
    if high.all() or not high.any():
        raise ValueError("one of the risk groups is empty")
    if not event.any():
        raise ValueError("no event")
    return censored.event_table(time, event, high, stratum)


def logrank(folds: list[Fold]) -> Figure:
    """p of the log-rank test between the halves of `median_split`, stratified by fold (unstratified once somebody is tested twice)."""
    return attempt(lambda: censored.logrank_p(_group_table(folds)))


def hazard_ratio(folds: list[Fold]) -> Figure:
    """Hazard of the high half relative to the low one with its Wald interval: Cox's model, Efron's ties, strata as in `logrank`."""
    try:
        value, low, high = censored.hazard_ratio(_group_table(folds))
    except ValueError as error:
        return Figure(np.nan, str(error))
    return Figure(value, "", low, high)
