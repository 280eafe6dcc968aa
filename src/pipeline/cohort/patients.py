"""Who is in the cohort, with which modalities, and who is not and why; owner of `patients.tsv`, `flow.tsv`, `excluded.tsv`."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import tables
from pipeline.cohort.followup import EXCLUDED_COLUMNS, FLOW_COLUMNS, Followup, read_followup
from pipeline.cohort.vectors import read_vectors
from pipeline.errors import InputError, nearest
from pipeline.omics.matrix import read_matrix

log = logging.getLogger(__name__)

SHOWN, REASONS = 20, 5  # lines of a message


@dataclass(frozen=True)
class Cohort:
    """patients, flow, excluded: the three tables, columns as in docs/architecture.md.

    share: patients kept ÷ patients of the follow-up table for whom any data were listed, failed slides included, and whom
    neither the endpoint's definition nor `include` leaves out.
    """

    patients: pd.DataFrame
    flow: pd.DataFrame
    excluded: pd.DataFrame
    share: float


@dataclass(frozen=True)
class Source:
    """One modality: patients who have it; those who are listed without (no value, no usable slide), and how that is said of all of them."""

    patients: set[str]
    without: set[str] = field(default_factory=set)
    lacking: str = "without any value"


def build_cohort(
    followup: Mapping[str, Any],
    *,
    patients: str | Path,
    flow: str | Path,
    excluded: str | Path,
    omics: str | Path | None = None,
    manifest: str | Path | None = None,
    vectors: Mapping[str, Mapping[str, Any]] | None = None,
    bags: Mapping[str, str | Path] | None = None,
    include: Sequence[Mapping[str, Any]] = (),
    min_share: float = 0.5,
) -> Cohort:
    """Join follow-up with the modalities at hand and write `patients`, `flow` and `excluded`.

    followup: ``file`` and the options of `read_followup`. omics: `omics.h5`. manifest: the slides' manifest, of which rows with
    status ``ok`` count. vectors: modality → ``file`` and the options of `read_vectors`. bags: modality → its file of bags. Any of
    the four may be absent; a modality that is given makes a column ``has_<modality>``. include: conditions, all of which must
    hold (see `restrict`). The flow is also told to the log. Raises `InputError` as the readers do and as `restrict`,
    `join_cohort`, `check_slides` and `check_share` do (the last two after `excluded` is written).
    """
    sources = {} if omics is None else {"omics": Source(set(read_matrix(omics).patients))}
    sources |= {name: _bag_source(path) for name, path in (bags or {}).items()}
    sources |= {name: _table_source(spec) for name, spec in (vectors or {}).items()}
    slides = None if manifest is None else read_manifest(manifest)
    followed = restrict(read_followup(**followup), include)
    cohort = join_cohort(followed, sources, slides)
    log.info("cohort flow: %s", _told(cohort.flow))
    tables.write_table(cohort.excluded, excluded)
    if slides is not None:
        check_slides(slides[slides["patient_id"].isin(followed.patients["patient_id"])], min_share)
    check_share(cohort, min_share)
    tables.write_table(cohort.patients, patients)
    tables.write_table(cohort.flow, flow)
    return cohort


def _table_source(spec: Mapping[str, Any]) -> Source:
    table = read_vectors(**spec)
    return Source(set(table.patients), set(table.empty))


def _bag_source(path: str | Path) -> Source:
    from pipeline.cohort.bags import read_bags

    return Source(set(read_bags(path)))


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


def restrict(followup: Followup, include: Sequence[Mapping[str, Any]]) -> Followup:
    """The patients who meet every condition: ``column`` of ``table`` (a path) holds one of ``values``, letter by letter.

    ``patient_id`` names the table's id column. Who is not in the table does not meet the condition. Those left out are listed
    and count as left out by definition, a row of the flow a condition. Raises `InputError` for an unusable table, a value that
    the column does not have, and when nobody is left.
    """
    for condition in include:
        followup = _restricted(followup, **condition)
    return followup


def _restricted(followup: Followup, table: str | Path, column: str, values: Sequence[str], patient_id: str = "patient_id") -> Followup:
    listed = tables.read_table(table, [column], patient_id=patient_id)
    cells = dict(zip(listed["patient_id"], listed[column].fillna("an empty cell"), strict=True))
    wanted = list(map(str, values))
    for value in wanted:
        if value not in set(cells.values()):
            problem, remedy = "no patient has this value of `include`", nearest(value, set(cells.values()))
            raise InputError(problem, file=table, column=column, found=value, expected="a value of the column", remedy=remedy)
    left = followup.patients["patient_id"].map(cells).isin(wanted)
    out = list(followup.patients["patient_id"][~left])
    if not left.any():
        raise InputError("nobody of the follow-up table meets the condition", file=table, column=column, expected=" or ".join(wanted))
    reasons = [f"{column} is {cells[patient]}" if patient in cells else f"not in the table that holds {column}" for patient in out]
    only = f"{column} = {' or '.join(wanted)}"
    step = (f"with {only}", int(left.sum()), len(out), f"not {only}" if out else "")
    return Followup(
        followup.patients[left].reset_index(drop=True),
        pd.concat([followup.excluded, _patients(out, reasons, "Change `include` to keep the patient.", "include")], ignore_index=True),
        pd.concat([followup.flow, pd.DataFrame([step], columns=list(FLOW_COLUMNS))], ignore_index=True),
        followup.by_definition | set(out),
    )


def join_cohort(followup: Followup, sources: Mapping[str, Source], slides: pd.DataFrame | None) -> Cohort:
    """The cohort: every patient with usable follow-up and at least one modality, sorted by id.

    sources: by modality. slides: what `read_manifest` gives, or None for a cohort without slides. A patient whose slides all
    failed stays if he has another modality. Nothing is dropped without a row in `excluded`: failed slides, patients without
    follow-up, patients without data, and data of people who are not in the follow-up table. The flow has a row a step, then one
    a modality: of the patients listed there (patients + dropped), those matched with the follow-up table.
    Raises `InputError` when follow-up and data, or the data of one modality, have no patient in common.
    """
    sources = dict(sources)
    if slides is None:
        slides = pd.DataFrame(columns=["slide_id", "patient_id", "status"])
    else:
        usable = set(slides.loc[slides["status"] == "ok", "patient_id"])
        sources = {"wsi": Source(usable, set(slides["patient_id"]) - usable, "without a usable slide"), **sources}
    listed = set[str]().union(*(source.patients | source.without for source in sources.values()))
    unusable = set(followup.excluded["id"])
    candidates = followup.patients
    everyone = set(candidates["patient_id"]) | unusable
    for modality, theirs in {**{name: s.patients | s.without for name, s in sources.items()}, "": listed}.items():
        if not theirs & everyone and (theirs or not modality):
            raise InputError(
                f"the follow-up table and {modality or 'the data'} have no patient in common",
                found=f"data of {_some(sorted(theirs)) or 'nobody'}",
                expected=f"ids such as {_some(sorted(everyone))}",
                remedy="Use the same patient ids in every table (TCGA: the first 12 characters of the barcode).",
            )
    owners = set[str]().union(*(source.patients for source in sources.values()))
    kept = candidates[candidates["patient_id"].isin(owners)].reset_index(drop=True)
    for modality, source in sources.items():
        kept[f"has_{modality}"] = kept["patient_id"].isin(source.patients).astype(int)
    names = slides[slides["status"] == "ok"].sort_values("slide_id").groupby("patient_id")["slide_id"].agg(";".join)
    kept["slides"] = kept["patient_id"].map(names)
    dropped = sorted(set(candidates["patient_id"]) - owners)
    step = ("with at least one modality", len(kept), len(dropped), f"no usable {' or '.join(sources)}" if dropped else "")
    flow = [step, *(_matched(name, source, everyone) for name, source in sources.items())]
    foreign = sorted(listed - everyone)
    excluded = [
        _failed_slides(slides),
        followup.excluded,
        _patients(dropped, [_no_modality(slides, patient, sources) for patient in dropped], "Mend or add data of the patient."),
        _patients(foreign, ["has data but is not in the follow-up table"] * len(foreign), "Add the patient to the follow-up table."),
    ]
    return Cohort(
        kept,
        pd.concat([followup.flow, pd.DataFrame(flow, columns=list(FLOW_COLUMNS))], ignore_index=True),
        pd.concat([part for part in excluded if len(part)] or excluded[:1], ignore_index=True)[list(EXCLUDED_COLUMNS)],
        len(kept) / max(1, len(listed & everyone - followup.by_definition)),
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


def check_slides(slides: pd.DataFrame, min_share: float) -> None:
    """Raise `InputError`, with the reasons and how many slides each cost, when less than `min_share` of the `slides` could be used.

    Most slides that fail have one reason, and it is seldom the slides'.
    """
    failed = slides[slides["status"] != "ok"]
    if len(slides) - len(failed) >= min_share * len(slides):
        return
    kinds = [_kind(*row) for row in zip(failed["stage"], failed["slide_id"], failed["reason"], strict=True)]
    reasons = [f"{count} × {kind}" for kind, count in Counter(kinds).most_common()]
    reasons = [*reasons[:REASONS], *[f"and {len(reasons) - REASONS} more reasons"][: len(reasons) > REASONS]]
    raise InputError(
        "too few slides could be used: " + " | ".join(reasons),
        found=f"{len(slides) - len(failed)} of {len(slides)} slides of the patients with follow-up",
        expected=f"at least {100 * min_share:.0f} % (`min_share`)",
        remedy="Mend what is listed in excluded.tsv, or lower `min_share`.",
    )


def _kind(stage: str, slide_id: str, reason: str) -> str:
    """A failed slide's reason without what is its own: its name, and the numbers that were found.

    >>> _kind("tissue", "a1", "/data/a1.svs: more than 10% of the slide cannot be read (tile 3, 4); found '12 %', expected 10 %.")
    'tissue: more than 10% of the slide cannot be read'
    >>> _kind("encode", "a1", "slide a1: reading it ended the process 2 times (SIGSEGV: a crash).")
    'encode: reading it ended the process 2 times'
    """
    where, colon, rest = reason.partition(": ")
    text = rest if colon and slide_id in where else reason
    return f"{stage}: {re.split(r' [(]|; found|; expected|[.]$', text)[0]}"


def _failed_slides(slides: pd.DataFrame) -> pd.DataFrame:
    failed = slides[slides["status"] != "ok"].sort_values("slide_id")
    return failed.assign(kind="slide", id=failed["slide_id"]).reindex(columns=EXCLUDED_COLUMNS)


def _patients(patients: Sequence[str], reasons: Sequence[str], remedy: str, stage: str = "cohort") -> pd.DataFrame:
    rows = [("patient", patient, stage, reason, remedy) for patient, reason in zip(patients, reasons, strict=True)]
    return pd.DataFrame(rows, columns=list(EXCLUDED_COLUMNS))


def _matched(name: str, source: Source, everyone: set[str]) -> tuple[str, int, int, str]:
    """The modality's row of the flow."""
    foreign = len((source.patients | source.without) - everyone)
    lacking = len(source.without & everyone)
    reasons = [f"{foreign} not in the follow-up table"][: foreign > 0] + [f"{lacking} {source.lacking}"][: lacking > 0]
    return f"{name}: matched with follow-up", len(source.patients & everyone), foreign + lacking, ", ".join(reasons)


def _told(flow: pd.DataFrame) -> str:
    """The flow as lines of text."""
    width = flow["step"].str.len().max()
    rows = [("", "patients", "dropped", "reason"), *flow.itertuples(index=False)]
    return "\n".join(f"{step:<{width}}  {patients:>8}  {dropped:>7}  {reason}".rstrip() for step, patients, dropped, reason in rows)


def _no_modality(slides: pd.DataFrame, patient: str, modalities: Iterable[str]) -> str:
    failed = int((slides["patient_id"] == patient).sum())
    lacking = [f"{failed} of {failed} listed slides failed" if name == "wsi" and failed else f"no {name}" for name in modalities]
    return ", ".join(lacking)


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *["…"][: len(names) > 3]])
