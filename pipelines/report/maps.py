"""Figures without ordinary axes: heat maps with numbers, contours of a surface, radar polygons."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from pipelines.report.plot import INK, SHOWN, Layers, Plot, axis_title

LEVELS = 10
"""Contour lines of a surface."""


def heat(plot: Plot) -> dict[str, Layers]:
    """Cells with their numbers, one scale of colours for all panels, around zero where values have two signs."""
    z = plot.frame["z"].astype(float)
    low, high, signs = float(z.min()), float(z.max()), bool(z.min() < 0 < z.max())
    top = max(-low, high)
    domain = [-top, top] if signs else [low, high]
    scale = alt.Scale(scheme="blueorange" if signs else "blues", domain=domain)
    whole = bool((z == z.round()).all())
    digits = "d" if whole else ".2f" if top < 100 else ".0f"
    # white where the cell is dark: at both ends, or above the middle
    dark = f"abs(datum.z) > {0.7 * top}" if signs else f"datum.z > {low + 0.6 * (high - low)}"
    columns = plot.frame["x"].nunique() * len(plot.rows[0])
    panels = {}
    for name, own in plot.frame.groupby("panel", sort=False):
        long = own["x"].astype(str).str.len().max() * columns * 8 > 440
        place = {
            "x": alt.X("x:N", sort=None, title=axis_title(plot.view.x), axis=alt.Axis(labelAngle=-40 if long else 0)),
            "y": alt.Y("y:N", sort=None, title=axis_title(plot.view.y), axis=alt.Axis(labelLimit=110)),
        }
        tips = [alt.Tooltip("y:N"), alt.Tooltip("x:N"), alt.Tooltip("z:Q", format=".4~f", title="value")]
        cells = alt.Chart(own).mark_rect().encode(**place, color=_ramp(scale, "d" if whole else ".2~f"), tooltip=tips)
        text = alt.Chart(own).mark_text(fontSize=max(7, min(12, 150 // columns)))
        ink = alt.condition(dark, alt.value("white"), alt.value("#111"))
        panels[str(name)] = [cells, text.encode(**place, text=alt.Text("z:Q", format=digits), color=ink)]
    return panels


def _ramp(scale: Any, form: str) -> Any:
    legend = alt.Legend(orient="right", gradientLength=120, title=None, format=form, type="gradient")
    return alt.Color("z:Q", scale=scale, legend=legend)


def contour(plot: Plot) -> dict[str, Layers]:
    """A surface over a grid as cells and lines of equal height, one scale for all panels, each one's lowest marked."""
    z = plot.frame["z"].astype(float)
    low, high = float(z.min()), float(z.max())
    log = low > 0 and high / low > 20
    levels = (np.geomspace if log else np.linspace)(low, high, LEVELS + 2)[1:-1]
    scale = alt.Scale(scheme="viridis", domain=[low, high], type="log" if log else "linear")
    panels = {}
    for name, own in plot.frame.groupby("panel", sort=False):
        cells, lines = _cells(own), _contours(own, levels)
        first = any(row[0] == name for row in plot.rows)
        shown = alt.Axis(tickCount=4)
        limits = [alt.Scale(domain=[float(cells[a].min()), float(own[b].max())], nice=False, zero=False)
                  for a, b in (("x0", "x"), ("y0", "y"))]  # fmt: skip
        x = alt.X("x0:Q", scale=limits[0], title=axis_title(plot.view.x), axis=shown)
        y = alt.Y("y0:Q", scale=limits[1], title=axis_title(plot.view.y) if first else None, axis=shown)
        tips = [alt.Tooltip(f"{c}:Q", title=axis_title(t)) for c, t in (("x", plot.view.x), ("y", plot.view.y))]
        tips.append(alt.Tooltip("z:Q", format=".4~f", title="value"))
        fill = alt.Chart(cells).mark_rect().encode(x=x, x2="x1", y=y, y2="y1", color=_ramp(scale, ".2~f"), tooltip=tips)
        place = {"x": alt.X("x:Q", scale=limits[0]), "y": alt.Y("y:Q", scale=limits[1])}
        path = alt.Chart(lines).mark_line(color="white", strokeWidth=1, opacity=0.8)
        path = path.encode(**place, detail="path:N", order="step:Q")
        lowest = alt.Chart(own.nsmallest(1, "z")).mark_point(shape="cross", filled=True, color="#D55E00", size=70)
        panels[str(name)] = [fill, path, lowest.encode(**place, tooltip=tips)]
    return panels


def _cells(own: pd.DataFrame) -> pd.DataFrame:
    """A cell around every point of the grid, half way to its neighbours."""
    cells = own[["x", "y", "z"]].astype(float)
    for axis in ("x", "y"):
        values = np.sort(cells[axis].unique())
        between = (values[1:] + values[:-1]) / 2
        ends = (
            (2 * values[0] - between[0], 2 * values[-1] - between[-1]) if len(between) else (values[0], values[0] + 1)
        )
        edges = np.concatenate([[ends[0]], between, [ends[1]]])
        place = np.searchsorted(values, cells[axis])
        # a little over the next cell, which is drawn later: no seams
        cells[f"{axis}0"], cells[f"{axis}1"] = edges[place], edges[place + 1] + 0.1 * np.diff(edges)[place]
    return cells


