"""The report as Markdown and as one HTML page: what the templates beside this file are given."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from contextlib import suppress
from functools import cache
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from conf.errors import markdown_text, printable
from pipelines.report import forms, tables, words
from pipelines.report.compare import OVERALL
from pipelines.report.tables import Report
from pipelines.store.provenance import apart, said

HERE = Path(__file__).parent
STYLE = HERE / "report.css"
FIRST = 50
"""Trials that a page lists at first, and where no script runs."""
TRIAL_COLUMNS = (
    "pool", "kind", "method", "experts", "size", "parameters", "score", "score_low", "score_high", "to_base",
    "constructive", "note", "key",
)  # fmt: skip
WIDE = ("experts", "parameters", "note")


def render(report: Report, kept: Path | None = None) -> dict[str, str]:
    """``report.md``, whose figures are files beside it, and ``report.html``, which needs nothing else.

    The page asks the network for nothing, and its policy forbids it to. Without a script it shows the same tables, and
    the figures as they are drawn for paper. In the folder ``kept`` lies what takes seconds to make and never changes.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=_shown,
    )  # fmt: skip
    environment.filters.update(small=_small, inline=_inline, data=_data, number=words.number)
    environment.filters.update(markdown=tables.markdown, columns=tables.columns, side=_side)
    environment.filters.update(told=lambda value: f"{value:.4g}" if isinstance(value, float) else value)
    environment.filters.update(text=markdown_text)
    environment.filters.update(headings=forms.headings, lines=forms.lines, grid_markdown=forms.markdown)
    drawn = any(name.endswith(".vl.json") for name in report.paths)
    scripts = [*([_vega(kept)] if drawn else []), (HERE / "report.js").read_text(encoding="utf-8")]
    values = {"report": report, "settings": settings_lines(report), "counts": _counts(report)}
    values |= {"sure": f"{report.statistics.confidence:.0%}"}
    values |= {"scripts": scripts, "policy": _policy(scripts), "trials": _trials(report)}
    values |= {"style": STYLE.read_text(encoding="utf-8")}
    constants = {"unknown": words.UNKNOWN, "overall": OVERALL}
    return {
        name: environment.get_template(f"{name}.jinja").render(values | constants)
        for name in ("report.md", "report.html")
    }


@cache
def _vega(kept: Path | None) -> str:
    """Vega, Vega-Lite and their embedding as one script."""
    file = kept and kept / f"vega-{version('vl-convert-python')}.js"
    with suppress(OSError, UnicodeError):
        if file and file.is_file():
            return file.read_text(encoding="utf-8")
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    with suppress(OSError):  # a cache that cannot be written costs seconds, not the report
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}")
            part.write_text(script, encoding="utf-8")
            part.replace(file)
    return script


def _policy(scripts: list[str]) -> str:
    """A content security policy under which only these scripts run and nothing is fetched."""
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    runs = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {runs}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _trials(report: Report) -> dict[str, Any]:
    """Every trial as a row of values; numbers with six digits, None where there is none."""
    names = list(dict.fromkeys(name for line in report.trials for name in line))
    columns = [name for name in TRIAL_COLUMNS if name in names]
    columns += [name for name in names if name.startswith("task.")]
    rows = [[_plain(line.get(name)) for name in columns] for line in report.trials]
    for name in {"experts", "parameters"} & set(columns):
        place = columns.index(name)
        for row in rows:
            row[place] = row[place] and re.sub(r'[{}"]', "", row[place]).replace("+", " + ")
    return {"columns": [name.removeprefix("task.") for name in columns], "rows": rows, "wide": WIDE, "first": FIRST}


def _shown(value: Any) -> Any:
    return printable(value) if type(value) is str else value  # not of what is markup already


def _plain(value: Any) -> Any:
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return float(f"{value:.6g}") if isinstance(value, float) else _shown(value)


def settings_lines(report: Report) -> list[str]:
    """What all pools share of base, training, seeds, evaluation and machine, then what each has of its own."""
    recorded = [{"pool": pool, **columns} for pool, columns in report.settings.items() if columns]
    lines, same = apart(recorded, ["pool", "training"]) if recorded else ([], {})
    told = [(line["pool"], said({k: v for k, v in line.items() if k != "pool"})) for line in lines]
    own = [f"{pool}: {text}" for pool, text in told if text]
    return [f"{'Every pool' if len(lines) > 1 else 'All'}: {said(same)}", *own] if recorded else ["Not recorded."]


def _counts(report: Report) -> str:
    scored = {(line["kind"], line["key"]) for line in report.trials if "score" in line}  # a base of two pools is one
    kinds = [kind for kind, _ in scored]
    parts = [words.count(kinds.count(kind), kind) for kind in ("base", "expert", "joint", "merge") if kind in kinds]
    tasks = {name for line in report.trials for name in line if name.startswith("task.")}
    return f"{words.listed(parts)} scored on {words.count(len(tasks), 'task')}."


def _side(row: Any, heading: str) -> str:
    """up or down for a difference whose interval lies on one side of zero."""
    field = tables.DIFFERENCES.get(heading)
    return {1: "up", -1: "down", 0: ""}[words.direction(getattr(row, field)) if field else 0]


def _small(text: Any) -> str:
    """Text of a cell, escaped; an interval in brackets is set smaller."""
    return re.sub(r"(\[[−+]?\d[^\]]*\])", r"<small>\1</small>", escape(printable(str(text))))


def _inline(path: Path, section: str, alt: str) -> str:
    """A figure as an SVG element without its ground, so that it scales and takes the page's colour of text."""
    svg = re.sub(r"^.*?(?=<svg )", "", path.read_text(encoding="utf-8"), count=1, flags=re.DOTALL)
    svg = re.sub(r'<rect width="[^"]*" height="[^"]*" fill="white"/>', "", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    section = re.sub(r"\W+", "-", section)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{section}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)


def _data(path: Path) -> str:
    """JSON that may stand in a script element."""
    text = path.read_text(encoding="utf-8")
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
