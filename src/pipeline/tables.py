"""The one owner of TSV: reading with checks at the door, writing atomically and byte for byte the same.

Rows are counted as a person sees them in an editor: the header is row 1, the first patient row 2.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import InputError, nearest
from pipeline.files import atomic, require_file
from pipeline.identifiers import check_id
from pipeline.limits import MOST_CELLS, MOST_COLUMNS, MOST_LINE, SMALL_TABLE, UNPACKING_TEXT
from pipeline.machine import machine_fault
from pipeline.texts import NUMBER, not_utf8

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
FIRST_ROW = 2
SEPARATORS = {";": "semicolons", ",": "commas", "\t": "tabs"}
WITH_COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")
UTF8 = "UTF-8 text, plain or gzip"
FIELD = csv.field_size_limit()  # characters of a cell


def read_rows(path: str | Path) -> Iterator[list[str]]:
    """Yield the header, then each row, as text; every row has as many cells as the header.

    Tab-separated, ``.gz`` too; a file that ends in ``.csv`` is read with commas. Blank lines may only stand at the end.
    Raises `InputError` when the file is absent, empty, broken or not rectangular, names a column twice, or is larger than a table can be
    (`read_lines`, 500,000 columns, 131,072 characters a cell).
    """
    path = Path(path)
    delimiter = "," if path.name.removesuffix(".gz").endswith(".csv") else "\t"
    rows = csv.reader(read_lines(path, newline=""), delimiter=delimiter, strict=True)
    try:
        yield from _checked(rows, path)
    except csv.Error as error:
        if "field larger" in str(error):
            expected, remedy = f"at most {FIELD:,}", "A quote that is never closed makes the rest of a table one cell."
            raise InputError("a cell has too many characters", file=path, row=rows.line_num, expected=expected, remedy=remedy) from error
        raise InputError(f"cannot be read as TSV ({error})", file=path, expected="a UTF-8, tab-separated table with a header") from error


def read_lines(path: str | Path, newline: str | None = None) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file (``.gz`` too), line ends kept.

    `newline` as in `open`. Raises `InputError` when the file is absent, no regular file, cut short, or not UTF-8 text, when a line has
    more than 64 Mi characters, and when it unpacks to more than 200 times its size (128 MiB are always taken).
    """
    path = require_file(path, "table", expected="a TSV file", remedy="Check the path and `data_dir`.")
    opened = gzip.open if path.suffix == ".gz" else open
    size = path.stat().st_size
    left = max(SMALL_TABLE, UNPACKING_TEXT * size)
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline=newline) as handle:
            if opened is open and size < MOST_LINE:  # no line of it can be too long, and this way takes less time
                yield from handle
            for row, line in enumerate(iter(lambda: handle.readline(MOST_LINE), ""), start=1):
                left -= len(line)
                if len(line) == MOST_LINE or left < 0:
                    raise _too_much(path, row, left)
                yield line
    except UnicodeDecodeError as error:
        with opened(path, "rb") as handle:
            raise not_utf8(path, iter(lambda: handle.readline(MOST_LINE), b""), UTF8) from error
    except (OSError, EOFError, zlib.error) as error:
        raise machine_fault(error, path) or InputError(f"cannot be read as text ({error})", file=path, expected=UTF8) from error


def _too_much(path: Path, row: int, left: int) -> InputError:
    if left < 0:
        size = path.stat().st_size
        most = max(SMALL_TABLE, UNPACKING_TEXT * size)
        expected = f"at most {most:,} characters in {size:,} packed bytes"
        return InputError("unpacks to more than a table can have", file=path, row=row, expected=expected)
    return InputError("line is too long", file=path, row=row, expected=f"at most {MOST_LINE:,} characters")


