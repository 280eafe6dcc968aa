"""Named clinical tables (clinical, blood, …) as numeric vectors, one a patient."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import tables
from pipeline.cohort.labels import refuse_labels
from pipeline.errors import InputError, nearest

log = logging.getLogger(__name__)

MOST_LEVELS = 20


@dataclass(frozen=True)
class Vectors:
    """values [P, d] float32 (NaN = missing, filled later by the training fold's `Scaler`); patients sorted; columns d names.

    codes [d] bool: which columns are 0/1 for one category. empty: patients, sorted, whose row holds no value; they lack the modality.
    """

    values: np.ndarray
    patients: tuple[str, ...]
    columns: tuple[str, ...]
    codes: np.ndarray
    empty: tuple[str, ...] = ()

    def known_to(self, rows: np.ndarray) -> np.ndarray:
        """Numbers [k] of the columns without the codes that none of `rows` has: those of other patients must not reach what is fitted."""
        return np.flatnonzero(~self.codes | (self.values[rows] == 1).any(axis=0))


def read_vectors(
    file: str | Path, columns: Sequence[str] | None = None, *, categorical: Sequence[str] = (), patient_id: str = "patient_id"
) -> Vectors:
    """Read the columns named by `columns` (names or patterns such as ``gene_*``, in that order), by default all that hold
    nothing but numbers and those of text with at most 20 different values (our choice; longer ones are named in the log). A column
    most of whose cells are numbers, be it with a decimal comma, is one of numbers, and its other cells are errors.

    Columns of `categorical` (names or patterns) and of text become one 0/1 column a value, ``<column>=<value>``, values sorted (as
    numbers where all are). The values are those of the whole table; a fold then leaves out those that none of its training patients
    has (`Vectors.known_to`). A missing cell gives zeros in all of them, in a numeric column NaN. A patient without any value is left
    out: he lacks the modality.

    Raises `InputError` for a column that looks like an outcome or a split, listed or not, for a listed column that is absent or
    holds text without being categorical, for a categorical one that `columns` does not list, for a repeated or unsafe patient
    id, and when no column or no value is left.
    """
    table = tables.read_table(file, patient_id=patient_id)
    offered = [name for name in table.columns if name != "patient_id"]
    chosen = offered if columns is None else _match(columns, offered, file)
    refuse_labels(chosen, file)
    coded = set(_match(categorical, offered, file))
    stray = sorted(coded - set(chosen))
    if stray:
        remedy = "List it under `columns` too, or not under `categorical`."
        raise InputError("is categorical but is not read", file=file, column=stray[0], expected="a column of `columns`", remedy=remedy)
    if columns is None:
        chosen, coded = _readable(table, chosen, coded, file)
    some = table[chosen].notna().any(axis=1).to_numpy(dtype=bool)
    if not some.any():
        found = ", ".join(offered[:8])
        raise InputError("holds no value that can be read", file=file, found=found, expected="numbers, or text of few different values")
    numbers = _numbers(table, [name for name in chosen if name not in coded], file)
    one_hot = {name: _one_hot(table[name]) for name in chosen if name in coded}
    encoded = pd.concat([one_hot[name] if name in coded else numbers[name] for name in chosen], axis=1) if coded else numbers
    codes = {column for part in one_hot.values() for column in part}
    order = np.argsort(table["patient_id"].to_numpy(str), kind="stable")
    ids = table["patient_id"].to_numpy(object)
    return Vectors(
        encoded.to_numpy(np.float32)[order[some[order]]],
        tuple(ids[order[some[order]]]),
        tuple(encoded.columns),
        np.array([column in codes for column in encoded], dtype=bool),
        tuple(ids[order[~some[order]]]),
    )


def _readable(table: pd.DataFrame, offered: Sequence[str], coded: set[str], file: str | Path) -> tuple[list[str], set[str]]:
    """The columns that can be read without having been asked for, and which of them are categories."""
    text = set()
    for name in offered:
        known = table[name].dropna()
        if pd.to_numeric(known, errors="coerce").isna().any():
            text.add(name)
            words = pd.to_numeric(known.str.replace(",", "."), errors="coerce").isna()
            if name not in coded and 2 * words.sum() < len(known):
                _numbers(table, [name], file)  # numbers but for a few cells or the decimal comma: raises, saying where
    long = [name for name in offered if name in text - coded and table[name].nunique() > MOST_LEVELS]
    if long:
        log.info("%s: %d columns hold text of more than %d values and are not read: %s", file, len(long), MOST_LEVELS, ", ".join(long))
    return [name for name in offered if name not in long], coded | (text - set(long))


def _numbers(table: pd.DataFrame, columns: list[str], file: str | Path) -> pd.DataFrame:
    try:
        return tables.numeric(table, columns, file)
    except InputError as error:
        place = {name: getattr(error, name) for name in ("file", "row", "column", "found", "expected")}
        remedy = "Correct the cell or leave it empty; a column of codes or words stands under `categorical` too."
        raise InputError(error.problem, **place, remedy=remedy) from error


def _one_hot(cells: pd.Series) -> pd.DataFrame:
    """One 0/1 column a value; numbers written in two ways (``2`` and ``2.0``) are one value."""
    numbers = pd.to_numeric(cells, errors="coerce")
    if numbers[cells.notna()].notna().all():
        values, names = numbers, {number: f"{number:.15g}" for number in sorted(numbers.dropna().unique())}
    else:
        values, names = cells, {text: text for text in sorted(cells.dropna().unique())}
    return pd.DataFrame({f"{cells.name}={name}": (values == value).astype(float) for value, name in names.items()}, index=cells.index)


def _match(patterns: Sequence[str], offered: Sequence[str], file: str | Path) -> list[str]:
    chosen: dict[str, None] = {}
    for pattern in patterns:
        hits = [name for name in offered if name == pattern or fnmatchcase(name, pattern)]
        if not hits:
            seen = ", ".join([*offered[:8], *["…"][: len(offered) > 8]])
            problem = f"lacks the column {pattern!r}"
            raise InputError(problem, file=file, found=seen, expected=repr(pattern), remedy=nearest(pattern, offered))
        chosen.update(dict.fromkeys(hits))
    return list(chosen)
