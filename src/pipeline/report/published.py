"""The table "published | habit | honest": what papers print beside what this workflow gets, by their habit and without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import InputError, nearest
from pipeline.evaluation.summary import is_optimistic, read_summary
from pipeline.files import write_text
from pipeline.tables import write_table

COLUMNS = (
    "source",
    "cohort",
    "model",
    "patients",
    "published",
    "published_sd",
    "habit",
    "honest",
    "ci_low",
    "ci_high",
    "shuffled",
    "noise_floor",
    "within_sd",
    "note",
)
OURS = {
    "patients": "patients",
    "habit": "c_index_best_epoch",
    "honest": "c_index",
    "ci_low": "c_index_ci_low",
    "ci_high": "c_index_ci_high",
    "shuffled": "c_index_shuffled",
    "noise_floor": "noise_floor",
}
ENTRY = {"model", "endpoint", "source", "protocol", "cohorts"}
FIGURE = {"mean", "sd", "n"}
ABSENT = "–"
ROUNDING = 1e-9  # 0.640 − 0.618 is not above 0.022
FIGURES = ["Patients", "Published", "Habit", "Honest", "95 % interval", "Permuted", "Noise floor", "Within one SD"]
TEXT = """# Published, habit, honest

Written by the rule `published`; changes made here are overwritten.

- **Published**: mean C-index ± spread over folds as printed in the source.
- **Habit**: ours, the best epoch of each fold chosen on its own test patients, which is how many published figures were made.
- **Honest**: ours, the epoch fixed without the test patients, with the 95 % interval of a bootstrap over patients.
- **Permuted**: the honest figure, and **Noise floor** the habit's, after training on permuted labels.
- **Within one SD**: whether the habit's figure lies within one published standard deviation of the published one.

A dash means that this study was not run, or that the source does not say.
"""


def write_published(rows: Mapping[str, Any], summaries: Mapping[str, Path], output_tsv: Path, output_md: Path) -> None:
    """Write the table as TSV (`COLUMNS`) and as Markdown.

    rows: the content of a file of ``config/papers``: ``published``, a list of {model, endpoint, source, protocol, cohorts}, where
    cohorts maps a cohort to {mean, sd, n}. summaries: cohort → its ``summary.tsv``; one that is not there leaves our figures empty,
    as does one of another endpoint, which the note says. Raises `InputError` for an entry that cannot be read.
    """
    known = {cohort: read_summary(path) for cohort, path in summaries.items() if Path(path).is_file()}
    table = pd.DataFrame([_row(*figure, known) for figure in _figures(rows)], columns=list(COLUMNS))
    write_table(table, output_tsv)
    header = ["Source", "Cohort", "Model", *FIGURES]
    lines = [_line(header), _line(["---"] * len(header)), *(_line(_cells(row)) for row in table.to_dict("records"))]
    write_text(output_md, "\n".join([TEXT, *lines, "", "## Notes", "", *_notes(table), ""]))


def _figures(rows: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    """(entry, cohort, figure) in the order of the file."""
    entries = rows.get("published") if isinstance(rows, Mapping) else None
    if not isinstance(entries, list):
        raise InputError("published figures are no list", found=type(entries).__name__, expected="published: [{model, …}, …]")
    for number, entry in enumerate(entries, start=1):
        _check(entry, ENTRY, ENTRY, f"entry {number} of the published figures")
        for cohort, figure in entry["cohorts"].items():
            _check(figure, {"mean"}, FIGURE, f"entry {number} of the published figures, cohort {cohort}")
            _check_numbers(figure, f"entry {number} of the published figures, cohort {cohort}")
            yield entry, cohort, figure


def _check(mapping: object, required: set[str], allowed: set[str], where: str) -> None:
    keys = set(mapping) if isinstance(mapping, Mapping) else set()
    for key in sorted(required - keys):
        raise InputError(f"{where} lacks {key!r}", found=", ".join(sorted(keys)) or mapping, expected=", ".join(sorted(required)))
    for key in sorted(keys - allowed):
        raise InputError(f"{where} has an unknown key", found=key, expected=", ".join(sorted(allowed)), remedy=nearest(key, allowed))


def _check_numbers(figure: Mapping[str, Any], where: str) -> None:
    for key, value in figure.items():
        if not isinstance(value, (int, float)) and not (value is None and key != "mean"):
            raise InputError(f"{where}: {key!r} is not a number", found=value, expected="a number")


def _row(entry: Mapping[str, Any], cohort: str, figure: Mapping[str, Any], known: Mapping[str, pd.DataFrame]) -> dict[str, object]:
    mean, sd, n = figure["mean"], figure.get("sd"), figure.get("n")
    row = {"source": entry["source"], "cohort": cohort, "model": entry["model"], "published": mean, "published_sd": sd}
    notes = [entry["protocol"]]
    ours, reason = _ours(entry, known.get(cohort))
    notes += [reason] if reason else []
    if ours is not None:
        row |= {column: ours[name] for column, name in OURS.items()}
        notes += [f"published on {n} patients"] if n and n != ours["patients"] else []
        notes += ["our own epoch was chosen on the test fold: honest is optimistic"] if is_optimistic(ours) else []
        if sd is not None and pd.notna(row["habit"]):
            row["within_sd"] = "yes" if abs(row["habit"] - mean) <= sd + ROUNDING else "no"
    return row | {"note": "; ".join(notes)}


def _ours(entry: Mapping[str, Any], summary: pd.DataFrame | None) -> tuple[dict[str, object] | None, str]:
    """Our row of the summary, or None and why there is none to compare."""
    if summary is None:
        return None, "cohort not run here"
    rows = summary[(summary.model == entry["model"]) & summary.c_index.notna()].to_dict("records")
    if not rows:
        return None, "model without a figure here"
    if rows[0]["endpoint"] != entry["endpoint"]:
        return None, f"not comparable: published is {entry['endpoint']}, ours is {rows[0]['endpoint']}"
    return rows[0], ""


def _cells(row: Mapping[str, Any]) -> list[str]:
    published = _decimals(row["published"]) + (f" ± {row['published_sd']:.3f}" if pd.notna(row["published_sd"]) else "")
    interval = f"{row['ci_low']:.3f}–{row['ci_high']:.3f}" if pd.notna(row["ci_low"]) else ABSENT
    patients = f"{row['patients']:.0f}" if pd.notna(row["patients"]) else ABSENT
    habit, honest, shuffled, noise = (_decimals(row[name]) for name in ("habit", "honest", "shuffled", "noise_floor"))
    verdict = row["within_sd"] if pd.notna(row["within_sd"]) else ABSENT
    return [row["source"], row["cohort"], row["model"], patients, published, habit, honest, interval, shuffled, noise, verdict]


def _notes(table: pd.DataFrame) -> Iterator[str]:
    """Every note once, with the figures that it is about."""
    for (source, note), rows in table.groupby(["source", "note"], sort=False):
        about = ", ".join(f"{model} on {cohort}" for model, cohort in zip(rows.model, rows.cohort, strict=True))
        yield f"- {_escape(source)} ({_escape(about)}): {_escape(note)}."


def _decimals(value: float) -> str:
    return f"{value:.3f}" if pd.notna(value) else ABSENT


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(_escape, cells)) + " |"


def _escape(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
