"""Missing modalities on the page: reading ``scenarios.tsv``, its rows by scenario, what each takes from a model, and lines over p."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.evaluation.scenarios import COMPLETE, NOT_APPLICABLE, SCENARIO_COLUMNS, UNCHANGED
from pipeline.report.drawing import BLUE, DASHES, FOLD_COLOURS, GREY, PALE, VERMILLION, drawing
from pipeline.tables import numeric, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES = [column for column in SCENARIO_COLUMNS if column not in ("model", "scenario", "fill", "note")]
DROP = "drop "
PANELS = 3  # side by side
MARKERS = "osD^vPX"


def read_scenarios(path: Path) -> pd.DataFrame:
    """``scenarios.tsv``: one row a model and scenario, numbers as float64. Raises `InputError` for a damaged table."""
    table = read_table(path, SCENARIO_COLUMNS)
    table[FIGURES] = numeric(table, FIGURES, path)
    return table.fillna({"fill": "", "note": ""})


def scenario_groups(table: pd.DataFrame) -> list[dict[str, object]]:
    """Of every scenario its heading and its rows, highest figure first, each with a `tag`; the complete patients are no group."""
    groups = []
    for scenario, part in table[table.scenario != COMPLETE].groupby("scenario", sort=False):
        ordered = part.sort_values("c_index", ascending=False, kind="stable")
        rows = [row | {"tag": _tag(row["note"]), "note": _rest(row["note"])} for row in ordered.to_dict("records")]
        groups.append({"heading": heading(scenario), "draws": part.draws.max(), "rows": rows})
    return groups


def heading(scenario: str) -> str:
    """``without wsi`` → ``Without wsi``; ``drop 0.4`` → ``Each modality dropped with p = 0.4``."""
    dropped = f"Each modality dropped with p = {scenario.removeprefix(DROP)}"
    return dropped if scenario.startswith(DROP) else scenario[:1].upper() + scenario[1:]


def _tag(note: str) -> str:
    return next((tag for tag in (NOT_APPLICABLE, UNCHANGED) if note.startswith(tag)), "")


def _rest(note: str) -> str:
    """The note without what its tag says."""
    return "; ".join(part for part in note.split("; ") if not part.startswith(UNCHANGED)).removeprefix(f"{NOT_APPLICABLE}: ")


def probabilities(table: pd.DataFrame) -> list[str]:
    """The scenarios that drop modalities, by rising probability."""
    dropping = {scenario for scenario in table.scenario if scenario.startswith(DROP)}
    return sorted(dropping, key=lambda scenario: float(scenario.removeprefix(DROP)))


def draw_losses(table: pd.DataFrame, models: Sequence[str], path: Path, *, measure: str) -> None:
    """A panel a scenario: of each of `models` the figure on complete patients (ring) and what is left of it (dot, 95 % interval).

    Scenarios that drop modalities are drawn here only where there is a single probability; `draw_drops` has the others.
    """
    drops = probabilities(table)
    left_out = {COMPLETE, *(drops if len(drops) > 1 else [])}
    scenarios = [scenario for scenario in dict.fromkeys(table.scenario) if scenario not in left_out]
    columns = min(len(scenarios), PANELS)
    lines = -(-len(scenarios) // PANELS)
    with drawing(path, min(12.0, 2.6 + 3.1 * columns), lines * (1.0 + 0.34 * len(models)) + 0.3) as canvas:
        panels = canvas.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for at, panel in enumerate(panels.flat):
            if at >= len(scenarios):
                panel.set_axis_off()
                continue
            _panel(panel, table[table.scenario == scenarios[at]].set_index("model"), models)
            panel.set_title(heading(scenarios[at]), loc="left")
            panel.tick_params(axis="x", labelbottom=True)
        panels[0, 0].set_yticks(range(len(models)), models)
        panels[0, 0].set_ylim(len(models) - 0.4, -0.6)
        canvas.supxlabel(
            f"{measure} (○ complete, the same patients; ● under the scenario, 95 % interval; dashed: 0.5, chance)", fontsize=9.5
        )


def _panel(axes: Axes, part: pd.DataFrame, models: Sequence[str]) -> None:
    axes.axvline(0.5, color=GREY, linestyle=DASHES, linewidth=1)
    axes.grid(axis="x", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for y, model in enumerate(models):
        if model not in part.index or not np.isfinite(part.c_index[model]):
            why = _tag(part.note.get(model, "")) or "no figure"
            style = {"ha": "center", "va": "center", "fontsize": 8.5, "color": GREY, "backgroundcolor": "white", "zorder": 3}
            axes.text(0.5, y, why, transform=axes.get_yaxis_transform(), **style)
            continue
        row = part.loc[model]
        unchanged = _tag(row.note) == UNCHANGED
        colour = GREY if unchanged else VERMILLION if row.difference < 0 else BLUE
        axes.plot([row.ci_low, row.ci_high], [y, y], color=colour, linewidth=1.6, alpha=0.45, solid_capstyle="butt")
        if not unchanged:
            axes.annotate("", (row.c_index, y), (row.complete, y), arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.2})
            axes.plot(row.complete, y, "o", markersize=6.5, markerfacecolor="white", markeredgecolor=GREY, markeredgewidth=1.3)
        axes.plot(row.c_index, y, "o", markersize=6.5, color=colour, zorder=2.5)


def draw_drops(table: pd.DataFrame, models: Sequence[str], path: Path, *, measure: str) -> None:
    """Three panels over the probability p with which each modality is dropped, a line a model; at p = 0 the complete patients.

    The figure; what it differs from that of the same patients complete (the first moves with the patients who are left, this does not);
    and the share of patients who still have a prediction.
    """
    scenarios = [COMPLETE, *probabilities(table)]
    at = [0.0, *(float(scenario.removeprefix(DROP)) for scenario in scenarios[1:])]
    panels = {
        f"{measure} (dashed: 0.5, chance)": 0.5,
        "Difference from the same patients complete": 0.0,
        "Patients with a prediction (%)": None,
    }
    with drawing(path, 12, 4.2) as canvas:
        axes = canvas.subplots(1, len(panels))
        for model, colour, marker in zip(models, cycle(FOLD_COLOURS), cycle(MARKERS), strict=False):
            rows = table[table.model == model].set_index("scenario").reindex(scenarios)
            share = 100 * rows.patients / (rows.patients + rows.unpredicted)
            for panel, line in zip(axes, (rows.c_index, rows.difference.where(rows.index != COMPLETE, 0.0), share), strict=True):
                panel.plot(at, line, color=colour, marker=marker, markersize=5, linewidth=1.5, label=model)
        for panel, (title, level) in zip(axes, panels.items(), strict=True):
            panel.set_title(title, loc="left")
            panel.set(xlabel="Each modality dropped with p", xticks=at)
            panel.grid(color=PALE, linewidth=0.6)
            panel.set_axisbelow(True)
            if level is not None:
                panel.axhline(level, color=GREY, linestyle=DASHES, linewidth=1, zorder=1)
        axes[-1].set_ylim(bottom=0)
        canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(models), 6))
