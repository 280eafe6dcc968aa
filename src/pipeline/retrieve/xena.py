"""Expression and follow-up of TCGA as UCSC Xena publishes them, turned into tables with one row a patient.

Expression: Toil's recomputation (Vivian et al., Nat Biotechnol 2017), genes × samples, log2(TPM + 0.001), ENSEMBL ids with a probe map.
Follow-up: the curated endpoints of Liu et al., Cell 2018 (TCGA-CDR), times in days.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import tables
from pipeline.errors import InputError
from pipeline.retrieve.genes import genes_of
from pipeline.retrieve.source import write_origin

log = logging.getLogger(__name__)

PROJECT, SAMPLE = "cancer type abbreviation", "sample"
ENDPOINTS = ("OS", "DSS", "DFI", "PFI")
COVARIATES = {  # column of the survey → ours
    "age_at_initial_pathologic_diagnosis": "age",
    "gender": "is_female",
    "ajcc_pathologic_tumor_stage": "stage",
    "clinical_stage": "clinical_stage",
    "histological_grade": "grade",
    "histological_type": "histology",
}
UNKNOWN = re.compile(r"\[.*\]|#N/A")  # [Not Available], [Discrepancy] and their like
SEX = {"FEMALE": "1", "MALE": "0"}
BARCODE = re.compile(r"(TCGA-([A-Z0-9]{2})-[A-Z0-9]{4})-(\d{2})[A-Z]?")


def read_survival(path: str | Path, projects: Sequence[str]) -> pd.DataFrame:
    """Rows of the survival table (one a sample) of `projects`, with ``patient_id`` and ``type`` (01, 06, …) of the barcode.

    Sorted by sample. Raises `InputError` for a missing column, a sample that has no barcode of TCGA, and when no row is left.
    """
    table = tables.read_table(path, [SAMPLE, PROJECT, *ENDPOINTS, *(f"{name}.time" for name in ENDPOINTS)])
    known = sorted(table[PROJECT].dropna().unique())
    rows = table[table[PROJECT].isin([project.upper() for project in projects])]
    if rows.empty:
        raise InputError("no such project", file=path, column=PROJECT, found=", ".join(projects), expected=", ".join(known))
    parts = [_barcode(sample, path, row + tables.FIRST_ROW) for row, sample in rows[SAMPLE].items()]
    rows = rows.assign(patient_id=[p[0] for p in parts], site=[p[1] for p in parts], type=[p[2] for p in parts])
    return rows.sort_values(SAMPLE, ignore_index=True)


def _barcode(sample: object, path: str | Path, row: int | None) -> tuple[str, str, str]:
    """Patient, tissue source site and sample type of a barcode."""
    match = BARCODE.fullmatch(str(sample))
    if not match:
        raise InputError("not a sample of TCGA", file=path, row=row, column=SAMPLE, found=sample, expected="TCGA-XX-XXXX-01")
    return match[1], match[2], match[3]


def write_clinical(survival: str | Path, projects: Sequence[str], path: str | Path) -> pd.DataFrame:
    """The follow-up table of a cohort: ``patient_id``, ``os_days``, ``os_event`` … ``pfi_event``, age (years), is_female, stage,
    clinical_stage, grade, histology, cancer_type, site (tissue source site).

    Values such as ``[Not Available]`` become empty cells; patients marked as redacted are dropped. The rows of one patient's
    samples repeat each other; where they do not, the lowest sample code counts and the patient is logged. Raises `InputError` as
    `read_survival` does, for a time that is no number and an event that is neither 0 nor 1.
    """
    rows = read_survival(survival, projects)
    rows = rows.map(lambda cell: np.nan if isinstance(cell, str) and UNKNOWN.fullmatch(cell) else cell)
    if "Redaction" in rows:
        redacted = sorted(set(rows.loc[rows["Redaction"].notna(), "patient_id"]))
        rows = rows[~rows["patient_id"].isin(redacted)]
        log.info("%d redacted patients are left out: %s", len(redacted), ", ".join(redacted))
    ends = [column for name in ENDPOINTS for column in (name, f"{name}.time")]
    differ = rows.groupby("patient_id")[ends].nunique().gt(1).any(axis=1)
    if differ.any():
        log.warning("follow-up differs between samples of %s; the lowest sample code counts", ", ".join(differ.index[differ]))
    rows = rows.drop_duplicates("patient_id").sort_values("patient_id", ignore_index=True)
    clinical = pd.DataFrame({"patient_id": rows["patient_id"]})
    for name in ENDPOINTS:
        clinical[f"{name.lower()}_days"] = _numeric(rows, f"{name}.time", survival, "days")
        clinical[f"{name.lower()}_event"] = _numeric(rows, name, survival, "0 or 1", allowed=(0, 1))
    for column, ours in COVARIATES.items():
        clinical[ours] = rows.get(column, np.nan)
    clinical["is_female"] = clinical["is_female"].map(SEX)
    clinical["cancer_type"], clinical["site"] = rows[PROJECT], rows["site"]
    tables.write_table(clinical, path)
    write_origin(path, files=[survival], projects=list(projects))
    return clinical


def _numeric(rows: pd.DataFrame, column: str, path: str | Path, expected: str, allowed: Collection[float] | None = None) -> pd.Series:
    """A column as numbers, NaN where empty; raises `InputError` with the patient at the first cell that is none, or not allowed."""
    values = pd.to_numeric(rows[column], errors="coerce")
    wrong = rows[column].notna() & (values.isna() if allowed is None else ~values.isin(list(allowed)))
    if wrong.any():
        first = rows[wrong].iloc[0]
        raise InputError(f"wrong value of {first['patient_id']}", file=path, column=column, found=first[column], expected=expected)
    return values


def write_expression(
    matrix: str | Path,
    probemap: str | Path,
    survival: str | Path,
    projects: Sequence[str],
    path: str | Path,
    *,
    sample_types: Collection[str] = ("01",),
    gene_sets: Sequence[str | Path] = (),
    offset: float = 0.001,
) -> tuple[int, int]:
    """Cut a matrix genes × samples to the patients of `projects` and write it as patients × genes; returns (patients, genes).

    One sample a patient: of `sample_types` (01 = primary tumour) the lowest barcode. ENSEMBL ids become symbols by the probe map
    (``id``, ``gene``). Several ids of one symbol are added as what they are, abundances: log2(Σ(2^x − offset) + offset) (our
    choice; a mean of logarithms would halve a gene whose second locus is silent). Rows sorted by patient, columns by gene. Raises
    `InputError` for an id that the probe map lacks, a cell that is no number, a matrix without a sample of the cohort, and
    when no gene of `gene_sets` (files; without one, all genes are kept) is measured.
    """
    genes, symbols = genes_of(gene_sets), _read_probemap(probemap)
    belong = read_survival(survival, projects)
    samples = set(belong.loc[belong["type"].isin(list(sample_types)), SAMPLE])
    rows = tables.read_rows(matrix)
    chosen = _choose(next(rows), samples, matrix)
    order = sorted(chosen)
    at = [chosen[patient] for patient in order]
    values: dict[str, np.ndarray] = {}
    for number, cells in enumerate(rows, start=tables.FIRST_ROW):
        symbol = _symbol(cells[0], symbols, matrix, probemap, number)
        if not genes or symbol in genes:
            row = _numbers([cells[i] for i in at], matrix, number)
            values[symbol] = _sum(values[symbol], row, offset) if symbol in values else row
    if not values:
        raise InputError("none of the wanted genes is measured", file=matrix, expected="some of " + ", ".join(sorted(genes)[:5]))
    if absent := sorted(genes - set(values)):
        log.warning("%d of %d wanted genes are not in the matrix: %s …", len(absent), len(genes), ", ".join(absent[:10]))
    names = sorted(values)
    table = pd.DataFrame(np.stack([values[name] for name in names], axis=1), columns=names)
    table.insert(0, "patient_id", order)
    tables.write_table(table, path)
    write_origin(path, files=[matrix, probemap, survival], projects=list(projects), sample_types=sorted(sample_types), offset=offset)
    return len(order), len(names)


def _read_probemap(path: str | Path) -> dict[str, str]:
    table = tables.read_table(path, ["id", "gene"])
    return dict(zip(table["id"], table["gene"], strict=True))


def _choose(header: list[str], samples: Collection[str], matrix: str | Path) -> dict[str, int]:
    """Patient → column of the matrix."""
    chosen: dict[str, int] = {}
    for sample in sorted(set(header[1:]) & set(samples)):
        chosen.setdefault(_barcode(sample, matrix, 1)[0], header.index(sample))
    if not chosen:
        remedy = "Check `retrieve.sample_types`: 01 is a primary tumour, 03 blood, 06 a metastasis."
        raise InputError("has no sample of the cohort", file=matrix, row=1, found=header[1:2], expected="barcodes of it", remedy=remedy)
    return chosen


def _symbol(probe: str, symbols: dict[str, str], matrix: str | Path, probemap: str | Path, row: int) -> str:
    if probe in symbols:
        return symbols[probe]
    remedy = "Matrix and probe map belong together: check `retrieve.expression` and `retrieve.probemap`."
    raise InputError(f"id is not in {Path(probemap).name}", file=matrix, row=row, column=SAMPLE, found=probe, remedy=remedy)


def _numbers(cells: list[str], matrix: str | Path, row: int) -> np.ndarray:
    """One gene over the chosen samples, float64 with NaN for a missing cell."""
    try:
        values = np.array([np.nan if cell in tables.MISSING else float(cell) for cell in cells])
    except ValueError as error:
        raise InputError("cell is not a number", file=matrix, row=row, found=str(error)[:60], expected="a finite number") from error
    if np.isinf(values).any():
        raise InputError("cell is not finite", file=matrix, row=row, found="inf", expected="a finite number")
    return values


def _sum(a: np.ndarray, b: np.ndarray, offset: float) -> np.ndarray:
    """log2(TPM + offset) of two loci together."""
    return np.log2(np.maximum(2**a - offset, 0) + np.maximum(2**b - offset, 0) + offset)
