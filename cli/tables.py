"""Plans, studies, their reports and searches as tables and lines on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.folded import Folded, Row
from cli.terminal import clock, gigabytes, table
from pipelines.report import forms, words
from pipelines.report.page import settings_lines

if TYPE_CHECKING:
    from pipelines.report import Interval, Report
    from pipelines.report.analysis import LeaderRow
    from pipelines.report.grids import Grid
    from pipelines.search.result import Candidate, SearchResult
    from pipelines.study.plan import Plan
    from pipelines.study.sweep import Sweep

MARKS = {1: "bold", 2: "underline", 0: ""}
"""Styles of the best and the second best of a column."""
STYLES = {1: "green", -1: "red", 0: ""}
SENTENCES_PER_POOL = 2
"""The last sentences on each pool, on its experts and on what merging keeps of them; the page has all."""
COLUMNS = 3
"""More parameters than these share one column of a search's table."""
CHOICES = 24
"""Of what a study chose on another split so many are shown; the file has all."""
INTERRUPTED = "[yellow]interrupted: what was {done} is kept; the same command goes on[/]"


def plan_parts(plan: Plan) -> Iterator[Any]:
    """What would run, what it needs, and what is wrong."""
    rows = [(f"[bold]{name}[/]", value) for name, value in _plan_rows(plan)]
    yield table(f"plan of {plan.name}", ("", ""), rows, show_header=False)
    yield from (f"[dim]{note}[/]" for note in plan.layout.notes)
    if plan.problems:
        wrong = [(problem.where, problem.what, problem.do) for problem in plan.problems]
        yield table("[red]what is wrong[/]", ("where", "what", "what to do"), wrong)


def _plan_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "models", str(len(plan.layout.planned))
    yield "new trials", str(plan.new)
    yield "cached trials", str(plan.cached)
    if plan.waiting:
        made = [unmade.what for unmade in plan.layout.unmade]
        why = f"to be made first: {words.listed(made)}" if made else "to be chosen first"
        yield "waiting trials", f"{plan.waiting} ({why})"
    if plan.candidates:
        yield "selection", f"{plan.finals} of {plan.candidates} candidates, on another split"
    if plan.blocked:
        yield "[red]blocked trials[/]", str(plan.blocked)
    needs = plan.resources
    if fetch := needs["to_fetch"]:
        size, free = sum(checkpoint["bytes"] for checkpoint in fetch), gigabytes(needs["fetch_free"])
        yield "to fetch", f"{words.count(len(fetch), 'checkpoint')}, {gigabytes(size)} ({free} free in the hub's cache)"
    yield "disk", f"{gigabytes(needs['disk_needed'])} needed, {gigabytes(needs['disk_free'])} free"
    where = f" on {needs['memory_of']}" if needs["memory_of"] else ""
    yield "memory", f"{gigabytes(needs['memory_needed'])} needed, {gigabytes(needs['memory_free'])} free{where}"
    if needs["training_memory"]:
        yield "training", f"{gigabytes(needs['training_memory'])} of a device's memory for an expert, and activations"
    hours, dollars = needs["hours"], needs["dollars"]
    unknown = "not measured yet on this suite (mergebench calibrate)"
    cost = "" if dollars is None else f": {needs['device_hours']:.3g} device-hours, {dollars:.2f} dollars"
    yield "time", unknown if hours is None else f"about {clock(hours * 3600)}{cost}"


def sweep_parts(sweep: Sweep, with_report: bool = True) -> Iterator[Any]:
    """The report (unless several studies share one), then what ran, what failed, and where everything is."""
    if sweep.report is None:
        yield "[yellow]no result of this study is in the store yet[/]"
    elif with_report:
        yield from report_parts(sweep.report)
    else:
        yield f"[bold]{sweep.name}[/]: {sweep.folder}"
    if sweep.plan.layout.choices:
        rows = [
            (c.pool, c.method, " + ".join(c.experts), _values(c.values), f"{c.score:.3f}")
            for c in sweep.plan.layout.choices
        ]
        head = ("pool", "method", "experts", "values", "score there")
        yield table("chosen on another split", head, rows[:CHOICES])
        if len(rows) > CHOICES:
            yield f"{len(rows) - CHOICES} more choices: {sweep.folder / 'chosen.csv'}"
    yield _spent(sweep)
    if sweep.outcome.failures:
        title = "[red]trials without a result[/]; the same command tries them again"
        yield table(title, ("trial", "reason"), [(_trial(f.trial), f.reason) for f in sweep.outcome.failures])
    if sweep.outcome.interrupted:
        yield INTERRUPTED.format(done="finished")


