"""A model's row of the summary from its scored folds: means, pooled figures, optimism and what a reader must be told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.calibration import d_calibration
from pipeline.evaluation.concordance import Bootstrap, Concordance, ratio
from pipeline.evaluation.folds import NO_REASON, Fold
from pipeline.evaluation.metrics import METRICS, Figure, fold_metrics, hazard_ratio, logrank
from pipeline.evaluation.summary import OPTIMISTIC


@dataclass(frozen=True)
class Scored:
    """A fold, its C-index, and the other figures by name (NaN with the reason where the fold failed)."""

    fold: Fold
    concordance: Concordance
    figures: dict[str, Figure]

    @property
    def usable(self) -> bool:
        """Whether the fold counts in the mean C-index."""
        return bool(np.isfinite(self.concordance.value))


class Control(NamedTuple):
    """One repetition on permuted training labels: mean C-index of its folds, of their best epochs, folds without a C-index."""

    honest: float
    best_epoch: float
    lost: int


def score(fold: Fold, kind: str) -> Scored:
    """The C-index of a fold and the metrics of `kind`; a fold that failed has the reason instead."""
    reason = f"failed: {fold.failure}" if fold.failure else "" if len(fold.risk) else "no test patient was predicted"
    if reason:
        return Scored(fold, Concordance(np.nan, 0, 0, reason), dict.fromkeys(METRICS[kind], Figure(np.nan, reason)))
    return Scored(fold, *fold_metrics(fold, kind))


def best_epoch_c(fold: Fold) -> Figure:
    """The highest test C-index of any epoch: what selecting the epoch on the reported fold would have printed."""
    values = fold.history.test_c_index.dropna()
    return Figure(float(values.max())) if len(values) else Figure(np.nan, "no test C-index by epoch in history.tsv")


def summary_row(
    scored: Sequence[Scored], intervals: Bootstrap, replicates: int, kind: str, controls: Sequence[Control]
) -> dict[str, object]:
    """The columns of the summary from ``modalities`` on. Figures that `kind` does not have are left out."""
    folds, usable = [s.fold for s in scored], [s for s in scored if s.usable]
    evaluated = [s for s in scored if not s.fold.failure]
    c = np.array([s.concordance.value for s in usable])
    pairs = np.array([s.concordance.pairs for s in usable])
    best = [best_epoch_c(s.fold) for s in usable]
    best_mean = _mean([figure.value for figure in best])  # over the same folds as c_index, or not at all
    honest = np.nan if any(s.fold.selection == "best_val" for s in usable) else _mean(c)  # the habit itself has none beside it
    pooled = _pooled(folds) if kind == "survival" else {}
    means, notes = _means(evaluated, kind)
    notes = [
        *_protocol_notes(folds),
        *_reasons("c_index", [(s.fold.number, s.concordance.reason) for s in evaluated if not s.usable]),
        *notes,
    ]
    notes += [*_best_notes(usable, best), *_interval_notes(intervals, replicates), *_control_notes(controls)]
    notes += [f"{name}: {figure.note}" for name, figure in pooled.items() if figure.note]
    predicted = {p: e for f in folds for p, e in zip(f.test.patient_id, f.test.event, strict=True)}
    ratio_ci = pooled.get("hazard_ratio", Figure(np.nan))
    return {
        "modalities": "+".join(dict.fromkeys(m for f in folds for m in f.modalities)),
        "patients": len(predicted),
        "events": int(sum(predicted.values())),
        "folds": len(usable),
        "c_index": _mean(c),
        "c_index_std": float(np.std(c)) if len(c) > 1 else np.nan,
        "c_index_ci_low": intervals.mean.low,
        "c_index_ci_high": intervals.mean.high,
        "c_index_pooled": float(ratio((c * pairs).sum(), pairs.sum())),
        "c_index_pooled_ci_low": intervals.pooled.low,
        "c_index_pooled_ci_high": intervals.pooled.high,
        "pairs": int(pairs.sum()),
        **means,
        **{name: figure.value for name, figure in pooled.items()},
        "hazard_ratio_ci_low": ratio_ci.low,
        "hazard_ratio_ci_high": ratio_ci.high,
        "c_index_best_epoch": best_mean,
        "optimism": round(best_mean - honest, 9) + 0.0,  # the history holds ten digits
        "c_index_shuffled": _mean(control.honest for control in controls),
        "noise_floor": _mean(control.best_epoch for control in controls),
        "unpredicted": len({p for f in folds for p in f.unpredicted} - predicted.keys()),
        "params": max((f.params for f in folds if np.isfinite(f.params)), default=np.nan),
        "train_seconds": _sum(f.train_seconds for f in folds),
        "failed_folds": ", ".join(f"{f.number} ({' '.join(f.failure.split())})" for f in folds if f.failure),
        "note": "; ".join(notes),
    }


def _pooled(folds: list[Fold]) -> dict[str, Figure]:
    """What needs the patients of all folds together."""
    return {"d_calibration_p": d_calibration(folds), "logrank_p": logrank(folds), "hazard_ratio": hazard_ratio(folds)}


def _sum(values: Iterable[float]) -> float:
    """Of the finite values; NaN where there is none."""
    known = [value for value in values if np.isfinite(value)]
    return float(sum(known)) if known else np.nan


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else np.nan


def _means(evaluated: list[Scored], kind: str) -> tuple[dict[str, float], list[str]]:
    """Mean of each other metric over the folds that have it, and notes on the folds that have not."""
    means, notes = {}, []
    for name in METRICS[kind]:
        figures = [(s.fold.number, s.figures[name]) for s in evaluated]
        means[name] = _mean(figure.value for _, figure in figures if np.isfinite(figure.value))
        notes += _reasons(name, [(number, figure.note) for number, figure in figures if figure.note])
    return means, notes


def _reasons(metric: str, lacking: list[tuple[int, str]]) -> list[str]:
    """One note a reason, with the folds that lack the metric for it."""
    by_reason: dict[str, list[str]] = {}
    for number, reason in lacking:
        by_reason.setdefault(reason, []).append(str(number))
    return [f"{metric} without fold {', '.join(numbers)}: {reason}" for reason, numbers in by_reason.items()]


def _protocol_notes(folds: list[Fold]) -> list[str]:
    chosen = [str(f.number) for f in folds if f.selection == "best_val"]
    notes = [f"{OPTIMISTIC} in fold {', '.join(chosen)}: c_index is optimistic"] if chosen else []
    notes += ["time bins fitted with the test patients (bins_from: cohort)"] if any(f.bins_from == "cohort" for f in folds) else []
    for fold in folds:
        silent = sum(reason == NO_REASON for reason in fold.unpredicted.values())
        notes += [f"fold {fold.number}: {silent} test patients have neither a prediction nor a reason"] if silent else []
    return notes


def _best_notes(usable: list[Scored], best: list[Figure]) -> list[str]:
    lacking = [str(s.fold.number) for s, figure in zip(usable, best, strict=True) if figure.note]
    return [f"c_index_best_epoch: no test C-index by epoch in fold {', '.join(lacking)}"] if lacking else []


def _interval_notes(intervals: Bootstrap, replicates: int) -> list[str]:
    lost = intervals.mean.lost
    return [f"interval from {replicates - lost} of {replicates} bootstrap replicates: the others had no comparable pair"] if lost else []


def _control_notes(controls: Sequence[Control]) -> list[str]:
    lost = sum(control.lost for control in controls)
    return [f"shuffled labels: {lost} folds without a C-index"] if lost else []
