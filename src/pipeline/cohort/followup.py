"""Follow-up table → time in months and event flag of every patient, and the list of those who have none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import tables
from pipeline.errors import InputError, nearest

DAYS_PER_MONTH = 30.4375
EXCLUDED_COLUMNS = ("kind", "id", "stage", "reason", "remedy")


@dataclass(frozen=True)
class Followup:
    """patients: patient_id, time (months, float), event (int, 1 = event), sorted by id. excluded: rows of `excluded.tsv`."""

    patients: pd.DataFrame
    excluded: pd.DataFrame


def read_followup(
    file: str | Path, *, time: str, event: str, unit: str = "months", patient_id: str = "patient_id", on_bad_row: str = "exclude"
) -> Followup:
    """Read one endpoint: `time` and `event` name the columns, `unit` is ``months`` or ``days`` (÷ 30.4375).

    A patient without time or event is excluded and listed (our choice), or stops the run with ``on_bad_row="stop"``.
    Time 0 is allowed (died on the day of diagnosis). Raises `InputError`, with file, row and column, for a repeated patient, an
    id that cannot become a file name, a negative or non-numeric time, and an event that is neither 0 nor 1: faults of the
    table that leaving a row out would only hide.
    """
    for setting, value, known in (("unit", unit, ("months", "days")), ("on_bad_row", on_bad_row, ("exclude", "stop"))):
        if value not in known:
            raise InputError(f"unknown {setting}", file=file, found=value, expected=" or ".join(known), remedy=nearest(value, known))
    table = tables.read_table(file, [time, event], patient_id=patient_id)
    times, events = tables.numeric(table, time, file)[time], tables.numeric(table, event, file)[event]
    _refuse(times < 0, table[time], file, "time is negative", "0 or more", "Correct the row or empty the cell.")
    _refuse(
        events.notna() & ~events.isin([0, 1]),
        table[event],
        file,
        "event flag is neither 0 nor 1",
        "0 or 1",
        "Code 1 = event, 0 = censored.",
    )
    usable = times.notna() & events.notna()
    faults = [
        _missing(file, at, column, expected)
        for at in np.flatnonzero(~usable)
        for column, expected in [(time, f"{unit} of follow-up") if np.isnan(times[at]) else (event, "0 or 1")]
    ]
    if faults and on_bad_row == "stop":
        raise faults[0]
    scale = DAYS_PER_MONTH if unit == "days" else 1.0
    patients = pd.DataFrame({"patient_id": table["patient_id"], "time": times / scale, "event": events})[usable]
    if patients.empty:
        raise InputError("no patient has both time and event", file=file, expected=f"columns {time!r} and {event!r} filled in")
    ids = table["patient_id"][~usable]
    rows = [("patient", patient, "follow-up", fault.reason, fault.remedy) for patient, fault in zip(ids, faults, strict=True)]
    return Followup(
        patients.astype({"event": int}).sort_values("patient_id", ignore_index=True),
        pd.DataFrame(rows, columns=list(EXCLUDED_COLUMNS)).sort_values("id", ignore_index=True),
    )


def _missing(file: str | Path, at: int, column: str, expected: str) -> InputError:
    remedy = "Fill in the cell to include the patient."
    return InputError("cell is empty", file=file, row=at + tables.FIRST_ROW, column=column, expected=expected, remedy=remedy)


def _refuse(bad: pd.Series, cells: pd.Series, file: str | Path, problem: str, expected: str, remedy: str) -> None:
    """Raise `InputError` at the first row where `bad` holds; `cells` are the texts of the column."""
    if bad.any():
        at = int(bad.to_numpy().argmax())
        found = cells.iloc[at]
        raise InputError(problem, file=file, row=at + tables.FIRST_ROW, column=cells.name, found=found, expected=expected, remedy=remedy)
