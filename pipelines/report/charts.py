"""Figures as Vega-Lite specifications: small panels on shared axes, one scale of colours, a legend in rank order.

A specification's parameters ``hidden`` (names of lines), ``bands`` and ``subsets`` switch parts of it on a page;
``usermeta`` holds what a page needs for a legend of its own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import altair as alt
import pandas as pd
from altair.vegalite import SCHEMA_URL

from conf.errors import printable
from pipelines.report import maps
from pipelines.report.plot import GAP, INK, SHOWN, Layers, Plot, View, axes, axis_title, by_dash, panels_of, spelt, tidy
from pipelines.report.styles import REFERENCES, Style, styles


def specification(
    view: View, data: pd.DataFrame, references: pd.DataFrame | None = None, names: Mapping[str, Style] | None = None
) -> dict[str, Any]:
    """The Vega-Lite specification of a figure, which is the same for the same data.

    Args:
        view: its title, kind and axes.
        data: columns panel, line, x, y and low, high where there are intervals; z for heat and contour. In a histogram
            a bar is a row with low and high, its edges; other rows are points of a curve. Rows with a ``subset`` are
            single points behind the mean. Further columns are shown when a reader points at a mark.
        references: horizontal lines; columns panel, name, y.
        names: styles by line, so that all figures of a report agree; by default those of this figure alone.
    """
    frame = tidy(data)
    refs = pd.DataFrame(columns=["panel", "name", "y"]) if references is None else references.fillna({"panel": ""})
    known = styles(frame["line"].unique())
    given = {printable(name): style for name, style in (names or {}).items()}
    plot = Plot(replace(view, title=printable(view.title)), frame, spelt(refs), {**known, **given})
    kinds: dict[str, Callable[[Plot], dict[str, Layers]]] = {
        "lines": _lines, "bars": _bars, "scatter": _scatter, "histogram": _histogram,
        "ranks": _ranks,
        "radar": maps.radar, "heat": maps.heat, "contour": maps.contour,
    }  # fmt: skip
    with alt.data_transformers.enable("default", max_rows=None):
        return _assemble(plot, kinds[view.kind](plot))


# The whole: panels in rows


def _assemble(plot: Plot, panels: Mapping[str, Layers]) -> dict[str, Any]:
    """Panels in full rows, with a title and how it all looks; in plain dictionaries, as Altair copies deeply."""
    shared: dict[str, Any] = {"top_level": False, "datasets": {}}
    drawn = [[_panel(plot, name, panels[name], shared) for name in row] for row in plot.rows]
    rows = [{"hconcat": row, "spacing": GAP} for row in drawn]
    switches = {"hidden": [], "bands": True, "subsets": False}
    return {
        "$schema": SCHEMA_URL,
        "config": CONFIG,
        **({"vconcat": rows, "spacing": GAP} if len(rows) > 1 else rows[0]),
        "params": [{"name": name, "value": value} for name, value in switches.items()],
        "resolve": {"scale": dict.fromkeys(("color", "shape", "strokeDash"), "shared")},
        "title": {"text": textwrap.wrap(plot.view.title, 62) or [""]},
        "usermeta": _usermeta(plot),
        "datasets": shared["datasets"],
    }


def _panel(plot: Plot, name: str, layers: Layers, shared: dict[str, Any]) -> dict[str, Any]:
    width, height = plot.size(name)
    told = [layer.to_dict(validate=False, context=shared) for layer in layers]  # our own; to check it costs a tenth
    panel = {"layer": told, "width": width, "height": height}
    if sum(map(len, plot.rows)) == 1:
        return panel
    return panel | {"title": {"text": textwrap.wrap(name, max(8, width // 7)), "fontSize": 12, "anchor": "start"}}


def _usermeta(plot: Plot) -> dict[str, Any]:
    """Lines, reference lines and what can be switched, for a page's legend."""
    names = [name for name in plot.lines if name]
    lines = [{"name": n, **{k: getattr(plot.styles[n], k) for k in ("color", "shape", "dash")}} for n in names]
    references = [{"name": name, "dash": REFERENCES.get(name, ())} for name in plot.references["name"].unique()]
    known = bool(plot.means["low"].notna().any()) and plot.view.kind in ("lines", "bars", "scatter", "ranks")
    subsets = bool((plot.frame["subset"] != "").any())
    return {"lines": lines, "references": references, "bands": known, "subsets": subsets}


