"""Reading one evaluated fold: predictions, history, settings, and who should have been predicted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.cohort.splits import read_splits, splits_digest
from pipeline.config import read_yaml
from pipeline.errors import InputError
from pipeline.machine import machine_fault
from pipeline.tables import FIRST_ROW, numeric, read_table

NO_REASON = "no reason given"


@dataclass(frozen=True)
class FollowUp:
    """time [n] (months) and event [n] (bool), in the order of patient_id [n]."""

    patient_id: np.ndarray
    time: np.ndarray
    event: np.ndarray


@dataclass(frozen=True)
class Fold:
    """What is known of one fold of one model.

    test: follow-up of the predicted test patients, sorted by id; risk [n]; survival [n, T] at `edges` [T] (months).
    train: follow-up of the training fold, the reference for censoring.
    unpredicted: patient → reason, for every test patient without a prediction (all of them where the fold failed).
    history: epoch, train_loss, inner_c_index, test_c_index, inner_loss (NaN where not recorded; no rows without a history).
    selection, bins_from: of the protocol, how the epoch was chosen and whose times made the bins.
    """

    number: int
    folder: Path
    failure: str | None
    test: FollowUp
    risk: np.ndarray
    survival: np.ndarray
    edges: np.ndarray
    train: FollowUp
    unpredicted: Mapping[str, str]
    history: pd.DataFrame = field(repr=False)
    modalities: tuple[str, ...]
    selection: str
    params: float
    train_seconds: float
    bins_from: str = "train"


def read_follow_up(patients: str | Path) -> pd.DataFrame:
    """``cohort/patients.tsv`` indexed by patient_id, sorted, with float `time` (months) and bool `event`."""
    table = read_table(patients, ["time", "event"], patient_id="patient_id")
    table[["time", "event"]] = numeric(table, ["time", "event"], patients, allow_missing=False)
    table["event"] = table["event"].astype(bool)
    return table.set_index("patient_id").sort_index()


@dataclass(frozen=True)
class Cohort:
    """Who is in which set of which fold, with his follow-up; `splits` is the SHA-256 of the split."""

    follow_up: pd.DataFrame
    train: Mapping[int, FollowUp]
    test: Mapping[int, FollowUp]
    splits: str
    source: Path


def read_cohort(patients: str | Path, splits: str | Path) -> Cohort:
    """`patients.tsv` and `splits.tsv` together; raises `InputError` for a broken table or a patient of a fold without follow-up.

    A process that evaluates many models reads the two files once, as long as they are the same files.
    """
    return _read_cohort(str(patients), str(splits), _identity(patients), _identity(splits))


def _identity(path: str | Path) -> tuple[int, int, int] | None:
    if not Path(path).is_file():
        return None
    known = Path(path).stat()
    return known.st_ino, known.st_size, known.st_mtime_ns


@lru_cache(maxsize=1)
def _read_cohort(patients: str, splits: str, *_: tuple[int, int, int] | None) -> Cohort:
    follow_up, sets = read_follow_up(patients), read_splits(splits)
    strangers = ~sets.patient_id.isin(follow_up.index)
    if strangers.any():
        found = min(sets.patient_id[strangers])
        raise InputError(
            "patient of a fold has no follow-up", file=splits, column="patient_id", found=found, expected="a row in patients.tsv"
        )
    members = {name: group.patient_id.sort_values().to_numpy(str) for name, group in sets.groupby(["set", "fold"])}
    train, test = ({fold: _follow_up(follow_up, ids) for (of, fold), ids in members.items() if of == name} for name in ("train", "test"))
    return Cohort(follow_up, train, test, splits_digest(sets), Path(splits))


def read_folds(folders: list[Path], patients: str | Path, splits: str | Path) -> list[Fold]:
    """The folds of one model, by number; raises `InputError` when a file is absent, contradicts the cohort or a fold repeats."""
    return folds_of(folders, read_cohort(patients, splits))


def folds_of(folders: Sequence[Path], cohort: Cohort) -> list[Fold]:
    """The same for a cohort that has been read."""
    folds = [_read_fold(Path(folder), cohort) for folder in folders]
    if len({fold.number for fold in folds}) < len(folds):
        raise InputError("a fold is named twice", found=", ".join(sorted(map(str, folders))), expected="one folder a fold")
    return sorted(folds, key=lambda fold: fold.number)


def _read_fold(folder: Path, cohort: Cohort) -> Fold:
    number = _number(folder)
    if number not in cohort.test:
        raise InputError(f"fold {number} has no test patients", file=cohort.source, expected=f"rows with fold {number} and set 'test'")
    members = cohort.test[number]
    settings = _read_settings(folder / "model.yaml")
    failure = settings.get("failure") or None
    table = _no_predictions() if failure else _read_predictions(folder / "predictions.tsv", members)
    wrong = int((~np.isfinite(table.drop(columns="patient_id").to_numpy(float))).any(1).sum())
    if wrong:
        failure, table = f"the predictions of {wrong} of {len(table)} patients are not finite numbers", _no_predictions()
    reasons = settings.get("unpredicted") or {}
    default = f"fold {number} failed" if failure else NO_REASON
    lost = np.setdiff1d(members.patient_id, table.patient_id.to_numpy(str), assume_unique=True)
    columns = [c for c in table if c.startswith("surv_")]
    return Fold(
        number=number,
        folder=folder,
        failure=str(failure) if failure else None,
        test=_follow_up(cohort.follow_up, table.patient_id.to_numpy(str)),
        risk=table.risk.to_numpy(float),
        survival=table[columns].to_numpy(float),
        edges=np.array([float(c.removeprefix("surv_")) for c in columns]),
        train=cohort.train.get(number, _follow_up(cohort.follow_up, np.zeros(0, str))),
        unpredicted={str(p): str(reasons.get(str(p), default)) for p in lost},
        history=_read_history(folder / "history.tsv"),
        modalities=tuple(settings.get("modalities") or ()),
        selection=str(settings.get("selection") or "last"),
        params=_figure(settings, "params"),
        train_seconds=_figure(settings, "train_seconds"),
        bins_from=str((settings.get("protocol") or {}).get("bins_from") or "train"),
    )


def _figure(settings: Mapping[str, object], name: str) -> float:
    value = settings.get(name)
    return np.nan if value is None else float(value)


def _follow_up(table: pd.DataFrame, ids: np.ndarray) -> FollowUp:
    rows = table.loc[ids]
    return FollowUp(ids, rows.time.to_numpy(float), rows.event.to_numpy(bool))


def _number(folder: Path) -> int:
    match = re.fullmatch(r"fold(\d+)", folder.name)
    if not match:
        raise InputError("not a fold's folder", file=folder, found=folder.name, expected="fold0, fold1, …")
    return int(match[1])


def _read_settings(path: Path) -> dict:
    remedy = "Delete the model's folds_*.tsv and run again: a fold whose files changed is trained again."
    try:
        return read_yaml(path)
    except InputError as error:
        raise InputError(error.problem, file=path, row=error.row, found=error.found, remedy=remedy) from error
    except (OSError, UnicodeDecodeError) as error:
        raise machine_fault(error, path) or InputError(f"cannot be read ({error})", file=path, remedy=remedy) from error


def _no_predictions() -> pd.DataFrame:
    return pd.DataFrame({"patient_id": [], "time": [], "event": [], "risk": []})


def _read_predictions(path: Path, members: FollowUp) -> pd.DataFrame:
    """Predictions sorted by patient_id; empty or infinite figures become NaN (the caller fails the fold), others raise `InputError`."""
    table = read_table(path, ["time", "event", "risk"], patient_id="patient_id")
    names = ["time", "event", "risk", *(c for c in table if c.startswith("surv_") and np.isfinite(_edge(c, path)))]
    cells = table[names].mask(table[names].isin(["inf", "-inf", "Inf", "-Inf"]))
    table = pd.concat([table[["patient_id"]], numeric(cells, names, path)], axis=1)
    at = pd.Index(members.patient_id).get_indexer(table.patient_id)
    if (at < 0).any():
        row = int((at < 0).argmax())
        found = table.patient_id[row]
        problem = "patient is not in the test set of this fold"
        raise InputError(problem, file=path, row=row + FIRST_ROW, column="patient_id", found=found)
    for column, known in (("time", members.time[at]), ("event", members.event[at].astype(float))):
        changed = ~np.isclose(table[column], known, rtol=1e-6, atol=1e-6)
        if changed.any():
            row = int(changed.argmax())
            raise InputError(
                "follow-up changed since training",
                file=path,
                row=row + FIRST_ROW,
                column=column,
                found=table[column][row],
                expected=f"{known[row]:g} as in patients.tsv",
                remedy="Train the fold again.",
            )
    return table.sort_values("patient_id", ignore_index=True)


def _edge(column: str, path: Path) -> float:
    try:
        return float(column.removeprefix("surv_"))
    except ValueError as error:
        raise InputError("column name holds no time", file=path, column=column, expected="surv_<months>") from error


def _read_history(path: Path) -> pd.DataFrame:
    columns = ["epoch", "train_loss", "inner_c_index", "test_c_index"]
    if not path.is_file():
        return pd.DataFrame(columns=[*columns, "inner_loss"], dtype=float)
    table = read_table(path, columns).reindex(columns=[*columns, "inner_loss"])
    return table.apply(pd.to_numeric, errors="coerce").astype(float)  # a diverged epoch may hold "nan" or "inf"
