"""The report as Markdown and as one HTML page: what the templates beside this file are given."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pipelines.report import tables, words
from pipelines.report.compare import OVERALL
from pipelines.report.tables import Report
from pipelines.store.provenance import apart, said


def render(report: Report) -> dict[str, str]:
    """``report.md``, whose figures are files beside it, and ``report.html``, which needs nothing else and no script."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(small=_small, inline=_inline, number=words.number)
    environment.filters.update(markdown=tables.markdown, columns=tables.columns, side=_side)
    values = {"report": report, "settings": settings_lines(report), "counts": _counts(report)}
    constants = {"unknown": words.UNKNOWN, "overall": OVERALL}
    return {
        name: environment.get_template(f"{name}.jinja").render(values | constants)
        for name in ("report.md", "report.html")
    }


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


def _side(row: Any, heading: str) -> str:
    """up or down for a difference whose interval lies on one side of zero."""
    field = tables.DIFFERENCES.get(heading)
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
