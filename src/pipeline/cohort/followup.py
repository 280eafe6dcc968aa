"""Follow-up table → time and event (or a yes/no label) of every patient, and the list of those who have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import tables
from pipeline.errors import InputError, nearest

DAYS_PER_MONTH = 30.4375
MONTHS_PER_YEAR = 12
UNITS = ("months", "days", "years")
KINDS = ("survival", "binary")
EXCLUDED_COLUMNS = ("kind", "id", "stage", "reason", "remedy")
FLOW_COLUMNS = ("step", "patients", "dropped", "reason")


@dataclass(frozen=True)
class Followup:
    """patients: patient_id, time (months, float), event (int, 1 = event), sorted by id. excluded: rows of `excluded.tsv`.

    flow: the first rows of `flow.tsv`. by_definition: those of the excluded whom the endpoint itself leaves out (`drop`,
    `exclude_values`, followed for less than the window); nothing is wrong with their data.
    """

    patients: pd.DataFrame
    excluded: pd.DataFrame
    flow: pd.DataFrame
    by_definition: frozenset[str] = frozenset()


def read_followup(
    file: str | Path,
    *,
    kind: str = "survival",
    time: str | None = None,
    event: str | None = None,
    label: str | None = None,
    within: float | None = None,
    unit: str = "months",
    event_values: Sequence[str] | None = None,
    censored_values: Sequence[str] | None = None,
    exclude_values: Sequence[str] = (),
    drop: Mapping[str, Any] | None = None,
    patient_id: str = "patient_id",
    on_bad_row: str = "exclude",
) -> Followup:
    """Read one endpoint.

    ``kind="survival"``: `time` and `event` name the columns; `unit` is ``months``, ``days`` (÷ 30.4375) or ``years`` (× 12).
    ``kind="binary"``: `event` of the result is the label, `time` the window for everybody (in months; 1 where none is stated).
    The label stands in the column `label` (`within`, in `unit`, then only states the window), or follows from `time`, `event`
    and `within`: event by then (that day included) = 1, followed until then or beyond = 0, censored before = left out.

    The flag is 1 or 0, or a text that `event_values` or `censored_values` lists (compared letter by letter). Patients whose flag
    is among `exclude_values`, or whose cell in ``drop["column"]`` is among ``drop["values"]``, are left out and listed.
    A patient with an empty cell is excluded and listed (our choice), or stops the run with ``on_bad_row="stop"``. Time 0 is
    allowed (died on the day of diagnosis).

    Raises `InputError`, with file, row and column, for a repeated patient, an id that cannot become a file name, a negative or
    non-numeric time, and a flag that means nothing: faults of the table that leaving a row out would only hide; and for options
    that contradict each other, a value of `drop` that the column does not have, and when nobody is left.
    """
    _check_names(file, kind=(kind, KINDS), unit=(unit, UNITS), on_bad_row=(on_bad_row, ("exclude", "stop")))
    _check_endpoint(file, kind, {"time": time, "event": event, "label": label, "within": within}, event_values, censored_values)
    flag = label or event
    clock = None if label else time
    table = tables.read_table(file, [name for name in (clock, flag, drop and drop["column"]) if name], patient_id=patient_id)
    rows = _Rows(file, table)
    if drop:
        _drop(rows, drop["column"], list(map(str, drop["values"])))
    if exclude_values:
        _exclude(rows, flag, list(map(str, exclude_values)))
    needed = {flag: "0 or 1" if event_values is None else "a listed value"}
    columns = {flag: _flags(rows.cells(flag), file, "label" if label else "event flag", event_values, censored_values)}
    if clock:
        needed = {clock: f"{unit} of follow-up", **needed}
        columns = {clock: _times(rows.cells(clock), file), **columns}
    _leave_out_empty(rows, columns, needed, on_bad_row)
    if kind == "survival":
        return rows.followup(_months(columns[clock], unit), columns[flag], needed)
    flags = _window(rows, clock, columns[clock], columns[flag], within, unit) if clock else columns[flag]
    months = 1.0 if within is None else _months(float(within), unit)
    return rows.followup(pd.Series(months, index=table.index), flags, needed)


def _check_names(file: str | Path, **settings: tuple[str, Sequence[str]]) -> None:
    for setting, (value, known) in settings.items():
        if value not in known:
            raise InputError(f"unknown {setting}", file=file, found=value, expected=" or ".join(known), remedy=nearest(value, known))


def _check_endpoint(
    file: str | Path, kind: str, given: Mapping[str, Any], event_values: Sequence[str] | None, censored_values: Sequence[str] | None
) -> None:
    """Raise `InputError` unless the options describe one endpoint of that kind."""
    stated = {name for name, value in given.items() if value is not None}
    fits = stated == {"time", "event"} if kind == "survival" else stated in ({"label"}, {"label", "within"}, {"time", "event", "within"})
    if not fits:
        expected = "`time` and `event`" if kind == "survival" else "either `label` (perhaps with `within`), or `time`, `event` and `within`"
        found = ", ".join(name for name in given if name in stated) or "nothing"
        remedy = "Set `kind: binary` for an event within a window." if kind == "survival" and stated & {"label", "within"} else ""
        raise InputError(f"an endpoint of kind {kind} cannot be described so", file=file, found=found, expected=expected, remedy=remedy)
    if given["within"] is not None and not given["within"] > 0:
        raise InputError("the window is not positive", file=file, found=given["within"], expected="`within` above 0")
    if (event_values is None) != (censored_values is None):
        found = "censored_values" if event_values is None else "event_values"
        remedy = "State which texts mean an event and which mean none; a text in neither list is an error, not a guess."
        raise InputError("one list of texts lacks the other", file=file, found=found, expected="both or none", remedy=remedy)
    both = {*map(str, event_values or ())} & {*map(str, censored_values or ())}
    if both:
        raise InputError("a text means event and censored at once", file=file, found=min(both), expected="each text in one list")


class _Rows:
    """The rows of a follow-up table: who is still in, and who is out at which step and why."""

    def __init__(self, file: str | Path, table: pd.DataFrame) -> None:
        self.file, self.table = file, table
        self.left = np.ones(len(table), dtype=bool)
        self.by_definition: set[str] = set()
        self.excluded: list[tuple[str, ...]] = []
        self.flow: list[tuple[str, int, int, str]] = [("in the follow-up table", len(table), 0, "")]

    def cells(self, column: str) -> pd.Series:
        """The column's texts; NaN for who is out, so that nothing is asked of his cells any more."""
        return self.table[column].where(self.left)

    def leave_out(self, bad: np.ndarray, step: str, reason: str, fault: Callable[[int], InputError], by_definition: bool = True) -> None:
        """Take out the rows where `bad` holds; `fault` gives each its reason and remedy, `reason` stands in the flow."""
        bad = bad & self.left
        self.left &= ~bad
        for at in np.flatnonzero(bad):
            patient, why = self.table["patient_id"].iloc[at], fault(int(at))
            if by_definition:  # there is no cell to mend
                self.by_definition.add(patient)
                why.row = None
            self.excluded.append(("patient", patient, "follow-up", why.reason, why.remedy))
        self.flow.append((step, int(self.left.sum()), int(bad.sum()), reason if bad.any() else ""))

    def fault(self, at: int, problem: str, column: str, **parts: str) -> InputError:
        found = self.table[column].iloc[at]
        facts = {} if pd.isna(found) else {"found": found}
        return InputError(problem, file=self.file, row=at + tables.FIRST_ROW, column=column, **facts, **parts)

    def followup(self, months: pd.Series, flags: pd.Series, columns: Iterable[str]) -> Followup:
        if not self.left.any():
            raise InputError(
                "no patient has a usable endpoint",
                file=self.file,
                found="; ".join(f"{dropped} left out: {reason}" for _, _, dropped, reason in self.flow if dropped) or "an empty table",
                expected=f"{' and '.join(map(repr, columns))} filled in",
            )
        patients = pd.DataFrame({"patient_id": self.table["patient_id"], "time": months, "event": flags})[self.left]
        return Followup(
            patients.astype({"time": float, "event": int}).sort_values("patient_id", ignore_index=True),
            pd.DataFrame(self.excluded, columns=list(EXCLUDED_COLUMNS)).sort_values("id", ignore_index=True),
            pd.DataFrame(self.flow, columns=list(FLOW_COLUMNS)),
            frozenset(self.by_definition),
        )


