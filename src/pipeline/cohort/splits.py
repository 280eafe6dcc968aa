"""Who trains and who is tested in which fold: made here, or imported from published lists; owner of `splits.tsv`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import tables
from pipeline.errors import InputError
from pipeline.seeds import seed_from

log = logging.getLogger(__name__)

COLUMNS = ("fold", "patient_id", "set")


def build_splits(patients: str | Path, scheme: Mapping[str, Any], output: str | Path, seed: int = 0) -> pd.DataFrame:
    """Make or import the splits of a cohort, check them and write `output`.

    patients: `patients.tsv`. scheme: ``{method: kfold, folds: 5}``, or ``{method: imported, pattern, folds, column, train, test,
    patient_id, allow_untested}`` (see `imported_splits` and `check_splits`). Raises `InputError` as they do.
    """
    cohort = tables.read_table(patients, ["time", "event"], patient_id="patient_id")
    cohort[["time", "event"]] = tables.numeric(cohort, ["time", "event"], patients, allow_missing=False)
    options = {key: value for key, value in scheme.items() if key not in ("method", "allow_untested")}
    method = scheme.get("method", "kfold")
    if method == "kfold":
        splits, source = kfold_splits(cohort, seed=seed, **options), None
    elif method == "imported":
        (splits, _), source = imported_splits(cohort["patient_id"], **options), options["pattern"]
    else:
        raise InputError("unknown method of splitting", found=method, expected="kfold or imported")
    check_splits(splits, cohort, file=source, allow_untested=scheme.get("allow_untested", False))
    tables.write_table(splits, output)
    return splits


def kfold_splits(patients: pd.DataFrame, folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Stratified k-fold splits; each patient is tested once. Returns a table fold, patient_id, set (`train`, `test`).

    patients: patient_id, time, event. Patients are ordered by event status, then time, then id, and each run of `folds`
    neighbours is dealt to the folds at random, so that folds differ by at most one patient and one event and cover the
    same range of times (our choice). The result depends on who the patients are and on `seed`, not on the order of rows.
    Raises `InputError` when `folds` is below 2 or above the number of patients or of events.
    """
    events = int((patients["event"] == 1).sum())
    if not 2 <= folds <= len(patients):
        found = f"{folds} folds, {len(patients)} patients"
        raise InputError("cannot make the folds", found=found, expected="2 folds or more, a patient in each")
    if events < folds:
        raise InputError(
            "a fold would have no event to test on",
            found=f"{folds} folds, {events} events",
            expected="at least one event a fold",
            remedy="Use fewer folds or another endpoint.",
        )
    ordered = patients.sort_values(["event", "time", "patient_id"], ascending=[False, True, True])["patient_id"].to_numpy()
    random = np.random.default_rng(seed_from("kfold", folds, seed))
    rounds = -(-len(ordered) // folds)
    test_fold = np.concatenate([random.permutation(folds) for _ in range(rounds)])[: len(ordered)]
    return _sorted(pd.DataFrame({"fold": k, "patient_id": ordered, "set": np.where(test_fold == k, "test", "train")}) for k in range(folds))


def imported_splits(
    patients: Sequence[str],
    pattern: str,
    folds: int | Sequence[int],
    column: str = "set",
    train: str | Sequence[str] | None = "train",
    test: str | Sequence[str] = "test",
    patient_id: str = "patient_id",
) -> tuple[pd.DataFrame, list[str]]:
    """Splits from published lists, joined by patient id: one row a patient, `column` says whether he trains or is tested.

    pattern: path of a list. ``{fold}`` in `pattern`, `column`, `train` or `test` becomes the fold's number in the lists:
    0 … folds − 1, or the numbers given as a sequence. train, test: the values of `column` that mean so (one or several); an
    empty cell means neither; ``train=None`` means every value but `test`. Returns the splits (folds renumbered from 0, as in
    `splits.tsv`) and the listed patients whom the cohort lacks, who are also logged. Raises `InputError` for an absent file or
    column, a value that is neither, and, naming some, for patients of the cohort whom no list mentions.
    """
    cohort = {str(patient) for patient in patients}
    listed: set[str] = set()
    parts = []
    for number, fold in enumerate(range(folds) if isinstance(folds, int) else folds):
        file, name = pattern.format(fold=fold), column.format(fold=fold)
        table = tables.read_table(file, [name], patient_id=patient_id)
        sets = _sets(table[name], file, _values(train, fold), _values(test, fold))
        known = sets.notna() & table["patient_id"].isin(cohort)
        listed.update(table["patient_id"][sets.notna()])
        parts.append(pd.DataFrame({"fold": number, "patient_id": table["patient_id"], "set": sets})[known])
    absent, forgotten = sorted(listed - cohort), sorted(cohort - listed)
    if forgotten:
        raise InputError(
            f"no split list mentions {len(forgotten)} of the cohort's {len(cohort)} patients",
            file=pattern,
            found=_some(forgotten),
            expected="every patient of the cohort in at least one list",
            remedy="Check that the lists use the cohort's patient ids, or let the workflow make the splits (`method: kfold`).",
        )
    if absent:
        log.warning("%s: %d listed patients are not in the cohort: %s", pattern, len(absent), _some(absent))
    return _sorted(parts), absent


def _values(names: str | Sequence[str] | None, fold: int) -> set[str] | None:
    if names is None:
        return None
    return {str(name).format(fold=fold) for name in ([names] if isinstance(names, str) else names)}


def _sets(cells: pd.Series, file: str, train: set[str] | None, test: set[str]) -> pd.Series:
    """`train`, `test` or NaN for each cell."""
    in_test = cells.isin(test)
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
            expected=" or ".join(sorted((train or set()) | test)),
            remedy="Set `train` and `test` to the values of the column (lists are allowed), or empty the cell.",
        )
    return in_test.map({True: "test", False: None}).where(in_test, in_train.map({True: "train", False: None}))


