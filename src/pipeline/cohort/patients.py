"""Who is in the cohort, with which modalities, and who is not and why; owner of `patients.tsv`, `flow.tsv`, `excluded.tsv`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import tables
from pipeline.cohort.followup import EXCLUDED_COLUMNS, Followup, read_followup
from pipeline.cohort.vectors import read_vectors
from pipeline.errors import InputError
from pipeline.omics.matrix import read_matrix

log = logging.getLogger(__name__)

SHOWN = 20


@dataclass(frozen=True)
class Cohort:
    """patients, flow, excluded: the three tables, columns as in docs/architecture.md.

    share: patients kept ÷ patients of the follow-up table for whom any data were listed, failed slides included.
    """

    patients: pd.DataFrame
    flow: pd.DataFrame
    excluded: pd.DataFrame
    share: float


def build_cohort(
    followup: Mapping[str, Any],
    *,
    patients: str | Path,
    flow: str | Path,
    excluded: str | Path,
    omics: str | Path | None = None,
    manifest: str | Path | None = None,
    vectors: Mapping[str, Mapping[str, Any]] | None = None,
    min_share: float = 0.5,
) -> Cohort:
    """Join follow-up with the modalities at hand and write `patients`, `flow` and `excluded`.

    followup: ``file`` and the options of `read_followup`. omics: `omics.h5`. manifest: the slides' manifest, of which rows with
    status ``ok`` count. vectors: modality → ``file`` and the options of `read_vectors`. Any of the three may be absent; a
    modality that is given makes a column ``has_<modality>``. Raises `InputError` as the readers do and as `join_cohort` does
    (then `excluded` is written all the same).
    """
    present = {} if omics is None else {"omics": set(read_matrix(omics).patients)}
    present |= {name: set(read_vectors(**spec).patients) for name, spec in (vectors or {}).items()}
    slides = None if manifest is None else read_manifest(manifest)
    cohort = join_cohort(read_followup(**followup), present, slides)
    tables.write_table(cohort.excluded, excluded)
    check_share(cohort, min_share)
    tables.write_table(cohort.patients, patients)
    tables.write_table(cohort.flow, flow)
    return cohort


def read_manifest(path: str | Path) -> pd.DataFrame:
    """The slides' manifest: slide_id, patient_id, status, stage, reason, remedy. Raises `InputError` when a slide is listed twice."""
    columns = ["slide_id", "patient_id", "status", "stage", "reason", "remedy"]
    slides = tables.read_table(path, columns, patient_id="patient_id", unique=False)[columns]
    repeated = slides["slide_id"].duplicated().to_numpy()
    if repeated.any():
        at = int(repeated.argmax())
        found = slides["slide_id"].iloc[at]
        raise InputError(
            "slide appears twice", file=path, row=at + tables.FIRST_ROW, column="slide_id", found=found, expected="one row a slide"
        )
    return slides.fillna("")


def join_cohort(followup: Followup, present: Mapping[str, set[str]], slides: pd.DataFrame | None) -> Cohort:
    """The cohort: every patient with usable follow-up and at least one modality, sorted by id.

    present: modality → patients who have it. slides: what `read_manifest` gives, or None for a cohort without slides. A patient
    whose slides all failed stays if he has another modality. Nothing is dropped without a row in `excluded`: failed slides,
    patients without follow-up, patients without data, and data of people who are not in the follow-up table.
    Raises `InputError` when follow-up and data have no patient in common.
    """
    has = dict(present)
    if slides is None:
        slides = pd.DataFrame(columns=["slide_id", "patient_id", "status"])
    else:
        has = {"wsi": set(slides.loc[slides["status"] == "ok", "patient_id"]), **present}
    listed = set(slides["patient_id"]).union(*present.values())
    unusable = set(followup.excluded["id"])
    everyone = set(followup.patients["patient_id"]) | unusable
    if not listed & everyone:
        raise InputError(
            "the follow-up table and the data have no patient in common",
            found=f"data of {_some(sorted(listed)) or 'nobody'}",
            expected=f"ids such as {_some(sorted(everyone))}",
            remedy="Use the same patient ids in every table (TCGA: the first 12 characters of the barcode).",
        )
    candidates = followup.patients
    kept = candidates[candidates["patient_id"].isin(set().union(*has.values()))].reset_index(drop=True)
    for modality, owners in has.items():
        kept[f"has_{modality}"] = kept["patient_id"].isin(owners).astype(int)
    names = slides[slides["status"] == "ok"].sort_values("slide_id").groupby("patient_id")["slide_id"].agg(";".join)
    kept["slides"] = kept["patient_id"].map(names)
    dropped = sorted(set(candidates["patient_id"]) - set(kept["patient_id"]))
    foreign = sorted(listed - everyone)
    flow = [
        ("in the follow-up table", len(everyone), 0, ""),
        ("with usable follow-up", len(candidates), len(unusable), "time or event missing"),
        ("with at least one modality", len(kept), len(dropped), f"no usable {' or '.join(has)}"),
    ]
    excluded = [
        _failed_slides(slides),
        followup.excluded,
        _patients(dropped, [_no_modality(slides, patient, has) for patient in dropped], "Mend or add data of the patient."),
        _patients(foreign, ["has data but is not in the follow-up table"] * len(foreign), "Add the patient to the follow-up table."),
    ]
    return Cohort(
        kept,
        pd.DataFrame([row if row[2] else (*row[:3], "") for row in flow], columns=["step", "patients", "dropped", "reason"]),
        pd.concat([part for part in excluded if len(part)] or excluded[:1], ignore_index=True)[list(EXCLUDED_COLUMNS)],
        len(kept) / len(listed & everyone),
    )


def check_share(cohort: Cohort, min_share: float) -> None:
    """Raise `InputError`, listing who is lost and why, when less than `min_share` of the patients with listed data are kept."""
    log.info("cohort: %d patients, %.0f %% of those with data and follow-up listed", len(cohort.patients), 100 * cohort.share)
    if cohort.share >= min_share and len(cohort.patients):
        return
    lines = [f"{row.kind} {row.id} ({row.stage}): {row.reason}" for row in cohort.excluded.itertuples()]
    lines = [*lines[:SHOWN], *[f"and {len(lines) - SHOWN} more"][: len(lines) > SHOWN]]
    raise InputError(
        "too few patients are left: " + " | ".join(line.rstrip(".") for line in lines),
        found=f"{len(cohort.patients)} patients, {100 * cohort.share:.0f} % of those with data",
        expected=f"at least {100 * min_share:.0f} % (`min_share`)",
        remedy="Mend what is listed in excluded.tsv, or lower `min_share`.",
    )


def _failed_slides(slides: pd.DataFrame) -> pd.DataFrame:
    failed = slides[slides["status"] != "ok"].sort_values("slide_id")
    return failed.assign(kind="slide", id=failed["slide_id"]).reindex(columns=EXCLUDED_COLUMNS)


def _patients(patients: Sequence[str], reasons: Sequence[str], remedy: str) -> pd.DataFrame:
    rows = [("patient", patient, "cohort", reason, remedy) for patient, reason in zip(patients, reasons, strict=True)]
    return pd.DataFrame(rows, columns=list(EXCLUDED_COLUMNS))


def _no_modality(slides: pd.DataFrame, patient: str, has: Mapping[str, set[str]]) -> str:
    failed = int((slides["patient_id"] == patient).sum())
    lacking = [f"{failed} of {failed} listed slides failed" if name == "wsi" and failed else f"no {name}" for name in has]
    return ", ".join(lacking)


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *["…"][: len(names) > 3]])
