"""Lines with interval bands over the number of experts, one small plot a panel."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.report.report import Report


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


REFERENCE_NAMES = {"base": "base", "best expert": "best expert", "mean expert": "mean of experts"}


def draw_all(report: Report) -> list[Path]:
    """Draw score and share kept by number of experts; figures without a point are not made."""
    wanted = {
        "score_by_experts": (score_plots(report), "mean score over tasks"),
        "interference_by_experts": (kept_plots(report), "share of own-skill gain kept"),
    }
    paths: list[Path] = []
    for name, (plots, ylabel) in wanted.items():
        for stale in (report.out / f"{name}.png", report.out / f"{name}.svg"):
            stale.unlink(missing_ok=True)
        if any(plot.lines for plot in plots):
            paths += draw(plots, ylabel, report.out / name)
    return paths


def score_plots(report: Report) -> list[Plot]:
    """Mean score of each method by number of experts, with the base and the experts as reference lines."""
    plots: dict[str, Plot] = {}
    order = _methods(report)
    for row in report.leaderboard:
        plot = plots.setdefault(row.panel, Plot(row.panel, []))
        if row.kind == "merge":
            _add(plot, row.method, row.experts, row.score.estimate, row.score.low, row.score.high)
        else:
            plot.references[REFERENCE_NAMES[row.kind]] = row.score.estimate
    return _sorted(plots, order)


def kept_plots(report: Report) -> list[Plot]:
    """Share of own-skill gain kept by number of experts."""
    plots: dict[str, Plot] = {}
    for row in report.interference:
        plot = plots.setdefault(row.panel, Plot(row.panel, []))
        _add(plot, row.method, row.experts, row.kept.estimate, row.kept.low, row.kept.high)
    return _sorted(plots, _methods(report))


def _methods(report: Report) -> list[str]:
    """Methods in the order in which every figure colours them."""
    return sorted({row.method for row in report.leaderboard if row.kind == "merge"})


def _add(plot: Plot, method: str, x: int, y: float, low: float, high: float) -> None:
    line = next((line for line in plot.lines if line.label == method), None)
    if line is None:
        line = Line(method)
        plot.lines.append(line)
    line.x.append(x)
    line.y.append(y)
    line.low.append(low)
    line.high.append(high)


def _sorted(plots: dict[str, Plot], order: list[str]) -> list[Plot]:
    for plot in plots.values():
        plot.lines.sort(key=lambda line: order.index(line.label))
        for line in plot.lines:
            by_size = sorted(zip(line.x, line.y, line.low, line.high))
            line.x, line.y, line.low, line.high = (list(values) for values in zip(*by_size))
    return list(plots.values())
