"""The figures of a report: which numbers go into which lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.report.figure import Line, Plot, draw

if TYPE_CHECKING:
    from pipelines.report.report import Report

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