def _spent(sweep: Sweep) -> str:
    plan, seconds = sweep.plan, sweep.seconds
    parts = [f"{plan.cached} trials cached, {sweep.outcome.done} run"]
    if sweep.report is not None and sweep.report.partial:
        parts.append(f"partial: {sweep.report.scored} of {sweep.report.planned} trials have a result")
    if sweep.outcome.elsewhere:
        parts.append(f"{sweep.outcome.elsewhere} finished by another process")
    if seconds.get("make"):
        parts.append(f"bases and experts {clock(seconds['make'])}")
    if sweep.outcome.done:
        busy = seconds.get("merge", 0) + seconds.get("evaluate", 0)
        other = max(0.0, 1 - busy / max(seconds["trials"], 1e-9))
        parts.append(
            f"trials {clock(seconds['trials'])} (merging {clock(seconds.get('merge', 0))}, "
            f"evaluating {clock(seconds.get('evaluate', 0))}, other {other:.0%})"
        )
    if "report" in seconds:
        parts.append(f"report {clock(seconds['report'])}")
    return "[dim]" + "; ".join(parts) + "[/]"


def _values(values: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )


def _trial(trial: Any) -> str:
    return f"{f'{trial.merge.method} of {len(trial.merge.experts)}' if trial.merge else trial.kind} {trial.key[:10]}"


def sweep_dict(sweep: Sweep) -> dict[str, Any]:
    """How a study went, for machines."""
    return {
        "study": sweep.name,
        "folder": str(sweep.folder),
        "complete": sweep.complete,
        "cached": sweep.plan.cached,
        "run": sweep.outcome.done,
        "failed": [{"key": f.trial.key, "reason": f.reason} for f in sweep.outcome.failures],
        "chosen": [choice.to_dict() for choice in sweep.plan.layout.choices],
        "seconds": sweep.seconds,
        "report": sweep.report.to_dict() if sweep.report else None,
    }


def report_parts(report: Report) -> Iterator[Any]:
    """Scores by method and number of experts, the study's own tables, what merging keeps, and the verdict."""
    yield standings_table(report)
    # tables that every report has are for its page
    yield from (view_table(grid) for name, grid in report.grids.items() if name in report.declared)
    if "kept" in report.grids and "kept" not in report.declared:
        yield _kept(report, report.grids["kept"])
    yield from verdict_lines(report)


def view_table(grid: Grid, only: str | None = None) -> Folded:
    """A table of views, or one block of it: best bold, second best underlined."""
    made, block = Folded("\n" + grid.title, grid.view.rows, forms.headings(grid), caption="\n".join(grid.notes)), ""
    for line in forms.lines(grid):
        if only is not None and line.block != only:
            continue
        if line.block != block and only is None:
            block = line.block
            made.rows.append(Row([Text(block, style="bold")]))
        style = "dim" if line.aside else ""
        cells = [Text(cell, style=style or MARKS[mark]) for cell, mark in zip(line.cells, line.marks)]
        made.rows.append(Row([Text(label, style=style) for label in line.labels], cells))
    return made


def _kept(report: Report, grid: Grid) -> Folded:
    """What merging keeps in the pool with the best merge; the page has every pool."""
    blocks = {name for (name,) in grid.blocks}
    best = max((r for r in report.leaderboard if r.kind == "merge" and r.panel in blocks), key=_estimate).panel
    made = view_table(grid, best)
    made.title += f" ({best}; the page has every pool)" if len(blocks) > 1 else ""
    return made


def standings_table(report: Report) -> Folded:
    """Mean score by method (rows, best first) and number of experts merged (columns), pool by pool.

    Green and red: the paired interval of the difference to the base lies above or below zero.
    """
    sizes = sorted({row.experts for row in report.leaderboard if row.kind == "merge"})
    columns = [*(f"of {size}" for size in sizes), *(["constr."] if sizes else [])]
    made = Folded(report.title, ["method"], columns)
    pools = list(dict.fromkeys(row.panel for row in report.leaderboard))
    for pool in pools:
        if len(pools) > 1:
            made.rows.append(Row([Text(pool, style="bold")]))
        own = [row for row in report.leaderboard if row.panel == pool]
        merges: dict[str, dict[int, LeaderRow]] = {}
        for row in (row for row in own if row.kind == "merge"):
            merges.setdefault(row.method, {})[row.experts] = row
        beside = [f"{row.method} {_short(row.score)}" for row in own if row.kind != "merge"]
        made.rows.append(Row([Text("; ".join(beside), style="dim")]))
        for method, rows in sorted(merges.items(), key=lambda item: -mean(map(_estimate, item[1].values()))):
            scores = [_score(rows[size]) if size in rows else Text("") for size in sizes]
            made.rows.append(Row([Text(method)], [*scores, _constructive(rows.values())]))
    sure = f"{report.statistics.confidence:.0%}"
    parts = [
        f"score ± half its {sure} interval, mean over the merges of that many experts",
        "green, red: above, below the base beyond noise",
        "constr.: merges above the base and all of their own experts",
    ]
    made.caption = "\n".join(["; ".join(parts), *settings_lines(report)])
    return made


def _estimate(row: LeaderRow) -> float:
    return row.score.estimate


def _score(row: LeaderRow) -> Text:
    return Text(_short(row.score), style=STYLES[words.direction(row.to_base)])


