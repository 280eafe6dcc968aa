"""The figures of the report as SVG files: Kaplan–Meier, forest plot, training curves. Same data, same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.evaluation.folds import Fold
from pipeline.evaluation.metrics import Figure, median_split
from pipeline.evaluation.summary import is_optimistic
from pipeline.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe and Ito's palette: told apart with every common colour vision and in print
BLUE, VERMILLION, INK, GREY, PALE = "#0072B2", "#D55E00", "#1b1f24", "#6a737d", "#d8dee4"
FOLD_COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
STYLE = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "slide2surv",
    "path.simplify": True,
}
MAX_FOLD_LABELS = 10


@contextmanager
def _drawing(path: Path, width: float, height: float) -> Iterator[Canvas]:
    """A figure of `width` × `height` inches in the report's style, saved to `path` without date or creator."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(canvas)
        yield canvas
        with atomic(path) as temporary:
            canvas.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})


def draw_kaplan_meier(folds: list[Fold], p: Figure, path: Path) -> None:
    """Survival of the risk halves of `median_split` with 95 % bands, numbers at risk below, log-rank `p` in the corner."""
    time, event, high = median_split(folds)
    with _drawing(path, 5.4, 4.3) as canvas:
        axes, table = canvas.subplots(2, 1, height_ratios=[5, 1], sharex=True)
        groups = [("High risk", high, VERMILLION), ("Low risk", ~high, BLUE)]
        for label, members, colour in groups:
            _survival_curve(axes, time[members], event[members], label, colour)
        axes.set(ylim=(0, 1.02), ylabel="Survival probability")
        axes.set_xlim(0, max(float(time.max(initial=1.0)), 1e-9) * 1.02)
        axes.legend(loc="upper right")
        axes.text(0.02, 0.04, _p_text(p), transform=axes.transAxes, va="bottom")
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


def _p_text(p: Figure) -> str:
    if not np.isfinite(p.value):
        return f"log-rank: {p.note}"
    return "log-rank p < 0.001" if p.value < 0.001 else f"log-rank p = {p.value:.2g}"


def draw_forest(summary: pd.DataFrame, path: Path) -> None:
    """C-index of every evaluated model, in the order of `summary`: mean over folds with its interval, best test epoch hollow."""
    table = summary[np.isfinite(summary.c_index)].reset_index(drop=True)
    with _drawing(path, 11, 1.15 + 0.42 * max(len(table), 1)) as canvas:
        axes = canvas.subplots()
        rows = np.arange(len(table))
        axes.axvline(0.5, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
        colours = [GREY if is_optimistic(row._asdict()) else BLUE for row in table.itertuples()]
        axes.hlines(rows, table.c_index_ci_low, table.c_index_ci_high, colors=colours, linewidth=2)
        axes.hlines(rows, table.c_index, table.c_index_best_epoch, color=VERMILLION, linewidth=1, linestyle=(0, (1, 1.5)), zorder=1)
        axes.plot([], [], "-s", color=BLUE, markersize=7, linewidth=2, label="mean over folds, 95 % interval")
        axes.scatter(table.c_index, rows, marker="s", s=49, c=colours, zorder=2.5)
        hollow = {"markerfacecolor": "white", "markeredgecolor": VERMILLION, "markeredgewidth": 1.5}
        axes.plot(table.c_index_best_epoch, rows, "D", markersize=6.5, label="best epoch chosen on the test fold", **hollow)
        axes.set_yticks(rows, [_forest_label(row) for row in table.itertuples()])
        axes.set(ylim=(len(table) - 0.4, -0.6), xlabel="C-index (dashed: 0.5, chance)")
        axes.grid(axis="x", color=PALE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        for at, row in enumerate(table.itertuples()):
            text = f"{row.c_index:.3f}  [{row.c_index_ci_low:.3f}, {row.c_index_ci_high:.3f}]"
            axes.text(1.02, at, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.3)


def _forest_label(row: object) -> str:
    optimistic = " · optimistic" if is_optimistic(row._asdict()) else ""
    failed = f" · only {row.folds:.0f} folds" if row.failed_folds else ""
    return f"{row.model} · {row.modalities}{optimistic}{failed}"


def draw_training(folds: list[Fold], path: Path) -> None:
    """Training loss and test C-index by epoch, a line a fold; filled: the epoch that was used, hollow: the best on the test fold."""
    with _drawing(path, 5.4, 4.3) as canvas:
        loss, c_index = canvas.subplots(2, 1, sharex=True)
        for fold, colour in zip(folds, cycle(FOLD_COLOURS), strict=False):
            history, label = fold.history, f"fold {fold.number}" + (" (failed)" if fold.failure else "")
            line = {"color": colour, "linewidth": 1.2, "linestyle": ":" if fold.failure else "-"}
            loss.plot(history.epoch, history.train_loss, label=label, **line)
            c_index.plot(history.epoch, history.test_c_index, **line)
            _mark(loss, history, chosen_row(fold), "train_loss", colour, filled=True)
            _mark(c_index, history, chosen_row(fold), "test_c_index", colour, filled=True)
            _mark(c_index, history, _argmax(history.test_c_index), "test_c_index", colour, filled=False)
        c_index.axhline(0.5, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
        loss.set(ylabel="Training loss")
        c_index.set(ylabel="Test C-index", xlabel="Epoch   (● used   ◇ best on the test fold)")
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
