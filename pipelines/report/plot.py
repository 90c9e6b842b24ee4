"""What the figures of every kind share: the data's form, panels in rows, axes, and styles by line."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from conf.errors import printable
from pipelines.report.styles import Style
from pipelines.report.views import MEASURES

WIDTH, GAP = 440, 14
"""Of all panels of a row together and between two of them, in pixels: text of 12 can be read at half a page's width."""
INK = "currentColor"
"""Black in a file; on a page the colour of its text, light or dark."""
SHOWN = "indexof(hidden, datum.line) < 0"
"""Whether a page's reader has not switched the line off."""
Layers = list[Any]


@dataclass(frozen=True)
class View:
    """What a figure is drawn as."""

    title: str
    kind: str
    """lines, bars, scatter, histogram, radar, heat, contour or ranks."""
    x: str
    """What stands at the axis: a column, or words."""
    y: str
    log: bool = False
    """A logarithmic x axis; it is one anyway where x is spread over decades."""


@dataclass
class Plot:
    """One figure's data, with what all of its panels share."""

    view: View
    frame: pd.DataFrame
    """Columns panel, line, x, y, low, high (z), others for the tooltip; a row of one subset has its ``subset``."""
    references: pd.DataFrame
    """Columns panel, name, y."""
    styles: Mapping[str, Style]
    lines: list[str] = field(default_factory=list)
    """Names in the order of the legend: the highest first."""
    rows: list[list[str]] = field(default_factory=list)
    """Names of the panels, row by row."""

    def __post_init__(self) -> None:
        panels = iter(names := self.frame["panel"].unique().tolist())
        large = self.view.kind == "heat" and self.frame["x"].nunique() > 7
        most = 1 if large else 2 if len(names) in (2, 4) or self.view.kind == "contour" else 3
        self.rows = [[next(panels) for _ in range(count)] for count in row_lengths(len(names), most)]
        means = self.means
        order = means.assign(rank=means.groupby(["panel", "x"])["y"].rank(ascending=False)).groupby("line")["rank"]
        self.lines = [str(name) for name in order.mean().sort_values(kind="stable").index]

    @property
    def means(self) -> pd.DataFrame:
        """Rows that are not of a single subset."""
        return self.frame[self.frame["subset"] == ""]

    @property
    def numeric(self) -> bool:
        """Whether x is a number."""
        return pd.api.types.is_numeric_dtype(self.frame["x"])

    def span(self) -> tuple[float, float, bool]:
        """Smallest and largest x, and whether it is spread over decades."""
        low, high = float(self.frame["x"].min()), float(self.frame["x"].max())
        return low, high, low > 0 and (high / low >= 50 or self.view.log)

    def size(self, panel: str) -> tuple[int, int]:
        """Width and height of a panel in pixels."""
        columns = next(len(row) for row in self.rows if panel in row)
        width = (WIDTH - GAP * (columns - 1)) // columns
        if self.view.kind == "ranks":
            return width, 16 * max(len(self.lines), 4)
        square = self.view.kind in ("radar", "heat", "contour")
        return width, width if square else {1: 250, 2: 180}.get(columns, 140)

    def dodge(self) -> None:
        """Put the points of many lines beside one another, where their whiskers would cover each other."""
        log = self.span()[2]
        x = self.frame["x"].to_numpy(float)
        x = np.log(x) if log else x
        steps = np.diff(np.unique(x))
        gap = 0.25 * steps.min() if len(steps) else 0.7
        place = (self.frame["line"].map(self.lines.index) + 0.5) / len(self.lines) - 0.5
        self.frame["at"] = np.exp(x + place * gap) if log else x + place * gap

    def scale(self, channel: Any, get: Callable[[Style], Any], **more: Any) -> Any:
        """A channel by line, in the legend's order and the names' own styles."""
        scale = alt.Scale(domain=self.lines, range=[get(self.styles[name]) for name in self.lines])
        return channel("line:N", scale=scale, title=None, **more)

    def color(self, pale: bool = False) -> Any:
        """Colour by line, if asked paler where dashes would tell it apart; the legend only where lines have names."""
        columns = max(1, min(4, WIDTH // (7 * max(map(len, self.lines), default=1) + 34)))
        legend = alt.Legend(columns=columns, symbolOpacity=1) if self.lines != [""] else None
        tint = (lambda style: style.tint) if pale else lambda style: style.color
        return self.scale(alt.Color, tint, legend=legend)

    def domain(self, low: str = "low", high: str = "high", of: pd.DataFrame | None = None) -> tuple[float, float]:
        """Smallest and largest value on the y axis, references and intervals included."""
        frame = self.means if of is None else of
        refs = self.references[self.references["panel"].isin(frame["panel"])]
        values = pd.concat([frame["y"], frame[low], frame[high], refs["y"]]).astype(float)
        values = values[np.isfinite(values)]
        if values.empty:
            return 0.0, 1.0
        edge = 0.05 * (values.max() - values.min()) or 0.05 * abs(values.max()) or 0.5
        return float(values.min() - edge), float(values.max() + edge)

    @cached_property
    def domains(self) -> dict[str, tuple[float, float]]:
        """The domain of every panel: asked for each of them, and the same as soon as the first is drawn."""
        return {str(name): self.domain(of=own) for name, own in self.means.groupby("panel")}


def tidy(data: pd.DataFrame) -> pd.DataFrame:
    """The data with all columns that are drawn from, without points that have no height."""
    frame = data.copy()
    for name in ("panel", "line", "subset"):
        frame[name] = frame[name].fillna("").astype(str) if name in frame else ""
    for name in ("low", "high"):
        frame[name] = frame[name].astype(float) if name in frame else math.nan
    frame["at"] = frame["x"]
    return spelt(frame[np.isfinite(frame["z" if "z" in frame else "y"].astype(float))].reset_index(drop=True))


def spelt(frame: pd.DataFrame) -> pd.DataFrame:
    """The same texts without characters that no SVG may hold: what draws it would end the process."""
    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    spelt_out = {str(n): frame[n].map(lambda v: printable(v) if isinstance(v, str) else v) for n in texts}
    return frame.assign(**spelt_out)


def row_lengths(panels: int, most: int) -> list[int]:
    """How many panels each row has, as alike as can be, the longer rows first: none has a hole."""
    rows = math.ceil(panels / most)
    return [panels // rows + (row < panels % rows) for row in range(rows)]


def axes(plot: Plot, panel: str, zero: bool = False) -> dict[str, Any]:
    """The x and y channels of a panel."""
    return {"x": x_axis(plot, panel), "y": _y_axis(plot, panel, zero)}


def x_axis(plot: Plot, panel: str) -> Any:
    """Named columns in the order of the data; numbers on a line, or on a logarithmic one where they span decades."""
    title = textwrap.wrap(axis_title(plot.view.x), plot.size(panel)[0] // 7) if panel in plot.rows[-1] else None
    if not plot.numeric:
        labels = plot.frame["x"].astype(str).unique()
        long = sum(map(len, labels)) * 8 * len(plot.rows[0]) > WIDTH
        return alt.X("at:N", sort=None, title=title, axis=alt.Axis(labelAngle=-40 if long else 0))
    low, high, log = plot.span()
    pad = (high / low) ** 0.05 if log else 0.05 * (high - low) or 0.5
    domain = [low / pad, high * pad] if log else [low - pad, high + pad]
    scale = alt.Scale(type="log" if log else "linear", domain=domain, nice=False, zero=False)
    axis: dict[str, Any] = {"format": "~e"} if high < 1e-3 else {}
    values = sorted({float(f"{x:.10g}") for x in plot.frame["x"]})
    if len(values) <= 13 and plot.view.kind == "lines":  # a tick at each value, as it is written
        # a lower count would thin the values
        axis |= {"values": values, "tickCount": len(values), "labelOverlap": "greedy", "labelSeparation": 5}
        axis |= {} if high < 1e-3 else {"labelExpr": "toString(datum.value)"}
    return alt.X("at:Q", title=title, scale=scale, axis=alt.Axis(**axis))


def _y_axis(plot: Plot, panel: str, zero: bool) -> Any:
    """One scale for all panels, said at the left, unless a panel's values would be squeezed to nothing by it."""
    whole, each = plot.domain(), plot.domains
    shared = all((high - low) * 8 > whole[1] - whole[0] for low, high in each.values())
    low, high = whole if shared else each[panel]
    low, high = (low if low < 0 else 0.0, max(high, 0.0)) if zero else (low, high)
    left = any(row[0] == panel for row in plot.rows)
    axis = alt.Axis() if left or not shared else alt.Axis(labels=False, ticks=False, domain=False)
    scale = alt.Scale(domain=_with_subsets(plot, panel, shared, low, high), nice=False, zero=False)
    title = textwrap.wrap(axis_title(plot.view.y), max(16, plot.size(panel)[1] // 6)) if left else None
    return alt.Y("y:Q", title=title, scale=scale, axis=axis)


def _with_subsets(plot: Plot, panel: str, shared: bool, low: float, high: float) -> list[Any]:
    """A y axis's ends, further out where a page's reader has switched single subsets on."""
    single = plot.frame[plot.frame["subset"] != ""]
    y = single["y"] if shared else single.loc[single["panel"] == panel, "y"]
    if y.empty:
        return [low, high]
    edge = 0.03 * (y.max() - y.min())
    far = min(low, float(y.min() - edge)), max(high, float(y.max() + edge))
    return [alt.ExprRef(f"subsets ? {wide} : {narrow}") for wide, narrow in zip(far, (low, high))]


def axis_title(name: str) -> str:
    """What stands at an axis for a column or a measure."""
    return TITLES.get(name) or (MEASURES[name].title if name in MEASURES else name.replace("_", " "))


TITLES = {
    "n": "number of experts merged",
    "lambda": "λ",
    "lr": "learning rate",
    "alpha": "α",
    "beta": "β",
    "update_norm": "L2 norm of the update",
}
"""Of columns, and of the measure whose sign (‖ ‖) not every font has."""


def panels_of(plot: Plot) -> list[tuple[str, pd.DataFrame]]:
    """Panels in the order of the data."""
    return [(str(name), own) for name, own in plot.frame.groupby("panel", sort=False)]


def by_dash(plot: Plot, rows: pd.DataFrame) -> list[tuple[tuple[int, ...], pd.DataFrame]]:
    """Rows by the dashes of their lines."""
    dashes = rows["line"].map(lambda name: plot.styles[name].dash)
    return [(dash, rows[dashes == dash]) for dash in dict.fromkeys(dashes)]
