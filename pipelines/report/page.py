"""The report as Markdown and as one HTML page: what the templates beside this file are given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pipelines.report import tables, words
from pipelines.report.compare import OVERALL
from pipelines.report.tables import Report
from pipelines.store.provenance import apart, said

SECTIONS: list[tuple[str, str, str, str, str]] = [
    (
        "leaderboard", "Leaderboard", "Mean over the merges of a method at one number of experts.",
        "score_by_experts", "Mean score by number of experts merged, one line per method",
    ),
    (
        "comparisons", "Pools compared",
        "The same subsets, methods and documents: other minus reference. Experts are resampled as training runs; the "
        "experts of the merges were trained once, and the intervals of merges do not hold the noise of that.",
        "", "",
    ),
    ("robustness", "Robustness", "Performance drop rate (clean − attacked) / clean.", "", ""),
    ("experts", "Experts on their own skill", "Each expert against the base on the task of its name.", "", ""),
    (
        "interference", "Interference", "How much of the experts' own-skill gain the merges keep.",
        "interference_by_experts", "Share of own-skill gain kept by number of experts merged",
    ),
]  # fmt: skip
"""Field of the report, heading, what it shows, its figure and what that shows."""


def render(report: Report) -> dict[str, str]:
    """``report.md``, whose figures are files beside it, and ``report.html``, which needs nothing else and no script."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(small=_small, inline=_inline, number=words.number, markdown=tables.markdown)
    sections = []
    for name, heading, about, figure, alt in SECTIONS:
        if rows := getattr(report, name):
            section = {"name": name, "heading": heading, "about": about, "rows": rows, "table": _table(rows)}
            sections.append({**section, "figure": figure if f"{figure}.svg" in report.paths else "", "alt": alt})
    values = {
        "report": report,
        "sections": sections,
        "settings": settings_lines(report),
        "counts": _counts(report),
        "unknown": words.UNKNOWN,
    }
    return {name: environment.get_template(f"{name}.jinja").render(values) for name in ("report.md", "report.html")}


def settings_lines(report: Report) -> list[str]:
    """What all pools share of base, training, seeds, evaluation and machine, then what each has of its own."""
    recorded = [{"pool": pool, **columns} for pool, columns in report.settings.items() if columns]
    lines, same = apart(recorded, ["pool", "training"]) if recorded else ([], {})
    own = [f"{line['pool']}: {said({k: v for k, v in line.items() if k != 'pool'})}" for line in lines]
    return [f"{'Every pool' if len(lines) > 1 else 'All'}: {said(same)}", *own] if recorded else ["Not recorded."]


def _counts(report: Report) -> str:
    scored = {(line["kind"], line["key"]) for line in report.trials if "score" in line}  # a base of two pools is one
    kinds = [kind for kind, _ in scored]
    parts = [words.count(kinds.count(kind), kind) for kind in ("base", "expert", "merge") if kind in kinds]
    tasks = {name for line in report.trials for name in line if name.startswith("task.")}
    return f"{words.listed(parts)} scored on {words.count(len(tasks), 'task')}."


def _table(rows: Sequence[Any]) -> dict[str, Any]:
    """Headings, and of each row its cells with their classes; a heading per pool takes the place of that column."""
    shown = tables.columns(rows)
    grouped = shown[0][0] == "pool"
    shown = shown[grouped:]
    lines = []
    group = None
    for row in rows:
        heading = row.panel if grouped and row.panel != group else None
        group = row.panel if grouped else None
        aside = getattr(row, "kind", "merge") != "merge" or getattr(row, "what", "") == OVERALL
        cells = [(cell(row), _side(name, row)) for name, cell in shown]
        lines.append({"group": heading, "aside": aside, "cells": cells})
    return {"names": [name for name, _ in shown], "lines": lines}


def _side(name: str, row: Any) -> str:
    """up or down for a difference whose interval lies on one side of zero."""
    field = tables.DIFFERENCES.get(name)
    return {1: "up", -1: "down", 0: ""}[words.direction(getattr(row, field)) if field else 0]


def _small(text: Any) -> str:
    """Text of a cell, escaped; an interval in brackets is set smaller."""
    return re.sub(r"(\[[^\]]*\])", r"<small>\1</small>", escape(str(text)))


def _inline(path: Path, section: str, alt: str) -> str:
    """A figure as an SVG element that scales, its ids made unique in the page."""
    svg = re.sub(r"^.*?(?=<svg )", "", path.read_text(encoding="utf-8"), count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{section}-", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    limit = f' style="max-width:{float(width.group(1)) * 1.6:.0f}px"' if width else ""
    return f"<figure{limit}>{svg}</figure>"
