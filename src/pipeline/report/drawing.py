"""How every figure of the report is drawn: palette, type, and an SVG that has the same bytes for the same data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# Okabe and Ito's palette: told apart with every common colour vision and in print
BLUE, VERMILLION, AMBER, INK, GREY, PALE = "#0072B2", "#D55E00", "#E69F00", "#1b1f24", "#6a737d", "#d8dee4"
FOLD_COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", AMBER, "#56B4E9", INK)
DASHES = (0, (4, 3))
STYLE = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
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


@contextmanager
def drawing(path: Path, width: float, height: float, layout: str = "constrained") -> Iterator[Canvas]:
    """A figure of `width` × `height` inches (at most 12 wide, the page's column) in the report's style, saved to `path` without date."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        canvas = Canvas(figsize=(width, height), layout=layout)
        FigureCanvasSVG(canvas)
        yield canvas
        with atomic(path) as temporary:
            canvas.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
