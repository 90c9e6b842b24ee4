"""A table's forms: CSV with all digits and bounds, and lines of text for people, as Markdown and as LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.errors import markdown_text, printable
from pipelines.report import tables, words
from pipelines.report.cells import Value
from pipelines.report.grids import Grid, marks
from pipelines.report.grouping import label_of, text
from pipelines.report.views import MEASURES, measure_of

SIGNED = ("change", "difference")
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$", "–": "--", "—": "---",
    "Δ": r"$\Delta$", "λ": r"$\lambda$", "α": r"$\alpha$", "β": r"$\beta$", "θ": r"$\theta$", "μ": r"$\mu$",
    "ρ": r"$\rho$", "Σ": r"$\Sigma$", "‖": r"$\Vert$", "·": r"$\cdot$", "×": r"$\times$", ">": "$>$", "<": "$<$",
    "|": r"\textbar{}",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A row of a table as text."""

    block: str
    labels: list[str]
    cells: list[str]
    marks: list[int]
    """For each cell 1: the best, 2: the second best, 0: neither."""
    aside: bool


def headings(grid: Grid) -> list[str]:
    """What stands over the cells: the values of columns, or the measures."""
    return [grid.heading(column) for column in grid.columns] if grid.view.columns else grid.measures


def lines(grid: Grid) -> Iterator[Line]:
    """The rows of a table, block by block; several measures of one cell stand in it side by side."""
    best = marks(grid)
    for block in grid.blocks:
        name = label_of(grid.names, block)
        for row in grid.rows[block]:
            cells, found = [], []
            for column in grid.columns:
                told = [_cell(grid, m, v) for m, v in grid.measured(block, row, column)]
                mark = best.get((block, row, column), 0)
                joined = [words.UNKNOWN if set(told) == {words.UNKNOWN} else " / ".join(told)]
                cells += joined if grid.view.columns else told
                found += [mark] if grid.view.columns else [mark, *[0] * (len(told) - 1)]
            yield Line(name, [text(value) for value in row], cells, found, grid.aside(row))


def _cell(grid: Grid, measure: str, value: Value) -> str:
    if math.isnan(value.estimate):
        return value.text or words.UNKNOWN
    if measure not in MEASURES and grid.view.digits is None:
        return text(value.estimate)
    digits = measure_of(measure).digits if grid.view.digits is None else grid.view.digits
    told = words.number(value.estimate, digits, "+" if measure in SIGNED else "")
    half = (value.high - value.low) / 2
    return told if not grid.view.errors or math.isnan(half) else f"{told} ±{words.number(half, digits)}"


def markdown(grid: Grid) -> str:
    """The table as Markdown: the best in bold, the second best underlined."""
    around = ("{}", "**{}**", "<u>{}</u>")
    head = [*(["block"] if any(grid.blocks) else []), *grid.view.rows, *headings(grid)]
    if any(grid.blocks):
        head[0] = " · ".join(grid.names[: len(grid.names) - len(grid.view.rows)])
    body = [
        [*([markdown_text(line.block)] if any(grid.blocks) else []), *map(markdown_text, line.labels),
         *(around[mark].format(markdown_text(cell)) for cell, mark in zip(line.cells, line.marks))]
        for line in lines(grid)
    ]  # fmt: skip
    rows = ["| " + " | ".join(row) + " |" for row in (map(markdown_text, head), *body)]
    rows.insert(1, "|" + "---|" * (len(head) - len(headings(grid))) + "---:|" * len(headings(grid)))
    return "\n".join([f"**{markdown_text(grid.title)}**", "", *rows, "", *grid.notes, *([""] if grid.notes else [])])


def latex(grid: Grid) -> str:
    """The table as LaTeX for the package booktabs; blocks have lines of their own."""
    around = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")
    names, heads = len(grid.view.rows), headings(grid)
    out = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(grid.title)}}}",
           rf"\begin{{tabular}}{{{'l' * names}{'r' * len(heads)}}}", r"\toprule",
           _row([*grid.view.rows, *heads])]  # fmt: skip
    block = None
    for line in lines(grid):
        if line.block != block:
            out.append(r"\midrule")
            if line.block:
                out.append(rf"\multicolumn{{{names + len(heads)}}}{{l}}{{\textit{{{escaped(line.block)}}}}} \\")
            block = line.block
        marked = [around[mark].format(escaped(cell)) for cell, mark in zip(line.cells, line.marks)]
        out.append(" & ".join([*map(escaped, line.labels), *marked]) + r" \\")
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def escaped(told: str) -> str:
    """Text with what means something to LaTeX written out."""
    return "".join(LATEX.get(character, character) for character in printable(told))


def write(grid: Grid, folder: Path) -> list[Path]:
    """Write NAME.csv, NAME.md and NAME.tex into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{grid.name}{ending}" for ending in (".csv", ".md", ".tex")]
    tables.write_csv(paths[0], grid.flat())
    paths[1].write_text(markdown(grid), encoding="utf-8")
    paths[2].write_text(latex(grid), encoding="utf-8")
    return paths