CONFIG: dict[str, Any] = {
    "background": "white",
    "font": "system-ui, 'Liberation Sans', Helvetica, Arial, sans-serif",
    "title": {"color": INK, "fontSize": 13, "anchor": "start", "fontWeight": 600, "offset": 8},
    "axis": {
        "labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
        "domainColor": INK, "domainOpacity": 0.5, "tickColor": INK, "tickOpacity": 0.5, "tickCount": 5,
        "gridColor": INK, "gridOpacity": 0.12,
    },
    "axisX": {"grid": False},
    "view": {"stroke": None},
    "legend": {
        "orient": "bottom", "labelColor": INK, "labelFontSize": 12, "labelLimit": 400, "symbolSize": 70, "title": None,
        "columnPadding": 14, "rowPadding": 3, "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
    },
}  # fmt: skip


# The kinds


def _lines(plot: Plot) -> dict[str, Layers]:
    """Lines with bands; whiskers where a line has one point, or bands of many lines would cover one another."""
    means = plot.means
    single = means.groupby(["panel", "line"])["x"].transform("count") == 1
    many = means["line"].nunique() > 6
    if plot.numeric and (many or single.all()):
        plot.dodge()
        means = plot.means
    panels = {}
    for name, own in panels_of(plot):
        place, color = axes(plot, name), plot.color()
        mean = own["subset"] == ""
        layers = _subsets(plot, own, place)
        whiskers = own[mean & (single.reindex(own.index, fill_value=False) | many)]
        layers += _interval(whiskers, place, color, "rule")
        if not many:
            layers += _interval(own[mean].drop(whiskers.index), place, color, "area")
        for dash, rows in by_dash(plot, own[mean]):
            line = alt.Chart(rows).mark_line(strokeWidth=1.7, strokeDash=list(dash))
            layers.append(line.encode(**place, color=color).transform_filter(SHOWN))
        panels[name] = [*layers, *_references(plot, name, place["y"]), _points(plot, own[mean], place)]
    return panels


def _scatter(plot: Plot) -> dict[str, Layers]:
    panels = {}
    for name, own in panels_of(plot):
        place, mean = axes(plot, name), own["subset"] == ""
        layers = _subsets(plot, own, place) + _interval(own[mean], place, plot.color(), "rule")
        panels[name] = [*layers, _points(plot, own[mean], place), *_references(plot, name, place["y"])]
    return panels


def _bars(plot: Plot) -> dict[str, Layers]:
    """Grouped bars from zero with whiskers."""
    frame = plot.frame
    if plot.numeric:
        labels = {x: f"{x:g}" for x in sorted(frame["x"].unique())}
        frame = frame.sort_values("x", kind="stable")
        plot.frame = frame.assign(x=frame["x"].map(labels), at=frame["x"].map(labels))
    grouped = len(plot.lines) > 1
    panels = {}
    for name, own in panels_of(plot):
        place = axes(plot, name, zero=True)
        if grouped:
            place["xOffset"] = alt.XOffset("line:N", sort=plot.lines)
        rows = own[own["subset"] == ""]
        bars = alt.Chart(rows).mark_bar().encode(**place, color=plot.color(pale=True), tooltip=_tooltip(plot, rows))
        layers = [bars.transform_filter(SHOWN), *_interval(rows, place, alt.value(INK), "rule")]
        layers += _subsets(plot, own, place)
        panels[name] = layers + _references(plot, name, place["y"])
    return panels


def _histogram(plot: Plot) -> dict[str, Layers]:
    """Bars between their edges, and curves over them."""
    edges = plot.frame["low"].notna()
    plot.frame = plot.frame.assign(x=plot.frame["x"].where(~edges, (plot.frame["low"] + plot.frame["high"]) / 2))
    limits = pd.concat([plot.frame["x"], plot.frame["low"], plot.frame["high"]]).astype(float)
    scale = alt.Scale(domain=[float(limits.min()), float(limits.max())], nice=False, zero=False)
    top = alt.Scale(domain=[0, float(plot.frame["y"].max()) * 1.05], nice=False)
    x = alt.X("low:Q", bin="binned", title=axis_title(plot.view.x), scale=scale, axis=alt.Axis(tickCount=4))
    y = alt.Y("y:Q", title=axis_title(plot.view.y), scale=top)
    panels = {}
    for name, own in panels_of(plot):
        bars, curves = own[own["low"].notna()], own[own["low"].isna()]
        drawn = alt.Chart(bars).mark_bar(opacity=0.45, binSpacing=0)
        layers = [drawn.encode(x=x, x2="high", y=y, color=plot.color()).transform_filter(SHOWN)]
        for dash, rows in by_dash(plot, curves):
            line = alt.Chart(rows).mark_line(strokeWidth=1.8, strokeDash=list(dash))
            place = alt.X("x:Q", scale=scale, title=axis_title(plot.view.x))
            layers.append(line.encode(x=place, y=y, color=plot.color()).transform_filter(SHOWN))
        panels[name] = layers
    return panels


