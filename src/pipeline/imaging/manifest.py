"""Which image and which mask belong to which sequence of which patient: the cohort's table of MRI files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError, nearest
from pipeline.tables import FIRST_ROW, read_table

COLUMNS = ("sequence", "image", "mask")


@dataclass(frozen=True)
class SequenceFiles:
    """Image and mask of one sequence; several sequences may share a mask."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class Cases:
    """patients: patient → sequence → files, both sorted; sequences: every name, in the order in which they are told apart."""

    patients: dict[str, dict[str, SequenceFiles]]
    sequences: tuple[str, ...]


def read_cases(file: str | Path, *, patient_id: str = "patient_id", sequences: Sequence[str] | None = None) -> Cases:
    """Read a TSV with one row a sequence: the patient (column `patient_id`), ``sequence``, ``image`` and ``mask``.

    Relative paths count from the table's folder. `sequences` names those that exist, in order; by default they are those of the table
    by name, so that the order of its rows changes nothing. Whether the files can be used is told when they are read. Raises
    `InputError` for a lacking column, an empty cell, a sequence that a patient has twice or that is not in `sequences`.
    """
    table = read_table(file, COLUMNS, patient_id=patient_id, unique=False)
    folder, patients = Path(file).parent, {}
    for row, record in enumerate(table.to_dict("records"), start=FIRST_ROW):
        for column in COLUMNS:
            if pd.isna(record[column]):
                remedy = "A patient who lacks a sequence has no row for it."
                raise InputError("cell is empty", file=file, row=row, column=column, expected="a value", remedy=remedy)
        patient, sequence = record["patient_id"], record["sequence"]
        if sequences is not None and sequence not in sequences:
            expected, remedy = ", ".join(sequences), nearest(sequence, sequences)
            raise InputError("no such sequence", file=file, row=row, column="sequence", found=sequence, expected=expected, remedy=remedy)
        if sequence in patients.setdefault(patient, {}):
            problem, found = "patient has the sequence twice", f"{patient}, {sequence}"
            raise InputError(problem, file=file, row=row, column="sequence", found=found, expected="one row a patient and sequence")
        patients[patient][sequence] = SequenceFiles(folder / record["image"], folder / record["mask"])
    if not patients:
        raise InputError("names no sequence", file=file, expected="at least one row")
    names = tuple(sequences) if sequences is not None else tuple(sorted({name for found in patients.values() for name in found}))
    return Cases({patient: dict(sorted(patients[patient].items())) for patient in sorted(patients)}, names)
