"""The summary of a study: one row a model, whether it ran or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.tables import numeric, read_table, write_table

OPTIMISTIC = "epoch chosen on the test fold (best_val)"  # how a note begins
TEXT = ("model", "modalities", "endpoint", "splits", "failed_folds", "note")
COLUMNS = (
    "model",
    "modalities",
    "endpoint",
    "splits",
    "patients",
    "events",
    "folds",
    "c_index",
    "c_index_std",
    "c_index_ci_low",
    "c_index_ci_high",
    "c_index_pooled",
    "c_index_pooled_ci_low",
    "c_index_pooled_ci_high",
    "pairs",
    "c_index_uno",
    "ibs",
    "auc",
    "brier",
    "accuracy",
    "majority",
    "d_calibration_p",
    "logrank_p",
    "hazard_ratio",
    "hazard_ratio_ci_low",
    "hazard_ratio_ci_high",
    "c_index_best_epoch",
    "optimism",
    "c_index_shuffled",
    "noise_floor",
    "unpredicted",
    "params",
    "train_seconds",
    "failed_folds",
    "note",
)


def write_summary(rows: list[Path], not_run: Mapping[str, str], output: Path, *, endpoint: str = "") -> None:
    """Join the models' ``evaluation.tsv`` (in the given order) and add a row for every model of `not_run` (model → reason)."""
    tables = [read_table(path, COLUMNS) for path in rows]
    absent = pd.DataFrame([{"model": model, "endpoint": endpoint, "note": f"not run: {reason}"} for model, reason in not_run.items()])
    write_table(pd.concat([*tables, absent]).reindex(columns=list(COLUMNS)), output)


def read_summary(path: Path) -> pd.DataFrame:
    """``summary.tsv`` with numbers as float64 (missing = NaN) and text as str (missing = empty)."""
    table = read_table(path, COLUMNS)[list(COLUMNS)]
    figures = [column for column in COLUMNS if column not in TEXT]
    table[figures] = numeric(table, figures, path)
    table[list(TEXT)] = table[list(TEXT)].fillna("")
    return table


def is_optimistic(row: Mapping[str, object]) -> bool:
    """Whether the row's own C-index was selected on the test fold (`best_val`), as its note says."""
    return OPTIMISTIC in str(row["note"])