def _checked(rows: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    header = next(rows, None)
    if not header:
        raise InputError("is empty", file=path, expected="a UTF-8, tab-separated table with a header")
    if len(header) > MOST_COLUMNS:
        found, expected = f"{len(header):,}", f"at most {MOST_COLUMNS:,}"
        raise InputError("has too many columns", file=path, row=1, found=found, expected=expected, remedy="Is the table turned round?")
    if any("\0" in name for name in header):
        raise not_utf8(path, ["\t".join(header).encode()], UTF8)
    if len(set(header)) < len(header):
        seen: set[str] = set()
        twice = next(name for name in header if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        remedy = "Remove or rename one; which one is right cannot be guessed."
        raise InputError("column appears twice", file=path, row=1, column=twice, expected="each column once", remedy=remedy)
    yield header
    blank = None
    for number, cells in enumerate(rows, start=FIRST_ROW):
        if not cells:
            blank = blank or number
            continue
        if blank or len(cells) != len(header):
            raise InputError(
                "line is empty" if blank else "row has another length than the header",
                file=path,
                row=blank or number,
                found=None if blank else f"{len(cells)} cells",
                expected=f"{len(header)} cells",
                remedy="Remove the line." if blank else "The file may be cut short, or a cell may hold a tab.",
            )
        yield cells


def _require(columns: Sequence[str], header: list[str], path: str | Path, otherwise: str = "") -> None:
    """Raise `InputError` for the first absent column; `otherwise`: the remedy where nothing better is known."""
    for column in columns:
        if column not in header:
            seen = ", ".join([*header[:8], *["…"][: len(header) > 8]])
            remedy = nearest(column, header) or otherwise
            mark = next((mark for mark in SEPARATORS if mark in header[0]), None)
            if len(header) == 1 and mark:
                remedy = f"The table seems to be separated by {SEPARATORS[mark]}: save it as TSV, under a name that ends in .tsv."
            raise InputError(f"lacks the column {column!r}", file=path, found=seen, expected=repr(column), remedy=remedy)


def read_table(path: str | Path, required: Sequence[str] = (), *, patient_id: str | None = None, unique: bool = True) -> pd.DataFrame:
    """Read a TSV (``.gz`` too) as text, one row a record; cells that mean "missing" become NaN.

    `patient_id` names the id column: it is checked, renamed to ``patient_id`` and, with `unique`, must not repeat.
    Raises `InputError` when the file is unusable (`read_rows`), lacks a column, has more than 32 Mi cells, or holds a bad or repeated id.
    """
    rows = read_rows(path)
    header = next(rows)
    _require([patient_id] if patient_id else [], header, path, "A table has one row a patient, and his id in this column.")
    _require(required, header, path)
    missing = set(MISSING)
    most = MOST_CELLS // (len(header) + 8)
    body = [[np.nan if cell in missing else cell for cell in cells] for cells in islice(rows, most)]
    if next(rows, None) is not None:
        expected = f"at most {most:,} rows of {len(header):,} columns"
        raise InputError("has too many cells", file=path, row=most + FIRST_ROW, expected=expected)
    table = pd.DataFrame(body, columns=header, dtype=object)
    if patient_id:
        table = table.rename(columns={patient_id: "patient_id"})
        check_patients(table, path, column=patient_id, unique=unique)
    return table


def read_numbers(
    path: str | Path, choose: Callable[[list[str]], list[str]], *, patient_id: str = "patient_id", unique: bool = True
) -> tuple[list[str], list[str], np.ndarray]:
    """Read the numeric columns that `choose` picks from the header (without the id column) of a wide table.

    Returns patient ids [P] in file order, the names of the columns [F], and values [P, F] float32 with NaN for a missing cell.
    Keeps no text in memory, so that 500 patients × 20,000 genes take seconds. Raises `InputError` as `read_table` and `numeric` do.
    """
    rows = read_rows(path)
    header = next(rows)
    _require([patient_id], header, path, "A table has one row a patient, and his id in this column.")
    names = choose([name for name in header if name != patient_id])
    where = {name: at for at, name in enumerate(header)}
    at_id, at_values = where[patient_id], [where[name] for name in names]
    patients: list[str] = []
    values: list[np.ndarray] = []
    for number, cells in enumerate(rows, start=FIRST_ROW):
        patients.append(cells[at_id])
        values.append(_numbers([cells[at] for at in at_values], names, path, number))
    check_patients(pd.DataFrame({"patient_id": patients}, dtype=object), path, column=patient_id, unique=unique)
    return patients, names, np.stack(values) if values else np.empty((0, len(names)), np.float32)


def _numbers(cells: list[str], names: list[str], path: str | Path, row: int) -> np.ndarray:
    """One row as float32 [F]; cell by cell only where the row as a whole is not plain numbers."""
    try:
        text = "".join(cells)
        plain = "_" not in text and text.isascii()
        values = np.array(list(map(float if plain else _number, cells)))
    except ValueError:
        values = np.array([_number(cell) for cell in cells])
    bad = np.abs(values) > np.finfo(np.float32).max
    if bad.any():
        at = int(bad.argmax())
        raise _not_a_number(path, row, names[at], cells[at], allow_missing=True)
    return values.astype(np.float32)


def _number(cell: str) -> float:
    """The number in a cell: NaN where it is missing, infinite where it is none."""
    if cell in MISSING:
        return np.nan
    return float(cell) if NUMBER.fullmatch(cell) else np.inf


def check_patients(table: pd.DataFrame, path: str | Path, *, column: str = "patient_id", unique: bool = True) -> None:
    """Raise `InputError` at the first missing, unsafe or (with `unique`) repeated value of ``table["patient_id"]``."""
    for row, value in enumerate(table["patient_id"].fillna(""), start=FIRST_ROW):
        check_id(value, "patient", file=path, row=row, column=column)
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
    bad = ~np.isfinite(values.to_numpy()) & (block.notna().to_numpy(dtype=bool) | (not allow_missing))
    if bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        found = block.iat[row, column]
        raise _not_a_number(path, row + FIRST_ROW, names[column], "" if pd.isna(found) else found, allow_missing=allow_missing)
    return values


def _not_a_number(path: str | Path, row: int, column: str, found: str, *, allow_missing: bool) -> InputError:
    comma = " without a comma (decimals have a point)" if WITH_COMMA.fullmatch(found) else ""
    return InputError(
        "cell is not a number",
        file=path,
        row=row,
        column=column,
        found=found or "an empty cell",
        expected="a finite number" + comma + (" or an empty cell" if allow_missing else ""),
        remedy="Correct the cell, or leave it empty." if allow_missing else "Fill in the value or remove the row.",
    )


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a TSV atomically; floats keep 10 significant digits. ``.gz`` is compressed, without time or name in its header."""
    content = table.to_csv(sep="\t", index=False, float_format="%.10g", lineterminator="\n").encode()
    with atomic(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if Path(path).suffix == ".gz" else content)
