"""From a model's folds to its row of the summary: `evaluate_model`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.evaluation.calibration import calibration_table
from pipeline.evaluation.concordance import Bootstrap, Interval, bootstrap_intervals, harrell
from pipeline.evaluation.folds import Cohort, Fold, folds_of, read_cohort
from pipeline.evaluation.metrics import METRICS, hazard_ratio, logrank
from pipeline.evaluation.row import Control, Scored, best_epoch_c, score, summary_row
from pipeline.evaluation.summary import COLUMNS
from pipeline.seeds import seed_from
from pipeline.tables import write_table

log = logging.getLogger(__name__)


def evaluate_model(
    *,
    cohort: str,
    model: str,
    endpoint: str,
    folds: Sequence[Path],
    patients: Path,
    splits: Path,
    output: Path,
    bootstrap: int,
    seed: int,
    kind: str = "survival",
    shuffled: Sequence[Sequence[Path]] = (),
    calibration: Path | None = None,
) -> None:
    """Write ``metrics.tsv`` into every folder of `folds` (``fold<k>``), the model's row of the summary, and its calibration table.

    kind: ``survival`` (time and event) or ``binary`` (event is the label, one time for all: C is then the AUC). shuffled: for each
    repetition of the control the fold folders of training on permuted labels. `bootstrap` is the number of replicates.
    Raises `InputError` when predictions are absent or contradict the cohort; a fold whose training failed, or whose
    predictions are not finite, is listed in `failed_folds` and the others go on.
    """
    known = read_cohort(patients, splits)
    _check_kind(kind, known, patients)
    scored = [score(fold, kind) for fold in folds_of(folds, known)]
    usable = [s for s in scored if s.usable]
    intervals = _intervals(usable, replicates=bootstrap, seed=seed_from(cohort, seed))
    by_fold = dict(zip([s.fold.number for s in usable], intervals.folds, strict=True))
    for one in scored:
        write_table(_fold_table(one, by_fold.get(one.fold.number), kind), one.fold.folder / "metrics.tsv")
    controls = [_control(folds_of(folders, known)) for folders in shuffled]
    row = {"model": model, "endpoint": endpoint, "splits": known.splits[:12], **summary_row(scored, intervals, bootstrap, kind, controls)}
    write_table(pd.DataFrame([row], columns=list(COLUMNS)), output)
    if calibration is not None:
        write_table(calibration_table([s.fold for s in scored], kind), calibration)
    log.info("%s/%s: C-index %.3f over %d folds", cohort, model, row["c_index"], row["folds"])


def _check_kind(kind: str, cohort: Cohort, patients: Path) -> None:
    if kind not in METRICS:
        raise InputError("unknown kind of endpoint", found=kind, expected=" or ".join(METRICS))
    times = cohort.follow_up.time.unique()
    if kind == "binary" and len(times) > 1:
        found = f"{len(times)} times, {times.min():g} to {times.max():g}"
        remedy = "Set the endpoint's kind to survival, or give every patient the window."
        raise InputError(
            "a binary label has follow-up times", file=patients, column="time", found=found, expected="one time for all", remedy=remedy
        )


def _control(folds: Sequence[Fold]) -> Control:
    c = np.array([harrell(fold.test.time, fold.test.event, fold.risk).value for fold in folds])
    known = np.isfinite(c)
    if not known.any():
        return Control(np.nan, np.nan, len(folds))
    best = np.array([best_epoch_c(fold).value for fold in folds])
    return Control(float(c[known].mean()), float(best[known].mean()), int((~known).sum()))


def _intervals(usable: list[Scored], *, replicates: int, seed: int) -> Bootstrap:
    arrays = [(s.fold.test.patient_id, s.fold.test.time, s.fold.test.event, s.fold.risk) for s in usable]
    return bootstrap_intervals(arrays, replicates=replicates, seed=seed)


def _fold_table(scored: Scored, interval: Interval | None, kind: str) -> pd.DataFrame:
    fold, c = scored.fold, scored.concordance
    low, high = (interval.low, interval.high) if interval else (np.nan, np.nan)
    best = best_epoch_c(fold)
    rows = [("c_index", c.value, low, high, c.reason)]
    figures = {**scored.figures, "c_index_best_epoch": best}
    if kind == "survival":
        figures |= {"logrank_p": logrank([fold]), "hazard_ratio": hazard_ratio([fold])}
    rows += [(name, figure.value, figure.low, figure.high, figure.note) for name, figure in figures.items()]
    counts = {"patients": len(fold.risk), "events": int(fold.test.event.sum()), "pairs": c.pairs, "unpredicted": len(fold.unpredicted)}
    rows += [(name, value, np.nan, np.nan, "") for name, value in counts.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "ci_low", "ci_high", "note"])
