"""The sentences at the top of the report: what the table says, and what it cannot say."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.evaluation.summary import is_optimistic

COIN = 0.25  # integrated Brier score of predicting 0.5 for everybody at all times


def findings(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(kind, sentence) with kind ``result``, ``caution`` or ``problem``; `table` is the summary by descending c_index."""
    known = table[np.isfinite(table.c_index)]
    fair = known[[not is_optimistic(row) for row in known.to_dict("records")]]
    return [*_best(fair), *_chance(known), *_calibration(known), *_gap(known), *_optimistic(known, fair), *_failures(table)]


def _best(fair: pd.DataFrame) -> list[tuple[str, str]]:
    if fair.empty:
        return [("problem", "No model has a C-index from an epoch that was fixed without the test patients.")]
    best = fair.iloc[0]
    interval = f"95 % interval {best.c_index_ci_low:.3f} to {best.c_index_ci_high:.3f}"
    what = "has the highest C-index:" if len(fair) > 1 else "has a C-index of"
    text = f"{best.model} {what} {best.c_index:.3f} ({interval}, mean over {best.folds:.0f} folds)."
    rivals = int((fair.c_index_ci_high.iloc[1:] >= best.c_index_ci_low).sum())
    if rivals:
        text += f" The intervals of {rivals} of the {len(fair) - 1} other models reach into its interval: this table does not rank them."
    return [("result", text)]


def _chance(known: pd.DataFrame) -> list[tuple[str, str]]:
    names = known.model[(known.c_index_ci_low <= 0.5) & (known.c_index_ci_high >= 0.5)]
    return [("caution", f"Not told apart from chance (interval contains 0.5): {', '.join(names)}.")] if len(names) else []


def _calibration(known: pd.DataFrame) -> list[tuple[str, str]]:
    names = known.model[known.ibs > COIN]
    text = f"Survival curves worse than predicting 0.5 for everybody at all times (IBS above {COIN}): {', '.join(names)}."
    return [("caution", text)] if len(names) else []


def _gap(known: pd.DataFrame) -> list[tuple[str, str]]:
    gaps = known[np.isfinite(known.optimism)]
    if gaps.empty:
        return []
    top = gaps.loc[gaps.optimism.idxmax()]
    text = f"Choosing each fold's epoch on its own test patients would add {gaps.optimism.mean():.3f} to the C-index"
    text += f" on average, most for {top.model}" if len(gaps) > 1 else ""
    return [("caution", f"{text}: {top.c_index_best_epoch:.3f} in place of {top.c_index:.3f}.")]


def _optimistic(known: pd.DataFrame, fair: pd.DataFrame) -> list[tuple[str, str]]:
    names = known.model[~known.index.isin(fair.index)]
    return [("problem", f"Epoch chosen on the test fold, C-index optimistic: {', '.join(names)}.")] if len(names) else []


def _failures(table: pd.DataFrame) -> list[tuple[str, str]]:
    failed = table[table.failed_folds != ""]
    rest = {True: "its figures are those of the other folds", False: "it has no figures"}
    found = [("problem", f"{row.model}: failed in fold {row.failed_folds}; {rest[row.folds > 0]}.") for row in failed.itertuples()]
    absent = table.model[table.folds.isna()]
    return found + ([("caution", f"Not run: {', '.join(absent)} (reasons below).")] if len(absent) else [])
