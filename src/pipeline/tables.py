"""The one owner of TSV: reading with checks at the door, writing atomically and byte for byte the same.

Rows are counted as a person sees them in an editor: the header is row 1, the first patient row 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import InputError, nearest
from pipeline.files import atomic
from pipeline.identifiers import check_id

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
FIRST_ROW = 2


def read_table(path: str | Path, required: Sequence[str] = (), *, patient_id: str | None = None, unique: bool = True) -> pd.DataFrame:
    """Read a TSV (``.gz`` too) as text, one row a record; cells that mean "missing" become NaN.

    `patient_id` names the id column: it is checked, renamed to ``patient_id`` and, with `unique`, must not repeat.
    Raises `InputError` when the file is absent, empty or not rectangular, lacks a column, or holds a bad or repeated id.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such table", file=path, expected="a TSV file", remedy="Check the path and `data_dir`.")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, na_values=list(MISSING), keep_default_na=False, index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError, EOFError) as error:
        raise InputError(f"cannot be read as TSV ({error})", file=path, expected="a UTF-8, tab-separated table with a header") from error
    for column in [*required, *([patient_id] if patient_id else [])]:
        if column not in table.columns:
            seen = ", ".join([*map(str, table.columns[:8]), *["…"][: len(table.columns) > 8]])
            remedy = nearest(column, table.columns)
            raise InputError(f"lacks the column {column!r}", file=path, found=seen, expected=repr(column), remedy=remedy)
    if patient_id:
        table = table.rename(columns={patient_id: "patient_id"})
        check_patients(table, path, column=patient_id, unique=unique)
    return table


def check_patients(table: pd.DataFrame, path: str | Path, *, column: str = "patient_id", unique: bool = True) -> None:
    """Raise `InputError` at the first missing, unsafe or (with `unique`) repeated value of ``table["patient_id"]``."""
    for row, value in enumerate(table["patient_id"], start=FIRST_ROW):
        check_id("" if pd.isna(value) else value, "patient", file=path, row=row, column=column)
    repeated = table["patient_id"].duplicated()
    if unique and repeated.any():
        at = int(np.flatnonzero(repeated.to_numpy())[0])
        value = table["patient_id"].iloc[at]
        first = int(np.flatnonzero((table["patient_id"] == value).to_numpy())[0]) + FIRST_ROW
        raise InputError(
            f"patient appears twice (first in row {first})",
            file=path,
            row=at + FIRST_ROW,
            column=column,
            found=value,
            expected="one row a patient",
            remedy="Keep one row; which one is right cannot be guessed.",
        )


def numeric(table: pd.DataFrame, columns: str | Sequence[str], path: str | Path, *, allow_missing: bool = True) -> pd.DataFrame:
    """The named columns as float64; raises `InputError` with row and column at the first cell that is not a finite number."""
    names = [columns] if isinstance(columns, str) else list(columns)
    block = table[names]
    values = block.apply(pd.to_numeric, errors="coerce").astype("float64")
    bad = ~np.isfinite(values.to_numpy()) & (block.notna().to_numpy() | (not allow_missing))
    if bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        found = block.iat[row, column]
        raise InputError(
            "cell is not a number",
            file=path,
            row=row + FIRST_ROW,
            column=names[column],
            found="an empty cell" if pd.isna(found) else found,
            expected="a finite number" + (" or an empty cell" if allow_missing else ""),
            remedy="Correct the cell, or leave it empty." if allow_missing else "Fill in the value or remove the row.",
        )
    return values


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a TSV atomically; floats keep the 10 significant digits that survive a round trip through text readers."""
    with atomic(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.10g", lineterminator="\n")