def _ranks(plot: Plot) -> dict[str, Layers]:
    """Mean ranks with their intervals, the best above; shaded what the best one's critical difference reaches."""
    low, high = plot.domain()
    scale = alt.Scale(domain=[max(low, 0.5), high], nice=False, zero=False)
    x = alt.X("y:Q", title="mean rank (1 is best)", scale=scale)
    color = plot.scale(alt.Color, lambda style: style.color, legend=None)
    panels = {}
    for name, own in panels_of(plot):
        rows = own.sort_values("y", kind="stable")
        line = alt.Y("line:N", sort=rows["line"].tolist(), title=None)
        reach = rows.head(1).assign(end=(rows["y"].min() + rows["critical"].fillna(0.0)).clip(upper=high))
        shade = alt.Chart(reach).mark_rect(opacity=0.08, color=INK).encode(x=x, x2="end")
        bounds = alt.Chart(rows[rows["low"].notna()]).mark_rule(strokeWidth=1.3, opacity=0.8)
        bounds = bounds.encode(x=alt.X("low:Q", scale=scale), x2="high", y=line, color=color)
        points = alt.Chart(rows).mark_point(filled=True, size=45, opacity=1)
        points = points.encode(x=x, y=line, color=color, tooltip=_tooltip(plot, rows))
        panels[name] = [shade, bounds.transform_filter(f"bands && {SHOWN}"), points.transform_filter(SHOWN)]
    return panels


# Parts of them


def _points(plot: Plot, rows: pd.DataFrame, place: Mapping[str, Any]) -> Any:
    shape = plot.scale(alt.Shape, lambda s: s.shape)
    shape = shape if plot.lines != [""] else alt.value("circle")
    points = alt.Chart(rows).mark_point(filled=True, size=45, opacity=1)
    return points.encode(**place, color=plot.color(), shape=shape, tooltip=_tooltip(plot, rows)).transform_filter(SHOWN)


def _subsets(plot: Plot, own: pd.DataFrame, place: Mapping[str, Any]) -> Layers:
    """One small point per subset, on a page."""
    rows = own[own["subset"] != ""]
    if rows.empty:
        return []
    points = alt.Chart(rows).mark_point(filled=True, size=20, opacity=0.7)
    points = points.encode(**place, color=plot.color(), tooltip=_tooltip(plot, rows))
    return [points.transform_filter(f"subsets && {SHOWN}")]


def _interval(rows: pd.DataFrame, place: Mapping[str, Any], color: Any, mark: str) -> Layers:
    rows = rows[rows["low"].notna() & rows["high"].notna()]
    if rows.empty:
        return []
    chart = alt.Chart(rows)
    chart = chart.mark_area(opacity=0.14) if mark == "area" else chart.mark_rule(strokeWidth=1.3, opacity=0.8)
    low = alt.Y("low:Q", **{k: v for k, v in place["y"].to_dict().items() if k in ("scale", "title", "axis")})
    return [chart.encode(**{**place, "y": low}, y2="high", color=color).transform_filter(f"bands && {SHOWN}")]


def _references(plot: Plot, panel: str, y: Any) -> Layers:
    """Horizontal lines with dashes of their own and a legend of their own."""
    refs = plot.references
    own = refs[refs["panel"] == panel]
    if own.empty:
        return []
    names = [str(name) for name in refs["name"].unique()]
    scale = alt.Scale(domain=names, range=[list(REFERENCES.get(name, (1, 0))) for name in names])
    legend = alt.Legend(symbolType="stroke", symbolStrokeColor=INK, symbolSize=300)
    dash = alt.StrokeDash("name:N", scale=scale, title=None, sort=names, legend=legend)
    tips = [alt.Tooltip("name:N", title="reference"), alt.Tooltip("y:Q", title=axis_title(plot.view.y), format=".4~f")]
    rule = alt.Chart(own).mark_rule(color=INK, opacity=0.75, strokeWidth=1.2)
    return [rule.encode(y=y, strokeDash=dash, tooltip=tips)]


def _tooltip(plot: Plot, rows: pd.DataFrame) -> Layers:
    """What is shown of a mark: its line, place, value, interval, subset, and columns that are there for this."""
    tips = [alt.Tooltip("line:N", title="line")] if plot.lines != [""] else []
    x = alt.Tooltip(f"x:{'Q' if plot.numeric else 'N'}", title=axis_title(plot.view.x) or "x")
    tips += [x, alt.Tooltip("y:Q", title=axis_title(plot.view.y) or "y", format=".4~f")]
    if rows["low"].notna().any():
        tips += [alt.Tooltip(f"{side}:Q", title=side, format=".4~f") for side in ("low", "high")]
    if (rows["subset"] != "").any():
        tips.append(alt.Tooltip("subset:N"))
    known = {"panel", "line", "x", "y", "z", "low", "high", "subset", "at"}
    return tips + [alt.Tooltip(f"{name}:N") for name in rows.columns if name not in known and name.isidentifier()]
