"""Lines with interval bands over the number of experts, one small plot a panel."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B4C9A", "#8C564B"]
"""Okabe and Ito's palette without yellow and black, and two more; markers differ too."""
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "h"]
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1, 1))]
REFERENCES: dict[str, tuple[str, Any]] = {
    "base": ("#222222", (0, (5, 2))),
    "best expert": ("#777777", (0, (1, 1.2))),
    "mean of experts": ("#777777", (0, (5, 1.5, 1, 1.5))),
}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "svg.fonttype": "path",
}


@dataclass
class Line:
    """A method's values at each number of experts, with the bounds of their intervals."""

    label: str
    x: list[int] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass
class Plot:
    """One small plot: lines, and named horizontal references."""

    title: str
    lines: list[Line]
    references: dict[str, float] = field(default_factory=dict)


def draw(plots: list[Plot], ylabel: str, out: Path) -> list[Path]:
    """Write the plots side by side as `out`.png and `out`.svg, with one legend beside or below them.

    Returns:
        The two files.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "svg.hashsalt": out.name}):
        columns = min(len(plots), 3 if len(plots) > 4 else 2)
        rows = math.ceil(len(plots) / columns)
        figure = Figure(figsize=(1.9 + 4.3 * columns, 0.6 + 3.3 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, sharey=len(plots) > 1).ravel()
        styles = _styles(plots)
        for place, (axis, plot) in enumerate(zip(axes, plots)):
            _draw_plot(axis, plot, styles, title=len(plots) > 1)
            if place % columns == 0:
                axis.set_ylabel(ylabel)
        for axis in axes[len(plots) :]:
            axis.set_visible(False)
        _legend(figure, axes[: len(plots)])
        figure.draw_without_rendering()  # lays out once for both files
        figure.set_layout_engine("none")
        png, svg = out.with_suffix(".png"), out.with_suffix(".svg")
        figure.savefig(png, dpi=150)
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


def _styles(plots: list[Plot]) -> dict[str, tuple[str, str, Any]]:
    labels = list(dict.fromkeys(line.label for plot in plots for line in plot.lines))
    n = len(COLORS)
    return {
        label: (COLORS[i % n], MARKERS[(i + i // n) % n], DASHES[i // n % len(DASHES)])
        for i, label in enumerate(labels)
    }


def _draw_plot(axis: Any, plot: Plot, styles: dict[str, tuple[str, str, Any]], title: bool) -> None:
    sizes = sorted({x for line in plot.lines for x in line.x})
    for place, line in enumerate(plot.lines):
        color, marker, dash = styles[line.label]
        gap = min((b - a for a, b in itertools.pairwise(sizes)), default=4)
        offset = ((place + 0.5) / len(plot.lines) - 0.5) * 0.18 * gap  # beside one another, not on top
        x = [value + offset for value in line.x]
        look = {"color": color, "marker": marker, "linestyle": dash, "label": line.label}
        axis.plot(x, line.y, **look, markersize=4.5, linewidth=1.6, zorder=3)
        if len(line.x) > 1:
            axis.fill_between(x, line.low, line.high, color=color, alpha=0.13, linewidth=0, zorder=1)
        else:
            axis.vlines(x, line.low, line.high, color=color, linewidth=1.4, zorder=2)
    for label, value in plot.references.items():
        color, dash = REFERENCES.get(label, ("#777777", "-"))
        axis.axhline(value, color=color, linestyle=dash, linewidth=1.2, label=label, zorder=2)
    axis.set_xlabel("number of experts merged")
    if sizes:
        axis.set_xticks(sizes)
        edge = 0.6 if len(sizes) == 1 else 0.05 * (sizes[-1] - sizes[0]) + 0.12 * (sizes[1] - sizes[0])
        axis.set_xlim(sizes[0] - edge, sizes[-1] + edge)
    if title:
        axis.set_title(plot.title, loc="left")


def _legend(figure: Any, axes: Any) -> None:
    """One legend for all plots, outside of them."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    ordered = sorted(entries, key=lambda label: label in REFERENCES)
    if ordered:
        figure.legend(
            [entries[o] for o in ordered], ordered, loc="outside right upper", frameon=False, handlelength=2.6
        )