def _drop(rows: _Rows, column: str, values: list[str]) -> None:
    seen = set(rows.table[column].dropna())
    for value in values:
        if value not in seen:
            problem, expected = "no cell holds this value of `drop`", "a value of the column"
            raise InputError(problem, file=rows.file, column=column, found=value, expected=expected, remedy=nearest(value, seen))

    def fault(at: int) -> InputError:
        return rows.fault(at, "the endpoint leaves this value out", column, remedy="Remove the value from `drop` to keep the patient.")

    rows.leave_out(rows.table[column].isin(values).to_numpy(), "within the endpoint's definition", f"{column}: {_or(values)}", fault)


def _exclude(rows: _Rows, flag: str, values: list[str]) -> None:
    def fault(at: int) -> InputError:
        return rows.fault(at, "marked as not usable", flag, remedy="Remove the value from `exclude_values` to use it.")

    rows.leave_out(rows.table[flag].isin(values).to_numpy(), "not marked as unusable", f"{flag}: {_or(values)}", fault)


def _leave_out_empty(rows: _Rows, columns: Mapping[str, pd.Series], expected: Mapping[str, str], on_bad_row: str) -> None:
    empty = {name: values.isna().to_numpy() for name, values in columns.items()}

    def fault(at: int) -> InputError:
        column = next(name for name in columns if empty[name][at])
        return rows.fault(at, "cell is empty", column, expected=expected[column], remedy="Fill in the cell to include the patient.")

    bad = np.any(list(empty.values()), axis=0)
    if on_bad_row == "stop" and (bad & rows.left).any():
        raise fault(int(np.flatnonzero(bad & rows.left)[0]))
    reason = "time or event missing" if len(columns) > 1 else "label missing"
    rows.leave_out(bad, "with usable follow-up", reason, fault, by_definition=False)


