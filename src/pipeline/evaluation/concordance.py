"""Harrell's concordance in matrix form, and its bootstrap (numpy only: the training loop calls `harrell` after every epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.seeds import seed_from

TIED_RISK = 1e-8  # the references call sksurv with this tolerance


class Concordance(NamedTuple):
    """value (NaN with a `reason` where it does not exist), comparable `pairs`, `events` among the patients."""

    value: float
    pairs: int
    events: int
    reason: str = ""


class Interval(NamedTuple):
    """95 % percentile interval; `lost` replicates had no comparable pair and are not in it."""

    low: float
    high: float
    lost: int


class Bootstrap(NamedTuple):
    """Intervals of the mean over folds, of the pairs within folds pooled, and of each fold by itself."""

    mean: Interval
    pooled: Interval
    folds: list[Interval]


def pair_matrices(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """C [n, n]: 1 where patient i had the event before j's time ended; K [n, n]: 1 where i also has the higher risk, 1/2 at a tie.

    A patient censored at the very time of another's event outlived him; two events at one time are not comparable.
    Harrell's C is ΣK / ΣC; with w_i copies of patient i (a bootstrap sample) it is w'Kw / w'Cw.
    """
    time, event, risk = np.asarray(time, float), np.asarray(event, bool), np.asarray(risk, float)
    outlived = (time[:, None] < time) | ((time[:, None] == time) & ~event)
    comparable = (event[:, None] & outlived).astype(float)
    lead = risk[:, None] - risk
    score = np.where(np.abs(lead) <= TIED_RISK, 0.5, lead > 0)
    return comparable, comparable * score


def harrell(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> Concordance:
    """Harrell's C of `risk` [n] (higher = earlier event) for `time` [n] and `event` [n] (0/1); ties in risk within 1e-8 count 1/2.

    Never raises on the data: no comparable pair or a risk that is not finite gives NaN and the reason.
    """
    events = int(np.sum(np.asarray(event, bool)))
    wrong = int(np.sum(~np.isfinite(risk)))
    if wrong:
        return Concordance(np.nan, 0, events, f"the risk of {wrong} of {len(risk)} patients is not a finite number")
    comparable, score = pair_matrices(time, event, risk)
    pairs = int(comparable.sum())
    if pairs == 0:
        return Concordance(np.nan, 0, events, f"no comparable pair ({len(risk)} patients, {events} events)")
    return Concordance(float(score.sum() / pairs), pairs, events)


def bootstrap_intervals(
    folds: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], names: Sequence[object], *, replicates: int, seed: int
) -> Bootstrap:
    """Resample patients within folds; `folds` holds (time, event, risk) of each, `names` seeds each fold's draw by its name.

    All models of a study draw the same patients when their test folds are the same. In a replicate the mean runs over the
    folds that have a comparable pair. The counts are integers, hence the sums are exact in any order of summation.
    """
    concordant, pairs = np.empty((2, replicates, len(folds)))
    for at, (fold, name) in enumerate(zip(folds, names, strict=True)):
        comparable, score = pair_matrices(*fold)
        n = len(comparable)
        rng = np.random.default_rng(seed_from(seed, "bootstrap", name))
        counts = rng.multinomial(n, np.full(n, 1 / n), size=replicates).astype(float) if n else np.zeros((replicates, 0))
        concordant[:, at] = ((counts @ score) * counts).sum(1)
        pairs[:, at] = ((counts @ comparable) * counts).sum(1)
    c = ratio(concordant, pairs)
    known = np.isfinite(c)
    mean = ratio(np.where(known, c, 0).sum(1), known.sum(1))
    pooled = ratio(concordant.sum(1), pairs.sum(1))
    return Bootstrap(_interval(mean), _interval(pooled), [_interval(column) for column in c.T])


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, NaN where bottom is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.asarray(bottom) > 0)


def _interval(values: np.ndarray) -> Interval:
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Interval(float(low), float(high), len(values) - len(known))
