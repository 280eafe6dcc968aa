"""Splits that others published, read from their lists and joined by patient id."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pandas as pd

from pipeline import tables
from pipeline.cohort.dealing import in_order
from pipeline.errors import InputError
from pipeline.placeholders import filled

log = logging.getLogger(__name__)


def imported_splits(
    patients: Sequence[str],
    pattern: str,
    folds: int,
    first: int = 0,
    column: str = "set",
    train: str | Sequence[str] | None = "train",
    test: str | Sequence[str] = "test",
    patient_id: str = "patient_id",
) -> tuple[pd.DataFrame, list[str]]:
    """Splits from published lists: one row a patient, `column` says whether he trains or is tested.

    pattern: path of a list. ``{fold}`` (``{fold:02d}`` for two digits) in `pattern`, `column`, `train` or `test` becomes the
    fold's number in the lists, `first` … `first` + `folds` − 1. train, test: the values of `column` that mean so (one or
    several); an empty cell means neither; ``train=None`` means every value but `test`. Returns the splits (folds renumbered from
    0, as in `splits.tsv`) and the listed patients whom the cohort lacks, who are also logged. Raises `InputError` for an absent
    file or column, a value that is neither, a place for the number that cannot be filled in, and, naming some, for patients of
    the cohort whom no list mentions.
    """
    cohort = {str(patient) for patient in patients}
    listed: set[str] = set()
    parts = []
    for number in range(folds):
        fold = first + number
        file, name = filled(pattern, "fold", fold), filled(column, "fold", fold)
        table = tables.read_table(file, [name], patient_id=patient_id)
        sets = sets_of(table[name], file, _values(train, fold), _values(test, fold))
        known = sets.notna() & table["patient_id"].isin(cohort)
        listed.update(table["patient_id"][sets.notna()])
        parts.append(pd.DataFrame({"fold": number, "patient_id": table["patient_id"], "set": sets})[known])
    absent, forgotten = sorted(listed - cohort), sorted(cohort - listed)
    if forgotten:
        raise InputError(
            f"no split list mentions {len(forgotten)} of the cohort's {len(cohort)} patients",
            file=pattern,
            found=some(forgotten),
            expected="every patient of the cohort in at least one list",
            remedy="Check that the lists use the cohort's patient ids, restrict the cohort by `include`, or let the workflow make the "
            "splits (`scheme: kfold`).",
        )
    if absent:
        log.warning("%s: %d listed patients are not in the cohort: %s", pattern, len(absent), some(absent))
    return in_order(parts), absent


def sets_of(cells: pd.Series, file: str, train: set[str] | None, test: set[str] | None) -> pd.Series:
    """`train`, `test` or NaN for each cell. Raises `InputError` for a value that is neither."""
    in_test = cells.isin(test or ())
    in_train = cells.notna() & ~in_test if train is None else cells.isin(train)
    strange = cells.notna() & ~in_test & ~in_train
    if strange.any():
        at = int(strange.to_numpy().argmax())
        raise InputError(
            "value names neither the training nor the test set",
            file=file,
            row=at + tables.FIRST_ROW,
            column=cells.name,
            found=cells.iloc[at],
            expected=" or ".join(sorted((train or set()) | (test or set()))),
            remedy="Set `train` and `test` to the values of the column (lists are allowed), or empty the cell.",
        )
    return in_test.map({True: "test", False: None}).where(in_test, in_train.map({True: "train", False: None}))


def some(names: Sequence[str]) -> str:
    """The first five names."""
    return ", ".join([*names[:5], *["…"][: len(names) > 5]])


def _values(names: str | Sequence[str] | None, fold: int) -> set[str] | None:
    if names is None:
        return None
    return {filled(str(name), "fold", fold) for name in ([names] if isinstance(names, str) else names)}