def _window(rows: _Rows, time: str, times: pd.Series, events: pd.Series, within: float, unit: str) -> pd.Series:
    """The label that follows from the follow-up: 1 = event by `within`; who is censored before it is left out."""

    def fault(at: int) -> InputError:
        expected = f"{within:g} {unit} or more without an event"
        return rows.fault(at, "censored within the window", time, expected=expected, remedy="A shorter window keeps the patient.")

    short = ((events == 0) & (times < within)).to_numpy()
    rows.leave_out(short, "followed through the window", f"censored before {within:g} {unit}", fault)
    return ((events == 1) & (times <= within)).astype(float)


def _times(cells: pd.Series, file: str | Path) -> pd.Series:
    times = tables.numeric(cells.to_frame(), str(cells.name), file)[cells.name]
    _refuse(times < 0, cells, file, "time is negative", "0 or more", "Correct the row or empty the cell.")
    return times


def _flags(
    cells: pd.Series, file: str | Path, noun: str, event_values: Sequence[str] | None, censored_values: Sequence[str] | None
) -> pd.Series:
    """1, 0, or NaN where the cell is empty."""
    if event_values is None:
        flags = pd.to_numeric(cells, errors="coerce").astype(float)
        _refuse(
            cells.notna() & ~flags.isin([0, 1]),
            cells,
            file,
            f"{noun} is neither 0 nor 1",
            "0 or 1",
            "Code 1 = event, 0 = censored, or state `event_values` and `censored_values`.",
        )
        return flags
    meaning = {**{str(value): 1.0 for value in event_values}, **{str(value): 0.0 for value in censored_values or ()}}
    remedy = "Add it to `event_values` or `censored_values`, or to `exclude_values` to leave such patients out."
    _refuse(cells.notna() & ~cells.isin(list(meaning)), cells, file, f"{noun} is not a listed value", _or(map(repr, meaning)), remedy)
    return cells.map(meaning).astype(float)


def _months(value: Any, unit: str) -> Any:
    """A time, or a column of them, in months."""
    if unit == "days":
        return value / DAYS_PER_MONTH
    return value * MONTHS_PER_YEAR if unit == "years" else value


def _or(values: Any) -> str:
    return " or ".join(values)


def _refuse(bad: pd.Series, cells: pd.Series, file: str | Path, problem: str, expected: str, remedy: str) -> None:
    """Raise `InputError` at the first row where `bad` holds; `cells` are the texts of the column."""
    if bad.any():
        at = int(bad.to_numpy().argmax())
        found = cells.iloc[at]
        raise InputError(problem, file=file, row=at + tables.FIRST_ROW, column=cells.name, found=found, expected=expected, remedy=remedy)
