"""Harrell's and Uno's concordance from comparable pairs, and their bootstrap by patient (numpy only: the training loop calls `harrell`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.seeds import seed_from

TIED_RISK = 1e-8  # the references call sksurv with this tolerance
BLOCK_ROWS, BLOCK_CELLS = 256, 1 << 21  # a block's resampled sum stays far below 2^23, where float32 still holds halves exactly


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


class Pairs(NamedTuple):
    """Who can be compared with whom, whatever the model: the patient at ``order[events[e]]`` with all at ``order[first[e]:]``.

    order [n]: patients by time, at a tie those with the event first; events [E], first [E]: positions in it, ascending.
    A patient censored at the very time of another's event outlived him; two events at one time are not comparable.
    """

    order: np.ndarray
    events: np.ndarray
    first: np.ndarray

    @property
    def opponents(self) -> np.ndarray:
        """[E]: how many patients outlived each patient with the event."""
        return len(self.order) - self.first


def comparable_pairs(time: np.ndarray, event: np.ndarray) -> Pairs:
    """The comparable pairs of patients with `time` [n] and `event` [n] (0/1)."""
    time, event = np.asarray(time, float), np.asarray(event, bool)
    order = np.lexsort((~event, time))
    events = np.flatnonzero(event[order])
    at = time[order][events]
    tied = np.searchsorted(at, at, "right") - np.searchsorted(at, at, "left")
    return Pairs(order, events, np.searchsorted(time[order], at, "left") + tied)


def _blocks(pairs: Pairs, risk: np.ndarray) -> Iterator[tuple[slice, int, np.ndarray]]:
    """(rows, start, score): runs of events, the first position any of them is compared with, and the score of each pair.

    score [rows, n - start] float32: 1 where the patient with the event has the higher risk, 1/2 at a tie, else 0.
    """
    ordered = np.asarray(risk, float)[pairs.order]
    tied = np.diff(np.sort(ordered)).min(initial=np.inf) <= TIED_RISK
    height = max(1, min(BLOCK_ROWS, BLOCK_CELLS // max(1, len(ordered))))
    for top in range(0, len(pairs.events), height):
        rows = slice(top, top + height)
        start = int(pairs.first[top])
        lead = ordered[pairs.events[rows], None] - ordered[start:]
        score = (lead > TIED_RISK).astype(np.float32)
        if tied:
            score += lead >= -TIED_RISK
            score *= np.float32(0.5)
        reach = int(pairs.first[rows][-1]) - start  # columns beyond it are comparable for every row
        score[:, :reach] *= np.arange(start, start + reach) >= pairs.first[rows, None]
        yield rows, start, score


def concordant_pairs(pairs: Pairs, risk: np.ndarray) -> np.ndarray:
    """[E]: of the pairs of each patient with the event, how many `risk` [n] (higher = earlier event) orders rightly; ties 1/2."""
    return np.concatenate([np.zeros(0), *(score.sum(1, dtype=float) for _, _, score in _blocks(pairs, risk))])


def harrell(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> Concordance:
    """Harrell's C of `risk` [n] (higher = earlier event) for `time` [n] and `event` [n] (0/1); ties in risk within 1e-8 count 1/2.

    With one time for all it is the AUC of `risk` for `event`. Never raises on the data: no comparable pair or a risk that is
    not finite gives NaN and the reason.
    """
    return harrell_and_uno(time, event, risk)[0]


def harrell_and_uno(time: np.ndarray, event: np.ndarray, risk: np.ndarray, weight: np.ndarray | None = None) -> tuple[Concordance, float]:
    """`harrell` and, from the same pairs, Uno's C (Uno et al. 2011): those of patient i counted `weight` [n] = 1/G(t_i)² times.

    G is the probability of still being observed; weight 0 truncates. Uno's C is NaN where no pair has a weight.
    """
    events = int(np.sum(np.asarray(event, bool)))
    wrong = int(np.sum(~np.isfinite(risk)))
    if wrong:
        return Concordance(np.nan, 0, events, f"the risk of {wrong} of {len(risk)} patients is not a finite number"), np.nan
    pairs = comparable_pairs(time, event)
    count = int(pairs.opponents.sum())
    if count == 0:
        return Concordance(np.nan, 0, events, f"no comparable pair ({len(risk)} patients, {events} events)"), np.nan
    concordant = concordant_pairs(pairs, risk)
    of_events = np.zeros(len(concordant)) if weight is None else np.asarray(weight, float)[pairs.order][pairs.events]
    uno = ratio(of_events @ concordant, of_events @ pairs.opponents)
    return Concordance(float(concordant.sum() / count), count, events), float(uno)


@lru_cache(maxsize=1)
def draw(patients: int, replicates: int, seed: int) -> np.ndarray:
    """[replicates, patients] float32: how often each bootstrap sample (as many draws as patients) holds each patient.

    It depends on the number of patients and the seed alone, so all models that predict the same patients share it.
    """
    random = np.random.default_rng(seed_from(seed, "bootstrap"))
    counts = np.empty((replicates, patients), np.float32)
    for row in counts:
        row[:] = np.bincount(random.integers(0, patients, patients), minlength=patients)
    counts.flags.writeable = False
    return counts


def resampled_pairs(pairs: Pairs, counts: np.ndarray) -> np.ndarray:
    """[replicates]: comparable pairs of each sample; counts [replicates, n] in the order of `pairs`."""
    before = np.cumsum(counts, axis=1)
    later = before[:, -1:] - np.take(before, pairs.first - 1, axis=1)  # an event is itself before those who outlived it: first > 0
    return (np.take(counts, pairs.events, axis=1) * later).sum(1, dtype=float)


def resampled_concordant(pairs: Pairs, risk: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[replicates]: the same for concordant pairs. Every partial sum is a multiple of 1/2 and exact in any order of summation."""
    total = np.zeros(len(counts))
    for rows, start, score in _blocks(pairs, risk):
        won = np.take(counts, pairs.events[rows], axis=1) @ score
        total += np.einsum("rn,rn->r", won, counts[:, start:])
    return total


def bootstrap_intervals(folds: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]], *, replicates: int, seed: int) -> Bootstrap:
    """Resample the patients of the whole cohort; `folds` holds (patient_id, time, event, risk) of each.

    One draw over all patients; each fold takes the counts of its own, so that a patient who is tested in several folds is in or
    out of all of them together. In a replicate the mean runs over the folds that have a comparable pair.
    """
    patients = np.unique(np.concatenate([ids for ids, *_ in folds] or [np.zeros(0, str)]))
    counts = draw(len(patients), replicates, seed)
    concordant, pairs = np.empty((2, replicates, len(folds)))
    for at, (ids, time, event, risk) in enumerate(folds):
        comparable = comparable_pairs(time, event)
        own = np.take(counts, np.searchsorted(patients, ids)[comparable.order], axis=1)
        concordant[:, at] = resampled_concordant(comparable, risk, own)
        pairs[:, at] = resampled_pairs(comparable, own)
    c = ratio(concordant, pairs)
    pooled = ratio(concordant.sum(1), pairs.sum(1))
    return Bootstrap(interval(mean_of_known(c)), interval(pooled), [interval(column) for column in c.T])


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, NaN where bottom is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.asarray(bottom) > 0)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """[replicates]: the mean over folds [replicates, folds] that are not NaN, NaN where none is known."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0).sum(1), known.sum(1))


def interval(values: np.ndarray) -> Interval:
    """The 2.5th and 97.5th percentile of the replicates that are not NaN."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Interval(float(low), float(high), len(values) - len(known))
