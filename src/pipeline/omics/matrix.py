"""Owner of `omics.h5`: tables of expression, copy number and mutation, joined by patient id into one matrix."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from pipeline import tables
from pipeline.cohort.labels import refuse_labels
from pipeline.errors import InputError, nearest
from pipeline.files import atomic
from pipeline.hdf5 import datasets, open_hdf5, texts
from pipeline.machine import machine_fault
from pipeline.omics.symbols import refuse_dates
from pipeline.omics.units import check_unit, settle, transformed

log = logging.getLogger(__name__)

KINDS = ("rnaseq", "cnv", "mut")
REMAKE = "Delete it, so that it is built again."
REPORT = ("file", "kind", "unit", "source", "transform", "patients", "features", "missing")
SUFFIXES = tuple(f"_{kind}" for kind in KINDS)
# Numeric columns that public gene tables carry beside the genes; none of them is a HGNC symbol.
_NOT_GENES = re.compile(r"index|age|site|sex|gender|is_female|(case|slide|sample)_id|n_slides|cancer_type|oncotree_code|unnamed:.*|\s*")


@dataclass(frozen=True)
class OmicsMatrix:
    """values [P, F] float32 (NaN = missing); patients P ids, sorted; features F names ``<gene>_<kind>`` in table order."""

    values: np.ndarray
    patients: tuple[str, ...]
    features: tuple[str, ...]


def build_matrix(specs: Sequence[Mapping[str, Any]], output: str | Path, report: str | Path | None = None) -> OmicsMatrix:
    """Join omics tables by patient id (outer join) and write `output` and, where it is named, `report` (`omics/tables.tsv`).

    Each of `specs` has ``file`` and optionally ``patient_id`` (the id column), ``duplicates`` (``stop``, default, or ``first``:
    keep a patient's first row and report the others), ``unit`` (a key of `pipeline.omics.units.UNITS`, or ``auto``, default), and
    either ``kind`` (``rnaseq``, ``cnv`` or ``mut``: every other column is a gene, the suffix is appended) or ``suffixes`` (default
    ``_rnaseq _cnv _mut``: only columns that end so are read).
    Columns are chosen by name and patients joined by id, never by position (the public loaders' leak). Counts become log2(CPM + 1),
    TPM log2(x + 1). A patient that a table lacks has NaN there; a patient without any value is left out. Raises `InputError` for
    every fault of `read_omics_table`, for numbers that contradict the stated unit, for a feature that two tables give, and when no
    value is left.
    """
    if not specs:
        raise InputError("no omics table is named", expected="at least one `file`", remedy="Name the tables in the cohort's configuration.")
    blocks, rows = [], []
    for spec in specs:
        reading = {key: value for key, value in spec.items() if key != "unit"}
        block, facts = _on_one_scale(read_omics_table(**reading), Path(spec["file"]), spec.get("unit") or "auto")
        blocks.append((Path(spec["file"]), block))
        rows += facts
    matrix = _joined(blocks)
    some = ~np.isnan(matrix.values).all(axis=1)
    if not some.any():
        raise InputError("holds no value", file=", ".join(str(file) for file, _ in blocks), expected="at least one patient with one value")
    if not some.all():
        log.warning(
            "%d patients have no omics value at all and are left out: %s", (~some).sum(), _some_names(np.array(matrix.patients)[~some])
        )
        kept = tuple(patient for patient, keep in zip(matrix.patients, some, strict=True) if keep)
        matrix = OmicsMatrix(matrix.values[some], kept, matrix.features)
    _write(matrix, output)
    if report is not None:
        tables.write_table(pd.DataFrame(rows, columns=REPORT), report)
    return matrix


def _on_one_scale(block: OmicsMatrix, file: Path, unit: str) -> tuple[OmicsMatrix, list[tuple[Any, ...]]]:
    """The block with counts and TPM as logarithms, and a row of `tables.tsv` a kind of feature."""
    kind_of = np.array([feature.rpartition("_")[2] for feature in block.features])
    kinds = [kind for kind in KINDS if kind in kind_of]
    check_unit(unit, kinds, file)
    values, rows = block.values.copy(), []
    for kind in kinds:
        columns = kind_of == kind
        part = values[:, columns]
        settled = settle(part, kind, unit, file)
        values[:, columns] = transformed(part, settled.transform, block.patients, file)
        rows.append((file.name, kind, settled.unit, settled.source, settled.transform, *part.shape, int(np.isnan(part).sum())))
    return OmicsMatrix(values, block.patients, block.features), rows


def _joined(blocks: Sequence[tuple[Path, OmicsMatrix]]) -> OmicsMatrix:
    owner: dict[str, Path] = {}
    for file, block in blocks:
        for feature in block.features:
            if feature in owner:
                expected, remedy = "each feature in one table", "Remove one of the two tables or columns."
                raise InputError(f"feature is already in {owner[feature]}", file=file, column=feature, expected=expected, remedy=remedy)
            owner[feature] = file
    patients = sorted({patient for _, block in blocks for patient in block.patients})
    row_of = {patient: row for row, patient in enumerate(patients)}
    values = np.full((len(patients), len(owner)), np.nan, dtype=np.float32)
    start = 0
    for _, block in blocks:
        stop = start + len(block.features)
        values[[row_of[patient] for patient in block.patients], start:stop] = block.values
        start = stop
    return OmicsMatrix(values, tuple(patients), tuple(owner))


def read_omics_table(
    file: str | Path,
    kind: str | None = None,
    suffixes: Sequence[str] = SUFFIXES,
    patient_id: str = "patient_id",
    duplicates: str = "stop",
) -> OmicsMatrix:
    """One table (see `build_matrix`), as its file has it, sorted by patient.

    Raises `InputError` for a repeated patient or column, a cell that is not a number (with row and column), a column that
    looks like an outcome or like clinical data, genes that a spreadsheet made dates, an unknown `kind` or `duplicates`, and when
    no column can be used.
    """
    if kind is not None and kind not in KINDS:
        raise InputError("unknown kind of omics table", file=file, found=kind, expected=" or ".join(KINDS), remedy=nearest(kind, KINDS))
    if duplicates not in ("stop", "first"):
        raise InputError("unknown setting of `duplicates`", file=file, found=duplicates, expected="stop or first")

    def choose(columns: list[str]) -> list[str]:
        chosen = _genes(columns, file) if kind else [c for c in columns if c.endswith(tuple(suffixes)) and c not in suffixes]
        if not chosen:
            expected = "gene columns" if kind else f"columns that end in {' or '.join(suffixes)}"
            remedy = "" if kind else "For a table of plain gene names set `kind: rnaseq`, `cnv` or `mut`."
            raise InputError("holds no feature", file=file, found=", ".join(columns[:5]), expected=expected, remedy=remedy)
        refuse_dates(chosen if kind else [name.rpartition("_")[0] for name in chosen], file)
        if len(chosen) < len(columns):
            left = [c for c in columns if c not in set(chosen)]
            log.info("%s: %d columns without an omics suffix are not read: %s", file, len(left), _some_names(left))
        return chosen

    patients, names, values = tables.read_numbers(file, choose, patient_id=patient_id, unique=duplicates == "stop")
    first = {patient: row for row, patient in reversed(list(enumerate(patients)))}
    if len(first) < len(patients):
        repeated = [patient for row, patient in enumerate(patients) if first[patient] != row]
        log.warning("%s: %d repeated rows are dropped, the first kept: %s", file, len(repeated), _some_names(repeated))
    rows = [first[patient] for patient in sorted(first)]
    features = tuple(f"{name}_{kind}" for name in names) if kind else tuple(names)
    return OmicsMatrix(values[rows], tuple(patients[row] for row in rows), features)


def _genes(columns: list[str], file: str | Path) -> list[str]:
    refuse_labels(columns, file)
    for column in columns:
        if _NOT_GENES.fullmatch(column.lower()):
            remedy = "Remove the column; clinical data are read as a table of their own."
            raise InputError("is not a gene", file=file, column=column, expected="one column a gene", remedy=remedy)
    return columns


def _write(matrix: OmicsMatrix, output: str | Path) -> None:
    with atomic(output) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("values", data=matrix.values)
        file.create_dataset("patient_id", data=list(matrix.patients), dtype=h5py.string_dtype())
        file.create_dataset("feature", data=list(matrix.features), dtype=h5py.string_dtype())


def read_matrix(path: str | Path) -> OmicsMatrix:
    """Read what `build_matrix` wrote. Raises `InputError` when the file is absent or is not such a file."""
    expected = "an HDF5 file with `values`, `patient_id` and `feature`"
    try:
        with open_hdf5(path) as file:
            found = datasets(file)
            patients, features = (tuple(texts(found[name])) for name in ("patient_id", "feature"))
            values = found["values"][()]
    except InputError as error:
        expected = error.expected or expected
        raise InputError(error.problem, file=path, found=error.found, expected=expected, remedy=REMAKE) from error
    except (OSError, RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise machine_fault(error, path) or InputError(f"cannot be read ({error})", file=path, expected=expected, remedy=REMAKE) from error
    if values.shape != (len(patients), len(features)):
        found, expected = list(values.shape), [len(patients), len(features)]
        raise InputError("does not fit its patients and features", file=path, found=found, expected=expected, remedy=REMAKE)
    return OmicsMatrix(values, patients, features)


def _some_names(names: Sequence[str]) -> str:
    return ", ".join([*map(str, names[:5]), *["…"][: len(names) > 5]])
