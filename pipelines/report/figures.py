"""The files of a figure: PNG and SVG for paper, its numbers as CSV, its Vega-Lite specification for a page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from pipelines.report.charts import specification
from pipelines.report.plot import View
from pipelines.report.styles import Style

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
    of single subsets, which a page can show: at most ``POINTS`` of them, evenly chosen. A figure that is there as it
    would be drawn is not drawn again.
    """
    paths = png, svg, csv, text = [out.with_name(out.name + ending) for ending in ENDINGS]
    shown = [] if singles is None or singles.empty else [singles.iloc[:: -(-len(singles) // POINTS)]]
    spec = specification(view, pd.concat([data, *shown], ignore_index=True), references, names)
    spec["usermeta"]["drawn_by"] = f"vl-convert {version('vl-convert-python')}"
    told = json.dumps(spec, ensure_ascii=False) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    data.to_csv(csv, index=False, float_format="%.6g", lineterminator="\n", encoding="utf-8")
    if all(path.is_file() for path in paths) and text.read_bytes() == told.encode():
        return paths
    import vl_convert

    text.unlink(missing_ok=True)  # it comes last: where it is, the others are of it
    drawn = _numbered(vl_convert.vegalite_to_svg(spec))
    svg.write_text(drawn, encoding="utf-8")
    png.write_bytes(vl_convert.svg_to_png(drawn, scale=SCALE))
    text.write_text(told, encoding="utf-8")
    return paths


def _numbered(svg: str) -> str:
    """The SVG with its ids counted from 0: as they come, they go on from figure to figure."""
    ids = {name: f"id{place}" for place, name in enumerate(re.findall(r'\bid="([^"]+)"', svg))}
    return re.sub(r'(\bid="|url\(#|href="#)([^")]+)', lambda m: m[1] + ids.get(m[2], m[2]), svg)