def _constructive(rows: Iterable[LeaderRow]) -> Text:
    tallies = [row.constructive for row in rows if row.constructive is not None]
    return Text(f"{sum(t.k for t in tallies)}/{sum(t.n for t in tallies)}" if tallies else words.UNKNOWN)


def _short(interval: Interval | None, digits: int = 3) -> str:
    """An estimate and half of its interval; nothing for None."""
    if interval is None:
        return ""
    half = f"{(interval.high - interval.low) / 2:.3f}".replace("0.", ".")
    return words.number(interval.estimate, digits) + (f" ±{half}" if interval.known else "")


def verdict_lines(report: Report) -> list[Text]:
    """The verdict, its first sentence bold; what was left out; each pool's experts; and where the page is."""
    lines = [Text("• " + line, style="bold" if i == 0 else "") for i, line in enumerate(report.verdicts)]
    lines += [Text("• " + note, style="yellow") for note in report.left_out]
    for pool, sentences in report.details.items():
        lead = f"{pool}: " if len(report.details) > 1 else ""
        lines += [Text("• " + lead + line) for line in sentences[-SENTENCES_PER_POOL:]]
    if "report.html" in report.paths:
        lines.append(Text(f"Report: {report.paths['report.html']}", style="dim"))
    return lines


def search_parts(found: SearchResult, top: int) -> Iterator[Any]:
    """The best configurations, then how the chosen one compares with the defaults, then what failed."""
    shown = found.top(top)
    if len(found.objectives) > 1 and found.candidates:
        yield _front_table(found)
    elif shown:
        yield _search_table(found, shown)
    if found.label:
        yield f"[bold red]{found.label}[/]"
    if found.estimates:
        yield found.estimates
    yield from _search_verdict(found)
    for key, reason in found.failed.items():
        yield f"[red]{key[:10]} has no score[/]: {escape(reason)}"
    if found.interrupted:
        yield INTERRUPTED.format(done="scored")
    yield f"[dim]{words.count(found.tried, 'configuration')} beside the default, in {found.folder}[/]"


def _front_table(found: SearchResult) -> Table:
    """What no other configuration beats, and the default: every objective on both splits."""
    title = f"{found.method} of {', '.join(found.experts)}: front of a {found.sampler} search on {found.tuned_on}"
    made, shown = Table(title=title, title_justify="left"), list(found.front)
    shown += [c for c in found.candidates if c.default and c not in shown]
    made.add_column("")
    for column in [*shown[0].values, *(f"{o.name}, {split}" for split in (found.tuned_on, found.reported_on)
                                       for o in found.objectives)]:  # fmt: skip
        made.add_column(column, justify="right")
    for candidate in shown:
        numbers = [f"{score:.4f}" for score in [*candidate.scores, *(candidate.reported or ())]]
        numbers += ["—"] * (2 * len(found.objectives) - len(numbers))
        name = "default" if candidate.default else str(candidate.number)
        made.add_row(name, *(_value(value) for value in candidate.values.values()), *numbers)
    return made


def _search_table(found: SearchResult, shown: list[Candidate]) -> Table:
    title = f"{found.method} of {', '.join(found.experts)}: {found.sampler} search on {found.tuned_on}"
    made, names = Table(title=title, title_justify="left"), list(shown[0].values)
    made.add_column("", no_wrap=True)
    if len(names) > COLUMNS:
        made.add_column("values", overflow="fold")
    columns = names if len(names) <= COLUMNS else []
    for column in [*columns, found.tuned_on, found.reported_on + (" (tuned on it)" if found.label else "")]:
        made.add_column(column, justify="right", no_wrap=True)
    for place, candidate in enumerate(shown):
        marks = ["best"] * (place == 0) + ["default"] * candidate.default
        values = [_value(candidate.values[name]) for name in names]
        if not columns:
            values = [", ".join(f"{name} {value}" for name, value in zip(names, values))]
        tuned = _short(candidate.validation, 4) or f"{'' if candidate.whole else '≈ '}{candidate.score:.4f}"
        made.add_row(" ".join(marks) or str(place + 1), *values, tuned, _short(candidate.test, 4))
    made.caption = f"score ± half its {found.confidence:.0%} bootstrap interval over documents"
    return made


def _search_verdict(found: SearchResult) -> Iterator[str]:
    best, gap = found.best, found.difference
    if best is None or gap is None or best.test is None:
        return
    if best.default:
        yield f"no configuration is better than the default on {found.tuned_on}"
        return
    sure = "beyond noise" if gap.excludes_zero else "within noise"
    p = "" if gap.p is None or math.isnan(gap.p) else f", p = {gap.p:.2g}"
    ends = f"[{gap.low:.3f}, {gap.high:.3f}]" if gap.known else ""
    yield f"on {found.reported_on}, chosen minus default, paired: {gap.estimate:+.4f} {ends}{p}: {sure}"
    if not found.label:
        many = f"the highest of {len(found.candidates)} and so too high"
        yield f"[dim]the chosen one's score on {found.tuned_on} is {many}; its score on {found.reported_on} is not[/]"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
