"""The figures of a study's models as SVG files: forest plot, Kaplan–Meier, training curves. Same data, same bytes."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.evaluation.folds import Fold
from pipeline.evaluation.metrics import median_split
from pipeline.evaluation.summary import is_optimistic
from pipeline.report.drawing import AMBER, BLUE, DASHES, FOLD_COLOURS, GREY, INK, PALE, VERMILLION, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_FOLD_LABELS = 10
DENSE = 14  # more models than this share the height of a page


def draw_kaplan_meier(folds: list[Fold], caption: str, path: Path) -> None:
    """Survival of the risk halves of `median_split` with 95 % bands, numbers at risk below, `caption` in the corner."""
    time, event, high = median_split(folds)
    with drawing(path, 5.4, 4.3) as canvas:
        axes, table = canvas.subplots(2, 1, height_ratios=[5, 1], sharex=True)
        groups = [("High risk", high, VERMILLION), ("Low risk", ~high, BLUE)]
        for label, members, colour in groups:
            _survival_curve(axes, time[members], event[members], label, colour)
        axes.set(ylim=(0, 1.02), ylabel="Survival probability")
        axes.set_xlim(0, max(float(time.max(initial=1.0)), 1e-9) * 1.02)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)  # above: curves may be anywhere
        axes.text(0.02, 0.04, caption, transform=axes.transAxes, va="bottom", linespacing=1.5)
        ticks = [t for t in axes.get_xticks() if 0 <= t <= axes.get_xlim()[1]]
        table.set(ylim=(-0.6, 1.6), xlabel="Months", xticks=ticks)
        table.set_yticks([1, 0], ["High", "Low"])
        table.set_title("Patients at risk", fontsize=9, loc="left", color=GREY, pad=2)
        table.tick_params(length=0)
        table.tick_params(axis="y", pad=16)
        table.spines[:].set_visible(False)
        for row, (_, members, colour) in zip((1, 0), groups, strict=True):
            table.get_yticklabels()[1 - row].set_color(colour)
            for tick in ticks:
                table.text(tick, row, str(int((time[members] >= tick).sum())), ha="center", va="center", fontsize=9, color=INK)


def _survival_curve(axes: Axes, time: np.ndarray, event: np.ndarray, label: str, colour: str) -> None:
    label = f"{label} ({len(time)} patients, {int(event.sum())} events)"
    if not len(time):
        axes.plot([], [], color=colour, label=label)
        return
    from lifelines import KaplanMeierFitter

    fitted = KaplanMeierFitter().fit(time, event)
    curve, band = fitted.survival_function_.iloc[:, 0], fitted.confidence_interval_.to_numpy()
    steps = np.append(curve.diff().to_numpy()[:-1] != 0, True)  # the first, the last and every time at which the curve falls
    at, curve, band = curve.index.to_numpy(float)[steps], curve.to_numpy()[steps], band[steps]
    axes.fill_between(at, band[:, 0], band[:, 1], step="post", color=colour, alpha=0.15, linewidth=0)
    axes.step(at, curve, where="post", color=colour, linewidth=1.8, label=label)
    censored = np.unique(time[~event])
    if len(censored):  # all ticks as one path: a marker each would double the size of the file
        level = np.add.outer(np.asarray(fitted.predict(censored), float).reshape(-1), [-0.012, 0.012, np.nan])
        axes.plot(np.repeat(censored, 3), level.ravel(), color=colour, linewidth=0.8)


def draw_forest(summary: pd.DataFrame, path: Path, *, measure: str = "C-index", reference: str | None = None) -> None:
    """Every evaluated model in the order of `summary`: honest figure with interval, the habit's (hollow), and the habit's on noise (bar).

    measure: what `c_index` is called here. reference: the model at whose figure a line is drawn, where it was evaluated.
    """
    table = summary[np.isfinite(summary.c_index)].reset_index(drop=True)
    step = 0.42 if len(table) <= DENSE else 0.3
    with drawing(path, 11, 1.45 + step * max(len(table), 1)) as canvas:
        axes = canvas.subplots()
        rows = np.arange(len(table))
        axes.axvline(0.5, color=GREY, linestyle=DASHES, linewidth=1)
        for figure in table.c_index[table.model == reference]:
            axes.axvline(figure, color=BLUE, alpha=0.35, linewidth=1.4, label=f"the reference, {reference}", zorder=0.5)
        colours = [GREY if is_optimistic(row._asdict()) else BLUE for row in table.itertuples()]
        axes.hlines(rows, table.c_index_ci_low, table.c_index_ci_high, colors=colours, linewidth=2)
        habit = table.c_index_best_epoch.where(table.optimism > 0)  # nothing to show where there was no epoch to choose
        axes.hlines(rows, table.c_index, habit, color=VERMILLION, linewidth=1, linestyle=(0, (1, 1.5)), zorder=1)
        axes.plot([], [], "-s", color=BLUE, markersize=7, linewidth=2, label="honest: mean over folds, 95 % interval")
        axes.scatter(table.c_index, rows, marker="s", s=49, c=colours, zorder=2.5)
        hollow = {"markerfacecolor": "white", "markeredgecolor": VERMILLION, "markeredgewidth": 1.5}
        axes.plot(habit, rows, "D", markersize=6.5, label="habit: best epoch chosen on the test fold", **hollow)
        if table.noise_floor.notna().any():
            label = "noise floor: that habit on permuted training labels"
            axes.plot(
                table.noise_floor.where(habit.notna()), rows, "|", color=AMBER, markersize=15, markeredgewidth=3, label=label, zorder=2.2
            )
        axes.set_yticks(rows, [_forest_label(row, reference) for row in table.itertuples()])
        axes.set(ylim=(len(table) - 0.4, -0.6), xlabel=f"{measure} (dashed: 0.5, chance)")
        axes.grid(axis="x", color=PALE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        for at, row in enumerate(table.itertuples()):
            text = f"{row.c_index:.3f}  [{row.c_index_ci_low:.3f}, {row.c_index_ci_high:.3f}]"
            axes.text(1.02, at, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.3)


def _forest_label(row: object, reference: str | None) -> str:
    marks = {
        "reference": row.model == reference,
        "optimistic": is_optimistic(row._asdict()),
        f"only {row.folds:.0f} folds": bool(row.failed_folds),
    }
    return " · ".join([row.model, row.modalities, *(mark for mark, holds in marks.items() if holds)])


def draw_training(folds: list[Fold], path: Path, *, measure: str = "C-index") -> None:
    """Training loss and test figure by epoch, a line a fold; filled: the epoch that was used, hollow: the best on the test fold."""
    with drawing(path, 5.4, 4.3) as canvas:
        loss, c_index = canvas.subplots(2, 1, sharex=True)
        for fold, colour in zip(folds, cycle(FOLD_COLOURS), strict=False):
            history, label = fold.history, f"fold {fold.number}" + (" (failed)" if fold.failure else "")
            line = {"color": colour, "linewidth": 1.2, "linestyle": ":" if fold.failure else "-"}
            loss.plot(history.epoch, history.train_loss, label=label, **line)
            c_index.plot(history.epoch, history.test_c_index, **line)
            _mark(loss, history, chosen_row(fold), "train_loss", colour, filled=True)
            _mark(c_index, history, chosen_row(fold), "test_c_index", colour, filled=True)
            _mark(c_index, history, _argmax(history.test_c_index), "test_c_index", colour, filled=False)
        c_index.axhline(0.5, color=GREY, linestyle=DASHES, linewidth=1)
        loss.set(ylabel="Training loss")
        c_index.set(ylabel=f"Test {measure}", xlabel="Epoch   (● used   ◇ best on the test fold)")
        c_index.xaxis.get_major_locator().set_params(integer=True)
        if len(folds) <= MAX_FOLD_LABELS:
            canvas.legend(loc="outside upper center", ncols=min(len(folds), 5), handlelength=1.2, columnspacing=1.2)


def chosen_row(fold: Fold) -> int | None:
    """Row of the history whose weights made the predictions: the last, under `inner` the lowest inner loss, under `best_val` the best."""
    if fold.failure or fold.history.empty:
        return None
    if fold.selection == "inner":
        return _argmax(-fold.history.inner_loss)
    return _argmax(fold.history.test_c_index) if fold.selection == "best_val" else len(fold.history) - 1


def _argmax(values: pd.Series) -> int | None:
    return int(np.nanargmax(values)) if values.notna().any() else None


def _mark(axes: Axes, history: pd.DataFrame, row: int | None, column: str, colour: object, *, filled: bool) -> None:
    if row is not None:
        shape = {"marker": "o", "markersize": 5.5} if filled else {"marker": "D", "markersize": 7, "markerfacecolor": "none"}
        axes.plot(history.epoch.iloc[row], history[column].iloc[row], color=colour, linestyle="none", **shape)
