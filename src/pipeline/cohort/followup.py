"""Follow-up table → time in months and event flag of every patient, and the list of those who have none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    path: str | Path, *, time: str, event: str, unit: str = "months", patient_id: str = "patient_id", on_bad_row: str = "exclude"
) -> Followup:
    """Read one endpoint: `time` and `event` name the columns, `unit` is ``months`` or ``days`` (÷ 30.4375).

    A patient without time or event is excluded and listed (our choice), or stops the run with ``on_bad_row="stop"``.
    Time 0 is allowed (died on the day of diagnosis). Raises `InputError`, with file, row and column, for a repeated patient, an
    id that cannot become a file name, a negative or non-numeric time, and an event that is neither 0 nor 1: faults of the
    table that leaving a row out would only hide.
    """
    for setting, value, known in (("unit", unit, ("months", "days")), ("on_bad_row", on_bad_row, ("exclude", "stop"))):
        if value not in known:
            raise InputError(f"unknown {setting}", file=path, found=value, expected=" or ".join(known), remedy=nearest(value, known))
    table = tables.read_table(path, [time, event], patient_id=patient_id)
    times, events = tables.numeric(table, time, path)[time], tables.numeric(table, event, path)[event]
    _refuse(times < 0, table[time], path, "time is negative", "0 or more", "Correct the row or empty the cell.")
    _refuse(
        events.notna() & ~events.isin([0, 1]),
        table[event],
        path,
        "event flag is neither 0 nor 1",
        "0 or 1",
        "Code 1 = event, 0 = censored.",
    )
    missing = pd.DataFrame({time: times.isna(), event: events.isna()})
    faults = [
        (
            table["patient_id"].iloc[at],
            InputError(
                f"{'time' if lacks_time else 'event flag'} is missing",
                file=path,
                row=at + tables.FIRST_ROW,
                column=time if lacks_time else event,
                expected=f"{unit} of follow-up" if lacks_time else "0 or 1",
                remedy="Fill in the cell to include the patient.",
            ),
        )
        for at, (lacks_time, lacks_event) in enumerate(missing.itertuples(index=False))
        if lacks_time or lacks_event
    ]
    if faults and on_bad_row == "stop":
        raise faults[0][1]
    scale = DAYS_PER_MONTH if unit == "days" else 1.0
    usable = ~missing.any(axis=1)
    patients = pd.DataFrame({"patient_id": table["patient_id"], "time": times / scale, "event": events})[usable]
    if patients.empty:
        raise InputError("no patient has both time and event", file=path, expected=f"columns {time!r} and {event!r} filled in")
    rows = [("patient", patient, "follow-up", fault.reason, fault.remedy) for patient, fault in faults]
    return Followup(
        patients.astype({"event": int}).sort_values("patient_id", ignore_index=True),
        pd.DataFrame(rows, columns=list(EXCLUDED_COLUMNS)).sort_values("id", ignore_index=True),
    )


def _refuse(bad: pd.Series, cells: pd.Series, path: str | Path, problem: str, expected: str, remedy: str) -> None:
    """Raise `InputError` at the first row where `bad` holds; `cells` are the texts of the column."""
    if bad.any():
        at = int(bad.to_numpy().argmax())
        found = cells.iloc[at]
        raise InputError(problem, file=path, row=at + tables.FIRST_ROW, column=cells.name, found=found, expected=expected, remedy=remedy)
