"""From a model's folds to its row of the summary: `evaluate_model`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.evaluation.concordance import Bootstrap, Concordance, Interval, bootstrap_intervals, harrell, ratio
from pipeline.evaluation.folds import NO_REASON, Fold, read_folds
from pipeline.evaluation.metrics import Figure, fold_metrics, logrank
from pipeline.evaluation.summary import COLUMNS, OPTIMISTIC
from pipeline.seeds import seed_from
from pipeline.tables import write_table

log = logging.getLogger(__name__)
OTHERS = ("c_index_uno", "ibs", "auc")


@dataclass(frozen=True)
class Scored:
    """A fold, its C-index, and the other figures by name (empty where the fold failed)."""

    fold: Fold
    concordance: Concordance
    figures: dict[str, Figure]

    @property
    def usable(self) -> bool:
        """Whether the fold counts in the mean C-index."""
        return bool(np.isfinite(self.concordance.value))


def evaluate_model(
    *, cohort: str, model: str, endpoint: str, folds: list[Path], patients: Path, splits: Path, output: Path, bootstrap: int, seed: int
) -> None:
    """Write ``metrics.tsv`` into every folder of `folds` (``fold<k>``) and the model's row of the summary to `output`.

    `bootstrap` is the number of replicates. Raises `InputError` when predictions are absent or contradict the cohort; a fold
    whose training failed, or whose predictions are not finite, is listed in `failed_folds` and the others go on.
    """
    scored = [_score(fold) for fold in read_folds([Path(f) for f in folds], patients, splits)]
    usable = [s for s in scored if s.usable]
    intervals = _intervals(usable, replicates=bootstrap, seed=seed_from(cohort, seed))
    by_fold = dict(zip([s.fold.number for s in usable], intervals.folds, strict=True))
    for one in scored:
        write_table(_fold_table(one, by_fold.get(one.fold.number)), one.fold.folder / "metrics.tsv")
    row = {"model": model, "endpoint": endpoint, **_row(scored, intervals, bootstrap)}
    write_table(pd.DataFrame([row], columns=list(COLUMNS)), output)
    log.info("%s/%s: C-index %.3f over %d folds", cohort, model, row["c_index"], row["folds"])


def _score(fold: Fold) -> Scored:
    reason = f"failed: {fold.failure}" if fold.failure else "" if len(fold.risk) else "no test patient was predicted"
    if reason:
        return Scored(fold, Concordance(np.nan, 0, 0, reason), {name: Figure(np.nan, reason) for name in OTHERS})
    return Scored(fold, harrell(fold.test.time, fold.test.event, fold.risk), fold_metrics(fold))


def _intervals(usable: list[Scored], *, replicates: int, seed: int) -> Bootstrap:
    arrays = [(s.fold.test.time, s.fold.test.event, s.fold.risk) for s in usable]
    return bootstrap_intervals(arrays, [s.fold.number for s in usable], replicates=replicates, seed=seed)


def best_epoch_c(fold: Fold) -> Figure:
    """The highest test C-index of any epoch: what selecting the epoch on the reported fold would have printed."""
    values = fold.history.test_c_index.dropna()
    return Figure(float(values.max())) if len(values) else Figure(np.nan, "no test C-index by epoch in history.tsv")


def _fold_table(scored: Scored, interval: Interval | None) -> pd.DataFrame:
    fold, c = scored.fold, scored.concordance
    low, high = (interval.low, interval.high) if interval else (np.nan, np.nan)
    rows = [("c_index", c.value, low, high, c.reason)]
    rows += [(name, figure.value, np.nan, np.nan, figure.note) for name, figure in scored.figures.items()]
    rows += [("c_index_best_epoch", best_epoch_c(fold).value, np.nan, np.nan, best_epoch_c(fold).note)]
    p = logrank([fold])
    rows += [("logrank_p", p.value, np.nan, np.nan, p.note)]
    counts = {"patients": len(fold.risk), "events": int(fold.test.event.sum()), "pairs": c.pairs, "unpredicted": len(fold.unpredicted)}
    rows += [(name, value, np.nan, np.nan, "") for name, value in counts.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "ci_low", "ci_high", "note"])


def _row(scored: list[Scored], intervals: Bootstrap, replicates: int) -> dict[str, object]:
    folds, usable = [s.fold for s in scored], [s for s in scored if s.usable]
    evaluated = [s for s in scored if not s.fold.failure]
    c = np.array([s.concordance.value for s in usable])
    pairs = np.array([s.concordance.pairs for s in usable])
    best = [best_epoch_c(s.fold) for s in usable]
    p = logrank(folds)
    c_mean = _mean(c)
    best_mean = _mean([figure.value for figure in best])  # over the same folds as c_index, or not at all
    means, notes = _means(evaluated)
    notes = [*_protocol_notes(folds), *_fold_notes(evaluated), *notes, *_best_notes(usable, best), *_interval_notes(intervals, replicates)]
    notes += [f"logrank_p: {p.note}"] if p.note else []
    return {
        "modalities": "+".join(dict.fromkeys(m for f in folds for m in f.modalities)),
        "patients": sum(len(f.risk) for f in folds),
        "events": sum(int(f.test.event.sum()) for f in folds),
        "folds": len(usable),
        "c_index": c_mean,
        "c_index_std": float(np.std(c)) if len(c) else np.nan,
        "c_index_ci_low": intervals.mean.low,
        "c_index_ci_high": intervals.mean.high,
        "c_index_pooled": float(ratio((c * pairs).sum(), pairs.sum())),
        "c_index_pooled_ci_low": intervals.pooled.low,
        "c_index_pooled_ci_high": intervals.pooled.high,
        "pairs": int(pairs.sum()),
        **means,
        "logrank_p": p.value,
        "c_index_best_epoch": best_mean,
        "optimism": best_mean - c_mean,
        "unpredicted": sum(len(f.unpredicted) for f in folds),
        "params": max((f.params for f in folds if np.isfinite(f.params)), default=np.nan),
        "train_seconds": sum(f.train_seconds for f in folds if np.isfinite(f.train_seconds)),
        "failed_folds": ", ".join(f"{f.number} ({' '.join(f.failure.split())})" for f in folds if f.failure),
        "note": "; ".join(notes),
    }


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else np.nan


def _means(evaluated: list[Scored]) -> tuple[dict[str, float], list[str]]:
    """Mean of each other metric over the folds that have it, and a note for each fold that has not."""
    means, notes = {}, []
    for name in OTHERS:
        known = [s.figures[name].value for s in evaluated if np.isfinite(s.figures[name].value)]
        means[name] = _mean(known)
        notes += [f"{name} without fold {s.fold.number}: {s.figures[name].note}" for s in evaluated if s.figures[name].note]
    return means, notes


def _protocol_notes(folds: list[Fold]) -> list[str]:
    chosen = [str(f.number) for f in folds if f.selection == "best_val"]
    notes = [f"{OPTIMISTIC} in fold {', '.join(chosen)}: c_index is optimistic"] if chosen else []
    for fold in folds:
        silent = sum(reason == NO_REASON for reason in fold.unpredicted.values())
        notes += [f"fold {fold.number}: {silent} test patients have neither a prediction nor a reason"] if silent else []
    return notes


def _fold_notes(evaluated: list[Scored]) -> list[str]:
    return [f"c_index without fold {s.fold.number}: {s.concordance.reason}" for s in evaluated if not s.usable]


def _best_notes(usable: list[Scored], best: list[Figure]) -> list[str]:
    lacking = [str(s.fold.number) for s, figure in zip(usable, best, strict=True) if figure.note]
    return [f"c_index_best_epoch: no test C-index by epoch in fold {', '.join(lacking)}"] if lacking else []


def _interval_notes(intervals: Bootstrap, replicates: int) -> list[str]:
    lost = intervals.mean.lost
    return [f"interval from {replicates - lost} of {replicates} bootstrap replicates: the others had no comparable pair"] if lost else []
