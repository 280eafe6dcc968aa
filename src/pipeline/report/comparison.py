"""Models against each other: reading ``comparison.tsv``, its rows for the page, and the matrix of all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.evaluation.comparison import PAIR_COLUMNS
from pipeline.report.drawing import BLUE, INK, VERMILLION, drawing
from pipeline.tables import numeric, read_table

FIGURES = [column for column in PAIR_COLUMNS if column not in ("model_a", "model_b", "note")]
MAX_PAIRS = 40
SIGNIFICANT = 0.05
MAX_WRITTEN = 14  # models up to which the matrix has room for numbers


def read_comparison(path: Path) -> pd.DataFrame:
    """``comparison.tsv``: one row a pair of models, difference = a − b of the mean figure. Raises `InputError` for a damaged table."""
    table = read_table(path, PAIR_COLUMNS)
    table[FIGURES] = numeric(table, FIGURES, path)
    return table.fillna({"note": ""})


def oriented(pairs: pd.DataFrame, swap: np.ndarray) -> pd.DataFrame:
    """The same pairs with a and b exchanged where `swap` [pairs] is true: signs and interval follow."""
    turned = pairs.rename(columns={"model_a": "model_b", "model_b": "model_a", "ci_low": "ci_high", "ci_high": "ci_low"})
    turned = turned[pairs.columns]
    turned[["difference", "ci_low", "ci_high", "t"]] *= -1
    return pd.concat([pairs[~swap], turned[swap]]).sort_index()


def against(pairs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The pairs that hold `reference`, each as `model_a` − reference."""
    held = pairs[(pairs.model_a == reference) | (pairs.model_b == reference)]
    return oriented(held, (held.model_a == reference).to_numpy())


def pair_rows(pairs: pd.DataFrame) -> tuple[list[dict[str, object]], int]:
    """At most 40 pairs, better model first, by Holm-adjusted p and then by the size of the difference; and how many more there are."""
    better_first = oriented(pairs, (pairs.difference < 0).to_numpy())
    ordered = better_first.sort_values(["p_holm", "difference", "model_a", "model_b"], ascending=[True, False, True, True], kind="stable")
    return ordered[:MAX_PAIRS].to_dict("records"), max(len(ordered) - MAX_PAIRS, 0)


def draw_matrix(pairs: pd.DataFrame, models: Sequence[str], path: Path) -> None:
    """Column minus row for every pair of `models` (best first), below the diagonal; ● where the Holm-adjusted p is below 0.05."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb
    from matplotlib.patches import Rectangle

    where, count = {model: at for at, model in enumerate(models)}, len(models)
    known = pairs[pairs.model_a.isin(where) & pairs.model_b.isin(where) & np.isfinite(pairs.difference)]
    below = oriented(known, (known.model_a.map(where) > known.model_b.map(where)).to_numpy())
    limit = float(below.difference.abs().max()) if len(below) else 0.0
    colours = LinearSegmentedColormap.from_list("difference", [VERMILLION, "#ffffff", BLUE])
    written = count <= MAX_WRITTEN
    cell = 0.55 if written else 0.22
    with drawing(path, 2.6 + cell * count, 1.9 + cell * count * (0.6 if written else 1)) as canvas:
        axes = canvas.subplots()
        for pair in below.itertuples():
            x, y = where[pair.model_a], where[pair.model_b]
            colour = colours(0.5 + 0.4 * pair.difference / (limit or 1))
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
            significant = pair.p_holm < SIGNIFICANT
            text = (f"{pair.difference:+.3f}".replace("-", "−") + (" ●" if significant else "")) if written else "●" * significant
            ink = "white" if np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) < 0.45 else INK
            axes.text(x, y, text, ha="center", va="center", fontsize=9, color=ink)
        axes.set(xlim=(-0.5, count - 1.5), ylim=(count - 0.5, 0.5))
        axes.set_xticks(range(count - 1), models[:-1], rotation=40 if written else 90, ha="right" if written else "center")
        axes.set_yticks(range(1, count), models[1:])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
