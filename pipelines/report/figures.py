"""The figures of a report: lines with interval bands over the number of experts, one small plot per panel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mergeopt_core.statistics import Interval
from pipelines.report.analysis import InterferenceRow, LeaderRow

NAMES = ("score_by_experts", "interference_by_experts")
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B4C9A", "#8C564B"]
"""Okabe and Ito's palette without yellow and black, and two more; markers differ too."""
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "h"]
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1, 1))]
REFERENCES: dict[str, tuple[str, str, Any]] = {
    "base": ("base", "#222222", (0, (5, 2))),
    "best expert": ("best expert", "#777777", (0, (1, 1.2))),
    "mean expert": ("mean of experts", "#777777", (0, (5, 1.5, 1, 1.5))),
}
"""Name, colour and dashes of the horizontal lines, by kind of leaderboard row."""
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


def draw_all(leaderboard: Sequence[LeaderRow], interference: Sequence[InterferenceRow], out: Path) -> list[Path]:
    """Draw score and share kept by number of experts; figures without a point are not made.

    Every method has one style in both. The base and the experts are reference lines of the scores.

    Returns:
        The files: a PNG and an SVG of each figure.
    """
    merges = [row for row in leaderboard if row.kind == "merge"]
    references = [row for row in leaderboard if row.kind != "merge"]
    n = len(COLORS)
    styles = {
        method: {"color": COLORS[i % n], "marker": MARKERS[(i + i // n) % n], "linestyle": DASHES[i // n % len(DASHES)]}
        for i, method in enumerate(sorted({row.method for row in merges}))
    }
    score = _frame((row.panel, row.method, row.experts, row.score) for row in merges)
    kept = _frame((row.panel, row.method, row.experts, row.kept) for row in interference)
    for stale in (out / f"{name}{ending}" for name in NAMES for ending in (".png", ".svg")):
        stale.unlink(missing_ok=True)
    panels = list(dict.fromkeys(row.panel for row in leaderboard))
    paths = _draw(score, panels, references, styles, "mean score over tasks", out / NAMES[0])
    return paths + _draw(kept, list(kept["panel"].unique()), [], styles, "share of own-skill gain kept", out / NAMES[1])


def _frame(points: Iterable[tuple[str, str, int, Interval]]) -> pd.DataFrame:
    rows = [(panel, method, x, value.estimate, value.low, value.high) for panel, method, x, value in points]
    return pd.DataFrame(rows, columns=["panel", "method", "x", "y", "low", "high"])


def _draw(
    points: pd.DataFrame, panels: list[str], references: Sequence[LeaderRow], styles: dict[str, dict[str, Any]],
    ylabel: str, out: Path,
) -> list[Path]:  # fmt: skip
    """Write the plots side by side as `out`.png and `out`.svg, with one legend beside or below them."""
    if points.empty:
        return []
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "svg.hashsalt": out.name}):
        columns = min(len(panels), 3 if len(panels) > 4 else 2)
        rows = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(1.9 + 4.3 * columns, 0.6 + 3.3 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, sharey=len(panels) > 1).ravel()
        for place, (axis, panel) in enumerate(zip(axes, panels)):
            own = [row for row in references if row.panel == panel]
            _plot(axis, points[points["panel"] == panel], own, styles)
            if len(panels) > 1:
                axis.set_title(panel, loc="left")
            if place % columns == 0:
                axis.set_ylabel(ylabel)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        _legend(figure, axes[: len(panels)])
        figure.draw_without_rendering()  # lays out once for both files
        figure.set_layout_engine("none")
        png, svg = out.with_suffix(".png"), out.with_suffix(".svg")
        figure.savefig(png, dpi=150)
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


def _plot(axis: Any, points: pd.DataFrame, references: Sequence[LeaderRow], styles: dict[str, dict[str, Any]]) -> None:
    sizes = sorted(points["x"].unique().tolist())
    gap = min((b - a for a, b in itertools.pairwise(sizes)), default=4)
    lines = list(points.sort_values("x", kind="stable").groupby("method"))
    for place, (method, line) in enumerate(lines):
        offset = ((place + 0.5) / len(lines) - 0.5) * 0.18 * gap  # beside one another, not on top
        style, x = styles[str(method)], line["x"] + offset
        axis.plot(x, line["y"], **style, label=method, markersize=4.5, linewidth=1.6, zorder=3)
        if len(line) > 1:
            axis.fill_between(x, line["low"], line["high"], color=style["color"], alpha=0.13, linewidth=0, zorder=1)
        else:
            axis.vlines(x, line["low"], line["high"], color=style["color"], linewidth=1.4, zorder=2)
    for row in references:
        name, color, dash = REFERENCES[row.kind]
        axis.axhline(row.score.estimate, color=color, linestyle=dash, linewidth=1.2, label=name, zorder=2)
    axis.set_xlabel("number of experts merged")
    if sizes:
        axis.set_xticks(sizes)
        edge = 0.6 if len(sizes) == 1 else 0.05 * (sizes[-1] - sizes[0]) + 0.12 * (sizes[1] - sizes[0])
        axis.set_xlim(sizes[0] - edge, sizes[-1] + edge)


def _legend(figure: Any, axes: Any) -> None:
    """One legend for all plots, outside of them; references last."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    last = {name for name, _, _ in REFERENCES.values()}
    ordered = sorted(entries, key=lambda label: label in last)
    handles = [entries[label] for label in ordered]
    figure.legend(handles, ordered, loc="outside right upper", frameon=False, handlelength=2.6)
