"""The report as Markdown and as one HTML page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from pipelines.report import tables, words
from pipelines.store.results import apart, said

if TYPE_CHECKING:
    from pipelines.report.report import Report


SECTIONS: list[tuple[str, str, str]] = [
    ("leaderboard", "Leaderboard", "Mean over the merges of a method at one number of experts."),
    (
        "comparisons",
        "Pools compared",
        "The same subsets, methods and documents: other minus reference. Experts are resampled as training runs; the "
        "experts of the merges were trained once, and the intervals of merges do not hold the noise of that.",
    ),
    ("robustness", "Robustness", "Performance drop rate (clean − attacked) / clean."),
    ("experts", "Experts on their own skill", "Each expert against the base on the task of its name."),
    ("interference", "Interference", "How much of the experts' own-skill gain the merges keep."),
]
FIGURES = {
    "leaderboard": ("score_by_experts.svg", "Mean score by number of experts merged, one line a method"),
    "interference": ("interference_by_experts.svg", "Share of own-skill gain kept by number of experts merged"),
}


def markdown(report: Report) -> str:
    """The report as Markdown; figures are the files beside it."""
    parts = [f"# {report.title}\n", *(f"- {line}" for line in report.verdicts), ""]
    for pool, lines in report.details.items():
        parts += [f"## {pool}\n"] * (len(report.details) > 1) + [*(f"- {line}" for line in lines), ""]
    for name, heading, about in SECTIONS:
        rows = getattr(report, name)
        if not rows:
            continue
        parts += [f"## {heading}\n", f"{about}\n"]
        figure, alt = FIGURES.get(name, ("", ""))
        if figure in report.paths:
            parts.append(f"![{alt}]({figure.replace('.svg', '.png')})\n")
        parts.append(tables.markdown(rows))
    parts += ["## How the results came about\n", *(f"- {line}" for line in settings_lines(report)), ""]
    parts += ["## How to read this\n", *(f"- {note}" for note in report.notes), ""]
    parts.append(f"{_counts(report)} Every trial with its key: `trials.csv`.\n")
    return "\n".join(parts)


def html(report: Report) -> str:
    """The report as a self-contained page: style and figures inline, no script, no network."""
    body = [f"<header><h1>{escape(report.title)}</h1><p>{escape(_counts(report))}</p></header>"]
    body.append(_verdict(report))
    for name, heading, about in SECTIONS:
        rows = getattr(report, name)
        if rows:
            body.append(
                f"<section><h2>{heading}</h2><p>{escape(about)}</p>{_figure(report, name)}{_table(rows)}</section>"
            )
    body.append(f'<section class="notes"><h2>How the results came about</h2>{_list(settings_lines(report))}</section>')
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    body.append(f'<section class="notes"><h2>How to read this</h2><ul>{notes}</ul></section>')
    body.append(_trials(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _verdict(report: Report) -> str:
    """What is said first: of one pool everything, of several their winners and how they compare."""
    first, *rest = report.verdicts
    several = len(report.details) > 1
    if not several:
        rest += next(iter(report.details.values()))
    text = f'<section class="verdict"><p>{escape(first)}</p>{_list(rest)}'
    for pool, lines in report.details.items():
        if several and lines:
            text += f"<details><summary>More on {escape(pool)}</summary>{_list(lines)}</details>"
    return text + "</section>"


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def settings_lines(report: Report) -> list[str]:
    """What all pools share of base, training, seeds, evaluation and machine, then what each has of its own."""
    told = [{"pool": pool, **columns} for pool, columns in report.settings.items() if columns]
    lines, same = apart(told, ["pool", "training"]) if told else ([], {})
    own = [f"{line['pool']}: {said({k: v for k, v in line.items() if k != 'pool'})}" for line in lines]
    return [f"{'Every pool' if len(told) > 1 else 'All'}: {said(same)}", *own] if told else ["Not recorded."]


def _counts(report: Report) -> str:
    scored = {(line["kind"], line["key"]) for line in report.trials if "score" in line}  # a base of two pools is one
    kinds = [kind for kind, _ in scored]
    parts = [
        f"{kinds.count(kind)} {kind}{'' if kinds.count(kind) == 1 else 's'}" for kind in ("base", "expert", "merge")
    ]
    parts = [part for part in parts if not part.startswith("0 ")]
    tasks = {name for line in report.trials for name in line if name.startswith("task.")}
    return f"{words.listed(parts)} scored on {len(tasks)} task{'' if len(tasks) == 1 else 's'}."


def _figure(report: Report, section: str) -> str:
    name, alt = FIGURES.get(section, ("", ""))
    if name not in report.paths:
        return ""
    svg = report.paths[name].read_text(encoding="utf-8")
    svg = re.sub(r"^.*?(?=<svg )", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{section}-", svg)  # ids are unique in the page
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    limit = f' style="max-width:{float(width.group(1)) * 1.6:.0f}px"' if width else ""
    return f"<figure{limit}>{svg}</figure>"


def _table(rows: Sequence[Any]) -> str:
    shown = tables.columns(rows)
    grouped = shown[0][0] == "pool"  # a heading a pool takes the place of the column
    shown = shown[grouped:]
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in shown)
    lines = []
    last = None
    for row in rows:
        if grouped and row.panel != last:
            last = row.panel
            lines.append(f'<tr class="group"><th colspan="{len(shown)}">{escape(last)}</th></tr>')
        cells = "".join(f"<td{_sense(name, row)}>{_cell(cell(row))}</td>" for name, cell in shown)
        lines.append(f"<tr{_class(row)}>{cells}</tr>")
    body = "\n".join(lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _class(row: Any) -> str:
    aside = getattr(row, "kind", "merge") != "merge" or getattr(row, "what", "") == tables.OVERALL
    return ' class="reference"' if aside else ""


def _sense(name: str, row: Any) -> str:
    """Colour of a difference whose interval lies on one side of zero."""
    field = {"Δ base": "to_base", "Δ best expert": "to_best", "Δ": "gain", "difference": "difference"}.get(name)
    sense = words.direction(getattr(row, field)) if field else 0
    return {1: ' class="up"', -1: ' class="down"', 0: ""}[sense]


def _cell(text: str) -> str:
    """Text of a cell; an interval in brackets is set smaller."""
    return re.sub(r"(\[[^\]]*\])", r"<small>\1</small>", escape(text))


def _trials(report: Report) -> str:
    names = ["pool", "kind", "method", "experts", "score", "constructive", "note", "key"]
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = []
    for line in report.trials:
        score = line.get("score")
        values = [
            line["pool"],
            line["kind"],
            line["method"] or words.UNKNOWN,
            line["experts"].replace("+", " + ") or words.UNKNOWN,
            words.UNKNOWN if score is None else words.number(score),
            {True: "yes", False: "no", None: words.UNKNOWN}[line.get("constructive")],
            line.get("note", ""),
        ]
        cells = "".join(f"<td>{escape(str(v))}</td>" for v in values)
        lines.append(f"<tr>{cells}<td><code>{escape(line['key'][:16])}</code></td></tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(lines) + "\n</tbody></table>"
    return (
        f'<section class="trials"><details><summary>All {len(report.trials)} trials with their keys</summary>'
        f'<div class="scroll">{table}</div></details></section>'
    )


CSS = """
:root { color-scheme: light; --ink: #1d2530; --soft: #5f6b7a; --line: #e3e7ec; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f6f8; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 16px 64px; }
header h1 { margin: 0; font-size: 28px; letter-spacing: -0.01em; }
header p { margin: 4px 0 20px; color: var(--soft); }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 20px 20px; margin: 0 0 20px; }
section h2 { margin: 0 0 2px; font-size: 18px; }
section > p { margin: 0 0 12px; color: var(--soft); }
.verdict { border-left: 5px solid var(--accent); }
.verdict > p { margin: 0; color: var(--ink); font-size: 18px; line-height: 1.45; }
.verdict ul { margin: 12px 0 0; padding-left: 20px; }
.verdict li, .notes li { margin: 3px 0; }
figure { margin: 8px auto 18px; }
figure svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 12.5px; border-bottom: 2px solid var(--line);
  padding: 6px 12px 6px 0; white-space: nowrap; }
td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr.reference td { color: var(--soft); font-style: italic; }
tr.group th { color: var(--ink); font-size: 14px; padding-top: 16px; border-bottom: 1px solid #b9c2cd; }
details summary { cursor: pointer; font-weight: 600; margin-top: 8px; }
tbody tr:hover td { background: #f8fafc; }
td small { color: var(--soft); font-size: 11.5px; }
td.up { color: #00694c; } td.up::before { content: "▲ "; font-size: 10px; }
td.down { color: #a83e00; } td.down::before { content: "▼ "; font-size: 10px; }
.notes { color: var(--soft); font-size: 14px; } .notes ul { margin: 8px 0 0; padding-left: 20px; }
.trials td:nth-child(4) { white-space: normal; }
code { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 0 0 12px; } }
"""