def check_splits(splits: pd.DataFrame, patients: pd.DataFrame, *, file: str | Path | None = None, allow_untested: bool = False) -> None:
    """Raise `InputError` unless the splits can be trained and scored honestly.

    In each fold nobody trains and is tested, nobody is listed twice, and both sets have an event; every patient of the cohort
    is tested in some fold (`allow_untested` lifts that, for published hold-out splits). patients: patient_id, event.
    """
    repeated = splits[splits.duplicated(["fold", "patient_id"])]
    if len(repeated):
        fold, patient = repeated[["fold", "patient_id"]].iloc[0]
        both = splits[(splits["fold"] == fold) & (splits["patient_id"] == patient)]["set"].nunique() > 1
        problem = f"patient is in training and in test of fold {fold}" if both else f"patient is listed twice in fold {fold}"
        raise InputError(problem, file=file, found=patient, expected="train and test without a common patient")
    events = set(patients.loc[patients["event"] == 1, "patient_id"])
    for fold in sorted(splits["fold"].unique()):
        for name in ("train", "test"):
            members = set(splits.loc[(splits["fold"] == fold) & (splits["set"] == name), "patient_id"])
            if not members & events:
                raise InputError(
                    f"fold {fold} has no event in its {'training' if name == 'train' else 'test'} set",
                    file=file,
                    found=f"{len(members)} patients, 0 events",
                    expected="at least one event",
                    remedy="Use fewer folds, another endpoint, or other lists.",
                )
    untested = sorted(set(patients["patient_id"]) - set(splits.loc[splits["set"] == "test", "patient_id"]))
    if untested and not allow_untested:
        remedy = "Give all folds of the lists, or set `allow_untested: true` for a hold-out split."
        problem = f"{len(untested)} patients are tested in no fold"
        raise InputError(problem, file=file, found=_some(untested), expected="every patient tested", remedy=remedy)


def read_splits(path: str | Path) -> pd.DataFrame:
    """`splits.tsv`: fold (int, 0…), patient_id, set. Raises `InputError` for a foreign or damaged table."""
    table = tables.read_table(path, list(COLUMNS), patient_id="patient_id", unique=False)
    table["fold"] = tables.numeric(table, "fold", path, allow_missing=False)["fold"].astype(int)
    _sets(table["set"].fillna("an empty cell"), str(path), {"train"}, {"test"})
    return table[list(COLUMNS)]


def fold_patients(splits: pd.DataFrame, fold: int) -> tuple[list[str], list[str]]:
    """(training patients, test patients) of a fold, sorted. Raises `InputError` when there is no such fold."""
    rows = splits[splits["fold"] == fold]
    if rows.empty:
        raise InputError("no such fold", found=fold, expected=" or ".join(map(str, sorted(splits["fold"].unique()))))
    train, test = (sorted(rows.loc[rows["set"] == name, "patient_id"]) for name in ("train", "test"))
    return train, test


def splits_digest(splits: pd.DataFrame) -> str:
    """SHA-256 over (fold, patient, set), whatever the order of rows: two runs with one digest used the same splits."""
    rows = sorted(zip(splits["fold"].astype(int), splits["patient_id"], splits["set"], strict=True))
    return hashlib.sha256("\n".join("\t".join(map(str, row)) for row in rows).encode()).hexdigest()


def _sorted(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(list(parts)).sort_values(["fold", "patient_id"], kind="stable", ignore_index=True)[list(COLUMNS)]


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *["…"][: len(names) > 5]])
