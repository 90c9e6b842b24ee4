"""From the rows of trials to the folder of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Statistics, Views
from pipelines.report import figures, forms, tables, words
from pipelines.report.analysis import Cell, MergeStanding, build_cells, merge_standings, trial_lines
from pipelines.report.cells import Trials
from pipelines.report.compare import compare
from pipelines.report.data import TrialRow, trial_frame
from pipelines.report.documents import write_documents
from pipelines.report.facts import facts
from pipelines.report.grids import build_grid
from pipelines.report.page import STYLE, render
from pipelines.report.panel import Panel, build_panels, scored_candidates
from pipelines.report.plot import View
from pipelines.report.series import build_series
from pipelines.report.standard import standard
from pipelines.report.styles import styles
from pipelines.report.tables import Report, Section
from pipelines.report.verdict import comparison_verdicts, judge, overall_verdicts

FORMER = ("experts", "interference", "robustness")
"""Tables that earlier versions wrote beside the leaderboard."""


def write_report(
    rows: Sequence[TrialRow], out: Path, *, statistics: Statistics, title: str, left_out: Sequence[str] = (),
    command: str = "", views: Views | None = None, sections: Sequence[Section] = (), kept: Path | None = None,
) -> Report:  # fmt: skip
    """Judge the trials and write leaderboard, tables, figures, report.md and report.html into a folder.

    Trials of one study, pool, suite and attack are compared with one another; see docs/statistics.md for how.

    Args:
        rows: the trials, also those that have no result yet; the same folder is overwritten when they have one.
        out: folder of the report; made where it is missing.
        statistics: confidence, resamples and seed of the bootstrap.
        title: heading of the report.
        left_out: what was asked for and is not in the report, and why.
        command: what runs the study.
        views: further tables and figures, by name.
        sections: what was made below the folder and is shown too.
        kept: folder for what every page needs and takes seconds to make.

    Raises:
        UserError: when there are no rows, or statistics that cannot be.
    """
    _check(rows, statistics)
    report = Report(title, Path(out), statistics, left_out=list(left_out), notes=list(left_out))
    report.sections = list(sections)
    report.facts = facts(rows, command)
    frame = trial_frame(rows)
    panels = build_panels(rows, statistics, frame)
    scored = [row for panel in panels for row in panel.rows] + scored_candidates(rows, frame)
    report.planned, report.scored = _count(rows), _count(scored)
    standings = [merge_standings(panel) for panel in panels]
    cells = [_judge(report, panel, found, several=len(panels) > 1) for panel, found in zip(panels, standings)]
    report.comparisons, unlike = compare(panels)
    report.verdicts += [report.partial] if report.partial else []
    report.verdicts += overall_verdicts(panels, cells)
    report.verdicts += comparison_verdicts(report.comparisons, statistics.confidence)
    report.notes += [*unlike, *_method_notes(statistics, panels)]
    if report.comparisons:
        report.notes.append(
            "Pools compared: experts are resampled as training runs. Merges are not: each pool's experts were trained "
            "once, and a difference between merges can be the luck of that training."
        )
    report.samples = write_documents(panels, report.out, STYLE.read_text(encoding="utf-8"))
    if report.scored:
        views = views or Views()
        asked = any(view.where.get("split") for part in (views.tables, views.figures) for view in part.values())
        others = build_panels(rows, statistics, frame, candidates=True) if asked else []
        _view(report, views, Trials(frame, [*panels, *others], [*standings, *({} for _ in others)]))
    _write(report, kept)
    report.paths["trials.parquet"] = tables.write_parquet(report.out / "trials.parquet", frame)
    return report


def _check(rows: Sequence[TrialRow], statistics: Statistics) -> None:
    if not any(row.scored for row in rows):
        raise UserError("no trials to report on", do="run the study first (mergebench sweep …)")
    if not 0 < statistics.confidence < 1:
        what = f"confidence {statistics.confidence} is no coverage"
        raise UserError(what, where="statistics.confidence", do="give e.g. 0.95")
    if statistics.resamples < 100:
        what = f"{statistics.resamples} resamples are too few for an interval"
        raise UserError(what, where="statistics.resamples", do="give at least 100")


def _count(rows: Iterable[TrialRow]) -> int:
    """Distinct trials: the base of two pools is one; those without a key yet each count."""
    keys = [row.key for row in rows]
    return len(set(filter(None, keys))) + keys.count("")


def _judge(report: Report, panel: Panel, standings: dict[int, MergeStanding], several: bool) -> list[Cell]:
    cells = build_cells(panel, standings)
    report.leaderboard += [cell.row for cell in cells]
    report.trials += trial_lines(panel, standings)
    report.details[panel.title] = judge(panel, cells, standings, winner=several)
    report.settings[panel.title] = panel.provenance
    prefix = f"{panel.title}: " if several else ""
    report.notes += [prefix + note for note in panel.samples.notes]
    if failed := sum(row.scored for row in panel.incomplete):
        out = f"{words.count(failed, 'trial')} left out: a task has no score (see trials.csv)."
        report.notes.append(prefix + out)
    return cells


def _view(report: Report, views: Views, trials: Trials) -> None:
    """Lay out the tables and figures that the study declares, and those of every study that hold a number."""
    always, report.declared = standard(trials), list(views.tables)
    tables = {**views.tables, **{name: view for name, view in always.tables.items() if name not in views.tables}}
    grids = {name: build_grid(name, view, trials) for name, view in tables.items()}
    report.grids = {name: grid for name, grid in grids.items() if grid.known or name in views.tables}
    figures = {**always.figures, **views.figures}
    series = {name: build_series(name, view, trials) for name, view in figures.items()}
    report.series = {name: one for name, one in series.items() if len(one.frame) or name in views.figures}
    notes = [shown.notes for part in (report.grids, report.series) for shown in part.values()]
    report.notes += [note for own in notes for note in own if "is empty" in note]


def _method_notes(statistics: Statistics, panels: list[Panel]) -> list[str]:
    level = f"{statistics.confidence:.0%}"
    notes = [
        "A score is the mean over tasks of the mean over documents.",
        f"Brackets are {level} bootstrap intervals ({statistics.resamples} resamples, seed {statistics.seed}): "
        "documents are drawn anew within each task, the same for every model, and so are expert subsets where not all "
        "were merged. They say nothing of other training seeds or other tasks.",
        f"Constructive: above the base and every own expert; brackets of counts are Wilson's {level} intervals. Beyond "
        f"noise: every one of these comparisons holds at {1 - statistics.confidence:.2g} after Holm's correction over "
        "the pool's merges.",
    ]
    if any(panel.skills for panel in panels):
        notes.append(
            "Share kept: Σ(merge − base) / Σ(expert − base), each merged expert counted on the task of its name."
        )
    return notes


def _write(report: Report, kept: Path | None) -> None:
    """Write every file, and remove those of an earlier report that this one has no rows for."""
    out = report.out
    out.mkdir(parents=True, exist_ok=True)
    named: dict[str, Sequence[Any]] = dict.fromkeys(FORMER, ())
    named |= {"leaderboard": report.leaderboard, "compare": report.comparisons}
    paths = []
    for name, rows in named.items():
        file, text = out / f"{name}.csv", out / f"{name}.md"
        file.unlink(missing_ok=True)
        text.unlink(missing_ok=True)
        if rows:
            tables.write_csv(file, [_with_settings(report, row) for row in rows])
            text.write_text(tables.markdown(rows), encoding="utf-8")
            paths += [file, text]
    paths.append(tables.write_csv(out / "trials.csv", report.trials))
    report.paths = {path.name: path for path in paths} | _write_views(report)
    made = [file + ending for part in report.sections for file in part.figures for ending in figures.ENDINGS]
    report.paths |= {file: out / file for file in [*made, *(f for part in report.sections for f in part.tables)]}
    for name, page in render(report, kept).items():
        report.paths[name] = out / name
        report.paths[name].write_text(page, encoding="utf-8")


def _write_views(report: Report) -> dict[str, Path]:
    """Write the declared tables, and the data of the declared figures, into folders of their own."""
    found: dict[str, Path] = {}
    for grid in report.grids.values():
        found |= {f"tables/{path.name}": path for path in forms.write(grid, report.out / "tables")}
    names = styles(str(line) for series in report.series.values() for line in series.frame.get("line", ()))
    for series in (one for one in report.series.values() if not one.frame.empty):
        view, out = series.view, report.out / "figures" / series.name
        drawn = View(series.title, view.kind, view.x, view.y, view.log)
        paths = figures.draw(drawn, series.frame, series.references, out, names, series.singles)
        found |= {f"figures/{path.name}": path for path in paths}
    for kind in ("tables", "figures"):
        for stale in (report.out / kind).glob("*.*"):
            if f"{kind}/{stale.name}" not in found:
                stale.unlink()
    return found


def _with_settings(report: Report, row: Any) -> dict[str, Any]:
    """A row with how the results of its pool came about; what the row itself has a column for gets another name."""
    line, settings = tables.flat(row), report.settings.get(getattr(row, "panel", ""), {})
    return line | {f"{name}_name" if name in line else name: value for name, value in settings.items()}
