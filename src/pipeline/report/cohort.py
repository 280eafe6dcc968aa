"""The report's sections on the cohort: its numbers, the flow of patients, the molecular tables, and what was excluded."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline.evaluation.folds import Cohort
from pipeline.tables import numeric, read_table

MAX_REASONS = 60
MAX_IDS = 8
OMICS_TEXT = ["file", "kind", "unit", "source", "transform"]
OMICS_COUNTS = ["patients", "features", "missing"]


def key_numbers(cohort: Cohort, slides: pd.DataFrame, summary: pd.DataFrame, kind: str) -> list[tuple[str, str, str]]:
    """(figure, unit, detail) of the strip under the title. slides: of `read_manifests`, may be empty."""
    follow_up = cohort.follow_up
    events, ran, absent = int(follow_up.event.sum()), int((summary.folds > 0).sum()), int(summary.folds.isna().sum())
    failed = len(summary) - ran - absent
    observed = "" if kind == "binary" else f"{follow_up.time.median():.0f} months observed (median)"
    numbers = [
        (str(len(follow_up)), "patients", observed),
        (str(events), "positive" if kind == "binary" else "events", f"{events / max(len(follow_up), 1):.0%} of the patients"),
        (str(len(cohort.test)), "folds", _tested(cohort)),
        (str(ran), "models evaluated", f"{absent} not run" + f", {failed} failed" * bool(failed)),
    ]
    if len(slides):
        ok = slides[slides.status == "ok"].slide_id.nunique()
        numbers.append((str(ok), "slides used", f"{slides.slide_id.nunique() - ok} excluded"))
    return numbers


def _tested(cohort: Cohort) -> str:
    times = pd.Series([patient for fold in cohort.test.values() for patient in fold.patient_id], dtype=object).value_counts()
    if set(times.index) == set(cohort.follow_up.index) and times.nunique() == 1:
        return "each patient tested once" if times.iloc[0] == 1 else f"each patient tested {times.iloc[0]} times"
    return f"{len(times)} patients tested"


def flow_steps(path: Path) -> list[dict[str, object]]:
    """The steps of ``flow.tsv`` with `share`, the per cent of the largest step's patients that the step has."""
    table = read_table(path, ["step", "patients", "dropped", "reason"])
    table[["patients", "dropped"]] = numeric(table, ["patients", "dropped"], path).fillna(0).astype(int)
    most = max(int(table.patients.max()) if len(table) else 1, 1)
    return table.fillna("").assign(share=(100 * table.patients / most).round(1)).to_dict("records")


def molecular_tables(path: Path | None) -> list[dict[str, object]]:
    """Rows of ``omics/tables.tsv``: what the numbers of each table are, whether that was stated or detected, and what was done to them."""
    if path is None:
        return []
    table = read_table(path, [*OMICS_TEXT, *OMICS_COUNTS])
    table[OMICS_COUNTS] = numeric(table, OMICS_COUNTS, path)
    return table.fillna(dict.fromkeys(OMICS_TEXT, "")).to_dict("records")


def excluded_groups(path: Path) -> dict[str, object]:
    """Slides and patients of ``excluded.tsv`` grouped by kind, stage, reason and remedy, the largest group first."""
    keys = ["kind", "stage", "reason", "remedy"]
    table = read_table(path, [*keys, "id"]).fillna("")
    groups = [(key, sorted(part.id)) for key, part in table.groupby(keys, sort=True)]
    groups.sort(key=lambda group: -len(group[1]))
    rows = [
        dict(zip(keys, key, strict=True)) | {"count": len(ids), "ids": ids[:MAX_IDS], "more": max(len(ids) - MAX_IDS, 0)}
        for key, ids in groups
    ]
    counts = {kind: int((table.kind == kind).sum()) for kind in ("slide", "patient")}
    return {"rows": rows[:MAX_REASONS], "more": max(len(rows) - MAX_REASONS, 0), "counts": counts}
