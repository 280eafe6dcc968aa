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


@dataclass(frozen=True)
class Vectors:
    """values [P, d] float32 (NaN = missing, filled later by the training fold's `Scaler`); patients sorted; columns d names."""

    values: np.ndarray
    patients: tuple[str, ...]
    columns: tuple[str, ...]


def read_vectors(file: str | Path, columns: Sequence[str] | None = None, *, patient_id: str = "patient_id") -> Vectors:
    """Read the numeric columns named by `columns` (names or patterns such as ``gene_*``, in that order), by default all that
    hold nothing but numbers. A patient without any value is left out: he lacks the modality.

    Raises `InputError` for a column that looks like an outcome or a split, listed or not, for a listed column that is absent or
    holds text, for a repeated or unsafe patient id, and when no column or no value is left.
    """
    table = tables.read_table(file, patient_id=patient_id)
    offered = [name for name in table.columns if name != "patient_id"]
    chosen = offered if columns is None else _match(columns, offered, file)
    refuse_labels(chosen, file)
    if columns is None:
        text = [name for name in offered if (pd.to_numeric(table[name], errors="coerce").isna() & table[name].notna()).any()]
        if text:
            log.info("%s: %d columns hold text and are not read: %s", file, len(text), ", ".join(text))
        chosen = [name for name in offered if name not in text]
    values = tables.numeric(table, chosen, file).to_numpy(np.float32)
    some = ~np.isnan(values).all(axis=1)
    if not some.any():
        raise InputError("holds no numeric value", file=file, found=", ".join(offered[:8]), expected="at least one numeric column")
    order = [row for row in np.argsort(table["patient_id"].to_numpy(str), kind="stable") if some[row]]
    return Vectors(values[order], tuple(table["patient_id"].iloc[order]), tuple(chosen))


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
