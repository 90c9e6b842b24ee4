"""The files of a figure: PNG and SVG for paper, its numbers as CSV, its Vega-Lite specification for a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergeopt_core.statistics import Interval
from pipelines.report.analysis import InterferenceRow, LeaderRow
from pipelines.report.charts import specification
from pipelines.report.panel import Panel
from pipelines.report.plot import View
from pipelines.report.styles import Style, styles

NAMES = ("score_by_experts", "interference_by_experts")
ENDINGS = (".png", ".svg", ".csv", ".vl.json")
SCALE = 3
"""Pixels of the PNG per pixel of the specification."""
POINTS = 2000
"""Single subsets that a figure holds at most."""


def draw(
    view: View,
    data: pd.DataFrame,
    references: pd.DataFrame | None,
    out: Path,
    names: Mapping[str, Style] | None = None,
    singles: pd.DataFrame | None = None,
) -> list[Path]:
    """Write a figure's files; ``out`` is their path without an ending. The same data give the same bytes.

    The frames are those of ``charts.specification``; the CSV holds ``data`` as it was given. ``singles`` are the rows
    of single subsets, which a page can show: at most ``POINTS`` of them, evenly chosen.
    """
    import vl_convert

    png, svg, csv, text = (out.with_name(out.name + ending) for ending in ENDINGS)
    shown = [] if singles is None or singles.empty else [singles.iloc[:: -(-len(singles) // POINTS)]]
    spec = specification(view, pd.concat([data, *shown], ignore_index=True), references, names)
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn = _numbered(vl_convert.vegalite_to_svg(spec))
    svg.write_text(drawn, encoding="utf-8")
    png.write_bytes(vl_convert.svg_to_png(drawn, scale=SCALE))
    data.to_csv(csv, index=False, float_format="%.6g", lineterminator="\n", encoding="utf-8")
    text.write_text(json.dumps(spec, ensure_ascii=False) + "\n", encoding="utf-8")
    return [png, svg, csv, text]


def _numbered(svg: str) -> str:
    """The SVG with its ids counted from 0: as they come, they go on from figure to figure."""
    ids = {name: f"id{place}" for place, name in enumerate(re.findall(r'\bid="([^"]+)"', svg))}
    return re.sub(r'(\bid="|url\(#|href="#)([^")]+)', lambda m: m[1] + ids.get(m[2], m[2]), svg)


def draw_all(
    leaderboard: Sequence[LeaderRow], interference: Sequence[InterferenceRow], panels: Sequence[Panel], out: Path
) -> list[Path]:
    """Draw score and share kept by number of experts; figures without a point are not made.

    Every method has one style in both. The base and the experts are reference lines of the scores, single merges
    points behind the means.
    """
    merges = [row for row in leaderboard if row.kind == "merge"]
    names = styles(sorted({row.method for row in merges}))
    score = _frame((row.panel, row.method, row.experts, row.score) for row in merges)
    kept = _frame((row.panel, row.method, row.experts, row.kept) for row in interference)
    references = pd.DataFrame(
        [(row.panel, row.kind.replace("mean expert", "mean of experts"), row.score.estimate)
         for row in leaderboard if row.kind != "merge"], columns=["panel", "name", "y"],
    )  # fmt: skip
    for stale in (out / f"{name}{ending}" for name in NAMES for ending in ENDINGS):
        stale.unlink(missing_ok=True)
    titles = ("Mean score by number of experts merged", "Share of own-skill gain kept by number of experts merged")
    single = [pd.concat([_singles(panel, kind) for panel in panels]) for kind in ("score", "kept")]
    paths = []
    for name, title, y, data, refs, own in zip(
        NAMES, titles, ("score", "kept"), (score, kept), (references, None), single
    ):
        if not data.empty:
            paths += draw(View(title, "lines", "n", y), data, refs, out / name, names, own)
    return paths


def _singles(panel: Panel, y: str) -> pd.DataFrame:
    """Every merge of a panel as a point with its interval."""
    values, draws = (panel.scores, panel.replicates) if y == "score" else (panel.kept, panel.kept_replicates)
    known = [m for m in panel.merges if np.isfinite(values[m])]
    tail = (1 - panel.statistics.confidence) / 2
    low, high = np.quantile(draws[known], [tail, 1 - tail], axis=1) if known else ((), ())
    merges = [panel.rows[m] for m in known]
    points: dict[str, Any] = {"panel": panel.title, "line": [row.method for row in merges], "y": values[known]}
    points |= {"x": [len(row.experts) for row in merges], "subset": ["+".join(row.experts) for row in merges]}
    return pd.DataFrame({**points, "low": low, "high": high})


def _frame(points: Iterable[tuple[str, str, int, Interval]]) -> pd.DataFrame:
    rows = [(panel, method, x, value.estimate, value.low, value.high) for panel, method, x, value in points]
    return pd.DataFrame(rows, columns=["panel", "line", "x", "y", "low", "high"])
