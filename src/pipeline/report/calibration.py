"""Calibration of one model, predicted against observed by groups of patients: reading ``calibration.tsv``, and its figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.evaluation.calibration import COLUMNS
from pipeline.report.drawing import BLUE, DASHES, GREY, PALE, drawing
from pipeline.tables import numeric, read_table

MAX_PANELS = 3
TICKS = (0, 0.25, 0.5, 0.75, 1)


def read_calibration(path: Path) -> pd.DataFrame:
    """``calibration.tsv`` (time in months, group 1, 2, …, patients, predicted, observed, ci_low, ci_high) by time and group.

    Groups without an observed or a predicted value are left out. Raises `InputError` as `read_table` and `numeric` do.
    """
    table = numeric(read_table(path, COLUMNS), COLUMNS, path)
    return table.dropna(subset=["time", "predicted", "observed"]).sort_values(["time", "group"], ignore_index=True)


def draw_calibration(table: pd.DataFrame, path: Path, *, kind: str = "survival") -> None:
    """Predicted against observed, one panel a time (at most 3), 95 % intervals as bars; on the dashed line both are equal.

    table: of `read_calibration`, with at least one row.
    """
    times = sorted(table.time.unique())[:MAX_PANELS]
    subject = "probability of the event" if kind == "binary" else "survival"
    width, height = 3.5 * len(times) + 0.3, 3.55
    with drawing(path, width, height, layout="none") as canvas:  # laid out by hand: in half the time, and equal for every model
        for number, time in enumerate(times):
            axes = canvas.add_axes(((3.5 * number + 0.65) / width, 0.5 / height, 2.75 / width, 2.75 / height))
            part = table[table.time == time]
            axes.plot([0, 1], [0, 1], color=GREY, linestyle=DASHES, linewidth=1)
            bars = np.abs(part[["ci_low", "ci_high"]].to_numpy().T - part.observed.to_numpy()[None])
            axes.errorbar(part.predicted, part.observed, bars, color=BLUE, fmt="-o", linewidth=1.4, elinewidth=1, markersize=5)
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=TICKS, yticks=TICKS, xlabel=f"Predicted {subject}")
            if kind == "survival":
                axes.set_title(f"At {time:.3g} months", loc="left")
            axes.grid(color=PALE, linewidth=0.6)
            axes.set_axisbelow(True)
        canvas.axes[0].set_ylabel(f"Observed {subject}")
