"""Censored data in arrays: Kaplan–Meier, the weighted Brier score and AUC over time, log-rank and hazard ratio (numpy only).

Written out because a cohort of 10,000 patients and 40 models needs each of them hundreds of times; the tests hold them to
scikit-survival and lifelines on random data with ties and censoring.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.concordance import TIED_RISK

Z95 = 1.959963984540054
NEWTON_STEPS = 100


class KaplanMeier(NamedTuple):
    """A step function: survival [m] from times [m] (ascending) on, 1 before; variance [m] is Greenwood's sum Σ d/(n(n−d))."""

    times: np.ndarray
    survival: np.ndarray
    variance: np.ndarray

    def at(self, times: np.ndarray) -> np.ndarray:
        """The survival at `times` (any shape), right-continuous."""
        return np.concatenate([[1.0], self.survival])[np.searchsorted(self.times, times, "right")]

    def interval(self, time: float) -> tuple[float, float]:
        """95 % interval at `time` from Greenwood's variance of log(−log S); NaN while the survival is 1 or once it is 0."""
        at = int(np.searchsorted(self.times, time, "right")) - 1
        s = self.survival[at] if at >= 0 else 1.0
        if not 0 < s < 1:
            return np.nan, np.nan
        spread = Z95 * math.sqrt(self.variance[at]) / abs(math.log(s))
        return float(s ** math.exp(spread)), float(s ** math.exp(-spread))


def kaplan_meier(time: np.ndarray, event: np.ndarray, *, censoring: bool = False) -> KaplanMeier:
    """Kaplan–Meier of `time` [n], `event` [n]; with `censoring` that of staying under observation (events leave before the censored)."""
    times, at = np.unique(time, return_inverse=True)
    gone = np.bincount(at, minlength=len(times))
    deaths = np.bincount(at, weights=np.asarray(event, float), minlength=len(times))
    risk = len(time) - np.cumsum(gone) + gone
    if censoring:
        risk, deaths = risk - deaths, gone - deaths
    hazard = np.divide(deaths, risk, out=np.zeros(len(times)), where=risk > 0)
    left = risk * (risk - deaths)
    variance = np.divide(deaths, left, out=np.zeros(len(times)), where=left > 0)
    return KaplanMeier(times, np.cumprod(1 - hazard), np.cumsum(variance))


def inverse_weights(observed: KaplanMeier, time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """[n]: 1/G(t) for patients with the event, 0 for the censored; `observed` is the Kaplan–Meier curve of censoring."""
    chance = observed.at(time)
    return np.divide(1.0, chance, out=np.zeros(len(time)), where=event & (chance > 0))


def brier_scores(observed: KaplanMeier, time: np.ndarray, event: np.ndarray, survival: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[T]: the Brier score of `survival` [n, T] at `times` [T], weighted for censoring (Graf et al. 1999)."""
    dead = ((time[:, None] <= times) & event[:, None]) * inverse_weights(observed, time, event)[:, None]
    alive = (time[:, None] > times) / observed.at(times)
    return (survival**2 * dead + (1 - survival) ** 2 * alive).mean(0)


def dynamic_auc(observed: KaplanMeier, time: np.ndarray, event: np.ndarray, risk: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[T]: cumulative/dynamic AUC of `risk` [n] at `times` [T] (Uno et al. 2007): cases died by then, controls live on; ties count 1/2."""
    order = np.argsort(-risk, kind="stable")
    start = np.flatnonzero(np.diff(risk[order], prepend=np.inf) < -TIED_RISK)  # patients of one risk share a threshold
    time, event = time[order], event[order]
    cases = ((time[:, None] <= times) & event[:, None]) * inverse_weights(observed, time, event)[:, None]
    cases = np.add.reduceat(cases, start)
    controls = np.add.reduceat((time[:, None] > times).astype(float), start)
    won = (controls * (np.cumsum(cases, 0) - cases / 2)).sum(0)
    return won / (cases.sum(0) * controls.sum(0))


def mean_auc(auc: np.ndarray, alive: np.ndarray) -> float:
    """Mean over times [T], weighted by the drop of the survival `alive` [T] (Lambert and Chevret 2016)."""
    return float((auc * -np.diff(alive, prepend=1.0)).sum() / (1 - alive[-1]))


class EventTable(NamedTuple):
    """One row a stratum and time with an event: deaths, at risk, and those of them in the high group; all [m] float."""

    deaths: np.ndarray
    deaths_high: np.ndarray
    risk: np.ndarray
    risk_high: np.ndarray


def event_table(time: np.ndarray, event: np.ndarray, high: np.ndarray, stratum: np.ndarray) -> EventTable:
    """Counts for `logrank_p` and `hazard_ratio` from `time`, `event`, `high` (bool) and `stratum`, all [n], n > 0."""
    order = np.lexsort((time, stratum))
    time, event, high, stratum = time[order], event[order], high[order], stratum[order]
    start = np.flatnonzero(np.r_[True, (np.diff(time) != 0) | (np.diff(stratum) != 0)])
    end = np.searchsorted(stratum, stratum[start], "right")
    before = np.concatenate([[0], np.cumsum(high)])
    deaths, deaths_high = (np.add.reduceat(flags.astype(float), start) for flags in (event, event & high))
    counts = (deaths, deaths_high, (end - start).astype(float), (before[end] - before[start]).astype(float))
    return EventTable(*(column[deaths > 0] for column in counts))


def logrank_p(table: EventTable) -> float:
    """p of the log-rank test between the groups, stratified (Mantel's hypergeometric variance); `ValueError` where it has none."""
    share = table.risk_high / table.risk
    alive = np.divide(table.risk - table.deaths, table.risk - 1, out=np.zeros(len(share)), where=table.risk > 1)
    variance = float((table.deaths * share * (1 - share) * alive).sum())
    if variance <= 0:
        raise ValueError("the two risk groups are never at risk together")
    return math.erfc(abs(float((table.deaths_high - table.deaths * share).sum())) / math.sqrt(2 * variance))


def hazard_ratio(table: EventTable) -> tuple[float, float, float]:
    """Hazard ratio high : low with its 95 % interval (Cox, Efron's ties, stratified, Wald), by Newton's method in one dimension.

    Raises `ValueError` where the likelihood has no maximum: no event, or all that could be in either group are in one.
    """
    which = np.repeat(np.arange(len(table.deaths)), table.deaths.astype(int))
    first = np.concatenate([[0.0], np.cumsum(table.deaths)[:-1]]) if len(which) else np.zeros(0)
    gone = (np.arange(len(which)) - first[which]) / table.deaths[which]  # Efron: tied deaths leave one after the other
    at_high = table.risk_high[which] - gone * table.deaths_high[which]
    at_low = (table.risk - table.risk_high)[which] - gone * (table.deaths - table.deaths_high)[which]
    died = float(table.deaths_high.sum())
    if not ((at_low <= 0) & (at_high > 0)).sum() < died < (at_high > 0).sum():
        raise ValueError("every event that tells the groups apart lies in one of them")
    beta = 0.0
    for _ in range(NEWTON_STEPS):
        share = at_high * math.exp(beta) / (at_low + at_high * math.exp(beta))
        information = float((share * (1 - share)).sum())
        step = (died - float(share.sum())) / information
        beta += max(-1.0, min(1.0, step))
        if abs(step) < 1e-12:
            break
    spread = Z95 / math.sqrt(information)
    return math.exp(beta), math.exp(beta - spread), math.exp(beta + spread)
