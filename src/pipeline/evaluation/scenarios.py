"""How the models do when patients lack modalities: one row a model and scenario, beside the same model on the same patients complete."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.evaluation.concordance import (
    TIED_RISK,
    comparable_pairs,
    draw,
    interval,
    mean_of_known,
    ratio,
    resampled_concordant,
    resampled_pairs,
)
from pipeline.evaluation.folds import Cohort, Fold, folds_of, read_cohort
from pipeline.evaluation.summary import OPTIMISTIC
from pipeline.seeds import seed_from
from pipeline.tables import numeric, read_table, write_table

log = logging.getLogger(__name__)
COMPLETE = "complete"
SCENARIO_COLUMNS = (
    "model",
    "scenario",
    "fill",
    "draws",
    "patients",
    "unpredicted",
    "folds",
    "c_index",
    "c_index_std",
    "ci_low",
    "ci_high",
    "complete",
    "difference",
    "difference_ci_low",
    "difference_ci_high",
    "note",
)
PREDICTED = ("scenario", "fill", "draw", "fold", "patient_id", "lacks", "risk", "reason")
NOT_APPLICABLE, UNCHANGED, NOT_FINITE = "not applicable", "unchanged", "not a finite number"  # how notes begin, or a reason ends


@dataclass(frozen=True)
class Figures:
    """Of D draws and K folds: c, complete [K, 1 + replicates], means over the draws; the first column is the cohort as it is."""

    c: np.ndarray
    complete: np.ndarray

    def mean(self, of: str) -> np.ndarray:
        """[1 + replicates]: the mean over the folds that have the figure."""
        return mean_of_known(getattr(self, of).T)


def evaluate_scenarios(
    *,
    cohort: str,
    folders: Mapping[str, Sequence[Path]],
    predictions: Mapping[str, Path],
    patients: Path,
    splits: Path,
    output: Path,
    bootstrap: int,
    seed: int,
) -> None:
    """Write `output`: for each model of `folders` (its fold folders) the complete test patients, then every scenario of `predictions`.

    predictions: model → its ``scenarios.tsv``. C-index: mean over draws, then over folds; c_index_std over folds. `complete` is the C-index
    of the same model on the same patients, fold by fold and draw by draw, when they lack nothing, and `difference` what the scenario
    changes; both intervals resample the patients as `bootstrap_intervals` does, the second with both figures from the same resamples.
    `patients` and `unpredicted` are means over draws; their sum is every tested patient. No figures where nobody is predicted: the note
    says why. Raises `InputError` when predictions are absent or contradict the cohort or the folds.
    """
    known, rows = read_cohort(patients, splits), []
    for model, paths in folders.items():
        folds = {fold.number: fold for fold in folds_of(paths, known)}
        table = pd.concat([complete_rows(folds, known), read_predictions(predictions[model], folds, known)], ignore_index=True)
        for (scenario, fill), part in table.groupby(["scenario", "fill"], sort=False):
            figures = scenario_row(part, folds, bootstrap, seed_from(cohort, seed))
            rows.append({"model": model, "scenario": scenario, "fill": fill, **figures})
    write_table(pd.DataFrame(rows, columns=list(SCENARIO_COLUMNS)), output)
    log.info("%s: %d rows of %d models", cohort, len(rows), len(folders))


def complete_rows(folds: Mapping[int, Fold], cohort: Cohort) -> pd.DataFrame:
    """The test patients of every fold as they were predicted after training, in the columns of `PREDICTED`."""
    parts = []
    for number, fold in folds.items():
        risk = pd.Series(fold.risk, index=fold.test.patient_id, dtype=float).reindex(cohort.test[number].patient_id)
        parts.append(pd.DataFrame({"fold": number, "patient_id": risk.index, "risk": risk.to_numpy()}))
    table = pd.concat(parts, ignore_index=True).assign(scenario=COMPLETE, fill="", draw=0, lacks="")
    reasons = {(number, patient): why for number, fold in folds.items() for patient, why in fold.unpredicted.items()}
    return table.assign(reason=[reasons.get(key, "") for key in zip(table["fold"], table["patient_id"], strict=True)])


def read_predictions(path: Path, folds: Mapping[int, Fold], cohort: Cohort) -> pd.DataFrame:
    """A model's ``scenarios.tsv``; raises `InputError` unless each draw has every test patient of `folds` once.

    A patient with a risk must have one in the complete fold as well, as his figure is held against it.
    """
    table = read_table(path, PREDICTED)
    for column in ("draw", "fold", "risk"):
        table[column] = numeric(table, column, path, allow_missing=column == "risk")[column]
    table = table.astype({"draw": int, "fold": int}).fillna({"lacks": "", "reason": ""})
    tested = sorted((number, patient) for number in folds for patient in cohort.test[number].patient_id)
    remedy = "Remove it and predict the scenarios again."
    for (scenario, number), part in table.groupby(["scenario", "draw"], sort=False):
        if sorted(zip(part["fold"], part["patient_id"], strict=True)) != tested:
            raise InputError(
                "other patients than the folds test",
                file=path,
                found=f"{len(part)} rows in draw {number} of {scenario!r}",
                expected=f"{len(tested)}, each once",
                remedy=remedy,
            )
    predicted = {(number, patient) for number, fold in folds.items() for patient in fold.test.patient_id}
    strange = [key for key in zip(*(table.loc[table.risk.notna(), c] for c in ("fold", "patient_id")), strict=True) if key not in predicted]
    if strange:
        raise InputError("patient has no complete prediction", file=path, column="patient_id", found=strange[0][1], remedy=remedy)
    return table


def scenario_row(part: pd.DataFrame, folds: Mapping[int, Fold], replicates: int, seed: int) -> dict[str, object]:
    """The columns from `draws` on for the rows `part` of one scenario of one model."""
    predicted, draws = part[part["risk"].notna()], part["draw"].nunique()
    patients = predicted.groupby("draw")["patient_id"].nunique().sum() / draws
    row: dict[str, object] = {"draws": draws, "patients": patients, "unpredicted": part["patient_id"].nunique() - patients, "folds": 0}
    broken = part["reason"].str.endswith(NOT_FINITE)
    if broken.any():
        return row | {"note": f"the risk of {part['patient_id'][broken].nunique()} patients is {NOT_FINITE}"}
    if predicted.empty:
        return row | {"note": _why_nobody(part, folds)}
    figures = resampled_figures(predicted, folds, replicates, seed)
    by_fold = figures.c[:, 0][np.isfinite(figures.c[:, 0])]
    mean, complete = figures.mean("c"), figures.mean("complete")
    low, high, _ = interval(mean[1:])
    row |= {"folds": len(by_fold), "c_index": mean[0], "c_index_std": np.std(by_fold) if len(by_fold) > 1 else np.nan}
    row |= {"ci_low": low, "ci_high": high, "note": "; ".join(_notes(part, predicted, folds))}
    if part["scenario"].iloc[0] == COMPLETE:
        return row
    low, high, _ = interval((mean - complete)[1:])
    change = {"complete": complete[0], "difference": mean[0] - complete[0], "difference_ci_low": low, "difference_ci_high": high}
    return row | change


def resampled_figures(predicted: pd.DataFrame, folds: Mapping[int, Fold], replicates: int, seed: int) -> Figures:
    """C-index of every fold with the risks of `predicted` and with the complete ones of the same patients, as is and resampled.

    One draw over all patients, of which each fold takes the counts of its own (as in `bootstrap_intervals`).
    """
    patients = np.unique(predicted["patient_id"].to_numpy(str))
    once = np.ones((1, len(patients)), np.float32)  # the cohort as it is goes first, then its resamples
    counts = np.concatenate([once, draw(len(patients), replicates, seed)])
    by_fold: dict[int, list[np.ndarray]] = {}
    for (number, _), block in predicted.groupby(["fold", "draw"]):
        fold, ids = folds[number], block["patient_id"].to_numpy(str)
        at = np.searchsorted(fold.test.patient_id, ids)
        pairs = comparable_pairs(fold.test.time[at], fold.test.event[at])
        drawn = np.take(counts, np.searchsorted(patients, ids)[pairs.order], axis=1)
        count = resampled_pairs(pairs, drawn)
        both = [ratio(resampled_concordant(pairs, risk, drawn), count) for risk in (block["risk"].to_numpy(), fold.risk[at])]
        by_fold.setdefault(number, []).append(np.stack(both))
    draws = [np.stack(blocks, axis=-1) for blocks in by_fold.values()]  # each [2, 1 + replicates, D]
    c, complete = (np.stack([mean_of_known(blocks[side]) for blocks in draws]) for side in (0, 1))
    return Figures(c, complete)


def _why_nobody(part: pd.DataFrame, folds: Mapping[int, Fold]) -> str:
    read = {modality for fold in folds.values() for modality in fold.modalities}
    taken = {modality for lacks in part["lacks"] for modality in lacks.split(";") if modality}
    if read and read <= taken:
        return f"{NOT_APPLICABLE}: it reads nothing but {', '.join(sorted(read))}"
    return "nobody is predicted: " + ", ".join(sorted(set(part["reason"]) - {""}))


def _notes(part: pd.DataFrame, predicted: pd.DataFrame, folds: Mapping[int, Fold]) -> Iterator[str]:
    """What a reader must know of a scenario in which some patients are predicted."""
    read = {modality for fold in folds.values() for modality in fold.modalities}
    if part["scenario"].iloc[0] != COMPLETE and not any(set(lacks.split(";")) & read for lacks in predicted["lacks"]):
        yield f"{UNCHANGED}: those that it predicts lack nothing that it reads"
    risks = predicted.groupby(["fold", "draw"])["risk"].agg(["size", "min", "max"])
    constant = risks[(risks["size"] > 1) & (risks["max"] - risks["min"] <= TIED_RISK)].index.unique("fold")
    if len(constant):
        yield f"constant risks in fold {', '.join(map(str, sorted(constant)))}: 0.5 there says nothing"
    reasons = sorted(set(part["reason"]) - {""})
    if reasons:
        yield f"without a prediction: {', '.join(reasons)}"
    chosen = [str(number) for number, fold in folds.items() if fold.selection == "best_val"]
    if chosen:
        yield f"{OPTIMISTIC} in fold {', '.join(chosen)}"
