"""The critical-difference diagram: mean ranks of the models over the folds, and which of them ranks cannot tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.evaluation.comparison import RANK_COLUMNS
from pipeline.report.drawing import BLUE, GREY, INK, drawing
from pipeline.tables import numeric, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES = [column for column in RANK_COLUMNS if column != "model"]
FEW = 0.5  # a critical difference above this share of the widest possible one hardly separates anything (our choice)
WIDTH, MARGIN, BAR, LINE = 11.0, 2.6, 0.13, 0.25  # inches: the figure, the names on either side, between bars, between names


def read_ranks(path: Path) -> pd.DataFrame:
    """``ranks.tsv`` (model, mean_rank, folds, friedman_p, critical_difference), best rank first; models without a rank are left out."""
    table = read_table(path, RANK_COLUMNS)
    table[FIGURES] = numeric(table, FIGURES, path)
    return table.dropna(subset=["mean_rank", "critical_difference"]).sort_values(["mean_rank", "model"], ignore_index=True)


def cliques(ranks: np.ndarray, critical: float) -> list[tuple[int, int]]:
    """(first, last) of every maximal run of the sorted `ranks` [m] whose ends lie less than `critical` apart; runs of one are left out.

    Two models differ if their mean ranks differ by at least the critical difference (Demšar 2006, section 3.2.2).
    """
    ends = [int(np.searchsorted(ranks, rank + critical, side="left")) - 1 for rank in ranks]
    return [(at, end) for at, end in enumerate(ends) if end > at and (at == 0 or end > ends[at - 1])]


def rank_note(ranks: pd.DataFrame) -> str:
    """What the diagram can show: the Friedman test, the critical difference, and a warning where that is too wide to separate models."""
    models, folds, critical = len(ranks), ranks.folds.iloc[0], ranks.critical_difference.iloc[0]
    p = ranks.friedman_p.iloc[0]
    friedman = "" if not np.isfinite(p) else f"Friedman test of equal ranks: p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}. "
    text = f"{friedman}Mean ranks differ where they lie at least {critical:.2f} apart (Nemenyi, 0.05; {folds:.0f} folds)."
    if critical >= models - 1:
        text += f" No two of {models} models can lie so far apart: with so few folds, ranks separate nothing."
    elif critical > FEW * (models - 1):
        text += f" That is most of the way from first to last of {models} models: with so few folds, ranks hardly separate anything."
    return text


def draw_ranks(ranks: pd.DataFrame, path: Path) -> None:
    """The diagram of Demšar 2006, best rank on the left; a bar joins models not told apart. ranks: of `read_ranks`, not empty."""
    at, critical = ranks.mean_rank.to_numpy(), float(ranks.critical_difference.iloc[0])
    groups, left = cliques(at, critical), (len(at) + 1) // 2
    first_line = 0.3 + BAR * len(groups)
    depth = first_line + LINE * left
    span = max(len(at) - 1, 1)
    inch = span / (WIDTH - 2 * MARGIN)  # in units of rank
    with drawing(path, WIDTH, depth + 0.85, layout="none") as canvas:
        axes = canvas.add_axes((0, 0, 1, 1))
        axes.set(xlim=(1 - MARGIN * inch, 1 + span + MARGIN * inch), ylim=(depth + 0.1, -0.75))
        axes.axis("off")
        _scale(axes, len(at), min(critical, span), critical)
        for row, (start, end) in enumerate(groups):
            y = 0.2 + BAR * row
            axes.plot(at[[start, end]] + np.array([-0.04, 0.04]) * inch, [y, y], color=BLUE, linewidth=3.5, solid_capstyle="butt")
        for number, row in enumerate(ranks.itertuples()):
            on_left = number < left
            y = first_line + LINE * (number if on_left else len(at) - 1 - number)
            x, side = (1 - 0.15 * inch, "right") if on_left else (1 + span + 0.15 * inch, "left")
            axes.plot([row.mean_rank, row.mean_rank, x], [0, y, y], color=INK, linewidth=0.9)
            label = f"{row.model}   {row.mean_rank:.2f}" if on_left else f"{row.mean_rank:.2f}   {row.model}"
            axes.text(x + (-0.06 if on_left else 0.06) * inch, y, label, ha=side, va="center")


def _scale(axes: Axes, models: int, shown: float, critical: float) -> None:
    """The axis of ranks with its ticks, and above it the critical difference (cut where it is wider than the axis)."""
    axes.plot([1, max(models, 2)], [0, 0], color=INK, linewidth=1.2)
    for tick in range(1, models + 1, max(models // 10, 1)):
        axes.plot([tick, tick], [0, -0.07], color=INK, linewidth=1)
        axes.text(tick, -0.12, str(tick), ha="center", va="bottom", fontsize=9)
    axes.plot([1, 1 + shown], [-0.42, -0.42], color=GREY, linewidth=1.4, marker="|", markersize=7)
    axes.text(1 + shown / 2, -0.47, f"critical difference {critical:.2f}", ha="center", va="bottom", fontsize=9, color=GREY)