def _contours(own: pd.DataFrame, levels: Any) -> pd.DataFrame:
    """Points of the lines of equal height, by path and step."""
    import contourpy

    grid = own.pivot_table(index="y", columns="x", values="z").astype(float)
    drawn = contourpy.contour_generator(grid.columns.to_numpy(float), grid.index.to_numpy(float), grid.to_numpy())
    paths = [(float(level), line) for level in levels for line in drawn.lines(level)]
    rows = [(path, step, level, *map(float, point)) for path, (level, line) in enumerate(paths)
            for step, point in enumerate(np.asarray(line))]  # fmt: skip
    return pd.DataFrame(rows, columns=["path", "step", "level", "x", "y"])


def radar(plot: Plot) -> dict[str, Layers]:
    """A closed polygon per line over the x values as spokes; the radius runs from the figure's lowest value to 1."""
    spokes = list(dict.fromkeys(plot.frame["x"].astype(str)))
    low, high = plot.domain()
    low = 0.0 if 0 <= low < 0.5 * high else low
    panels = {}
    for name, own in plot.frame.groupby("panel", sort=False):
        rows = own.assign(value=own["y"], spoke=own["x"].astype(str))
        rows["step"] = rows["spoke"].map(spokes.index)
        radius = (rows["value"].astype(float) - low) / (high - low)
        angle = rows["step"] * (2 * math.pi / len(spokes))
        rows = rows.assign(x=radius * np.sin(angle), y=radius * np.cos(angle))[
            ["line", "spoke", "value", "step", "x", "y"]
        ]
        place = {c: channel(f"{c}:Q", scale=alt.Scale(domain=[-1.3, 1.3], nice=False), axis=None)
                 for c, channel in (("x", alt.X), ("y", alt.Y))}  # fmt: skip
        tips = [alt.Tooltip("line:N"), alt.Tooltip("spoke:N", title=axis_title(plot.view.x) or "x")]
        tips.append(alt.Tooltip("value:Q", format=".4~f", title=axis_title(plot.view.y) or "y"))
        layers = _web(spokes, low, high, place)
        for dash in dict.fromkeys(plot.styles[line].dash for line in rows["line"]):
            mine = rows[rows["line"].map(lambda line: plot.styles[line].dash) == dash].sort_values(["line", "step"])
            closed = pd.concat([mine, mine[mine["step"] == 0].assign(step=len(spokes))])
            drawn = alt.Chart(closed).mark_line(strokeDash=list(dash), strokeWidth=1.7)
            layers.append(drawn.encode(**place, color=plot.color(), order="step:Q").transform_filter(SHOWN))
        points = alt.Chart(rows).mark_point(filled=True, size=40, opacity=1).transform_filter(SHOWN)
        shape = plot.scale(alt.Shape, lambda s: s.shape) if plot.lines != [""] else alt.value("circle")
        panels[str(name)] = [*layers, points.encode(**place, color=plot.color(), shape=shape, tooltip=tips)]
    return panels


def _web(spokes: list[str], low: float, high: float, place: dict[str, Any]) -> Layers:
    """Rings with their values, spokes and their names."""
    angles = [2 * math.pi * k / len(spokes) for k in range(len(spokes))]
    rings = pd.DataFrame([
        (share, step, share * math.sin(angle), share * math.cos(angle))
        for share in (0.25, 0.5, 0.75, 1.0)
        for step, angle in enumerate([*angles, 0.0])
    ], columns=["share", "step", "x", "y"])  # fmt: skip
    web = alt.Chart(rings).mark_line(color=INK, opacity=0.18, strokeWidth=1)
    lines = pd.DataFrame([(k, r * math.sin(a), r * math.cos(a)) for k, a in enumerate(angles) for r in (0, 1)],
                         columns=["spoke", "x", "y"])  # fmt: skip
    layers = [web.encode(**place, detail="share:N", order="step:Q")]
    layers.append(alt.Chart(lines).mark_line(color=INK, opacity=0.18, strokeWidth=1).encode(**place, detail="spoke:N"))
    marks = pd.DataFrame([(0.03, share, f"{low + share * (high - low):.2g}") for share in (0.5, 1.0)],
                         columns=["x", "y", "text"])  # fmt: skip
    layers.append(alt.Chart(marks).mark_text(color=INK, opacity=0.7, fontSize=10, align="left", dy=7).encode(
        **place, text="text:N"))  # fmt: skip
    sides: tuple[tuple[Any, int], ...] = (("left", 1), ("right", -1), ("center", 0))
    for align, sense in sides:
        own = [(1.08 * math.sin(a), 1.12 * math.cos(a), name) for a, name in zip(angles, spokes)
               if (0 if abs(math.sin(a)) < 0.2 else math.copysign(1, math.sin(a))) == sense]  # fmt: skip
        text = alt.Chart(pd.DataFrame(own, columns=["x", "y", "text"]))
        layers.append(text.mark_text(color=INK, fontSize=12, align=align).encode(**place, text="text:N"))
    return layers
