"""From the rows of trials to the folder of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Statistics
from pipelines.report import figures as plots
from pipelines.report import page, tables
from pipelines.report.analysis import (
    Cell,
    ExpertRow,
    InterferenceRow,
    LeaderRow,
    build_cells,
    expert_rows,
    interference_rows,
    merge_standings,
    trial_lines,
)
from pipelines.report.compare import ComparisonRow, RobustnessRow, compare, comparison_verdicts, robustness
from pipelines.report.data import TrialRow
from pipelines.report.overall import overall_verdicts
from pipelines.report.panel import Panel, build_panels
from pipelines.report.verdict import Verdict, judge


@dataclass
class Report:
    """What a study found, and the files that tell it."""

    title: str
    out: Path
    statistics: Statistics
    leaderboard: list[LeaderRow] = field(default_factory=list)
    experts: list[ExpertRow] = field(default_factory=list)
    interference: list[InterferenceRow] = field(default_factory=list)
    comparisons: list[ComparisonRow] = field(default_factory=list)
    robustness: list[RobustnessRow] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    """Plain sentences: the winner of each pool and how sure that is, then how the pools compare."""
    details: dict[str, list[str]] = field(default_factory=dict)
    """Further sentences by pool."""
    scored: int = 0
    """Models that have a score on every task."""
    planned: int = 0
    """Models of the study; more than are scored where it was stopped, or a part of it failed."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By pool, how its results came about: base, training, seeds, evaluation settings, machine."""
    left_out: list[str] = field(default_factory=list)
    """What was asked for and did not run or is told elsewhere, and why."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know about how the numbers were made."""
    paths: dict[str, Path] = field(default_factory=dict)
    """Files by name: leaderboard.csv, report.html, …"""

    @property
    def partial(self) -> str:
        """That results are missing, and how many; nothing where the study is complete."""
        if self.scored == self.planned:
            return ""
        return f"Partial: {self.scored} of {self.planned} trials have a result; the same command goes on."

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; numbers that are not known are None."""
        return _json(
            asdict(self)
            | {"partial": bool(self.partial), "paths": {name: str(path) for name, path in self.paths.items()}}
        )


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(
    rows: Sequence[TrialRow], out: Path, *, statistics: Statistics, title: str, left_out: Sequence[str] = ()
) -> Report:
    """Judge the trials and write leaderboard, tables, figures, report.md and report.html into a folder.

    Trials of one study, pool, suite and attack are compared with one another; see docs/statistics.md for how.

    Args:
        rows: the trials, also those that have no result yet; the same folder is overwritten when they have one.
        out: folder of the report; made where it is missing.
        statistics: confidence, resamples and seed of the bootstrap.
        title: heading of the report.
        left_out: what was asked for and is not in the report, and why.

    Raises:
        UserError: when there are no rows, or statistics that cannot be.
    """
    _check(rows, statistics)
    report = Report(title, Path(out), statistics, left_out=list(left_out), notes=list(left_out))
    panels = build_panels(list(rows), statistics)
    report.planned, report.scored = _count(rows), _count(row for panel in panels for row in panel.rows)
    judged = [_judge(report, panel, alone=len(panels) == 1) for panel in panels]
    report.comparisons, unlike = compare(panels)
    report.robustness = robustness(panels)
    report.verdicts += [report.partial] if report.partial else []
    report.verdicts += overall_verdicts(panels, [cells for cells, _ in judged])
    report.verdicts += comparison_verdicts(report.comparisons, statistics.confidence)
    for panel, (_, verdict) in zip(panels, judged):
        report.details[panel.title] = [*(verdict.headline if len(panels) > 1 else ()), *verdict.details]
    report.notes += [*unlike, *_method_notes(statistics, panels)]
    if report.comparisons:
        report.notes.append(
            "Pools compared: experts are resampled as training runs. Merges are not: each pool's experts were trained "
            "once, and a difference between merges can be the luck of that training."
        )
    _write(report, panels)
    return report


def _check(rows: Sequence[TrialRow], statistics: Statistics) -> None:
    if not any(row.scored for row in rows):
        raise UserError("no trials to report on", do="run the study first (mergebench sweep …)")
    if not 0 < statistics.confidence < 1:
        raise UserError(
            f"confidence {statistics.confidence} is no coverage", where="statistics.confidence", do="give e.g. 0.95"
        )
    if statistics.resamples < 100:
        raise UserError(
            f"{statistics.resamples} resamples are too few for an interval",
            where="statistics.resamples",
            do="give at least 100",
        )


def _count(rows: Iterable[TrialRow]) -> int:
    """Distinct trials: the base of two pools is one; those without a key yet each count."""
    keys = [row.key for row in rows]
    return len(set(filter(None, keys))) + keys.count("")


def _judge(report: Report, panel: Panel, alone: bool) -> tuple[list[Cell], Verdict]:
    standings = merge_standings(panel)
    cells = build_cells(panel, standings)
    kept = interference_rows(panel)
    report.leaderboard += [cell.row for cell in cells]
    report.experts += expert_rows(panel)
    report.interference += kept
    report.trials += trial_lines(panel, standings)
    verdict = judge(panel, cells, standings, kept)
    prefix = "" if alone else f"{panel.title}: "
    report.settings[panel.title] = panel.provenance
    report.notes += [prefix + note for note in panel.samples.notes]
    if count := sum(row.scored for row in panel.incomplete):
        report.notes.append(f"{prefix}{count} trial{'s' * (count > 1)} left out: a task has no score (see trials.csv).")
    return cells, verdict


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
            "Share kept: Σ(merge − base) / Σ(expert − base), each merged expert counted on the task of its name. The "
            "mean of single shares takes only experts whose own gain is beyond noise."
        )
    return notes


def _write(report: Report, panels: list[Panel]) -> None:
    report.out.mkdir(parents=True, exist_ok=True)
    named: dict[str, Sequence[Any]] = {
        "leaderboard": report.leaderboard,
        "experts": report.experts,
        "interference": report.interference,
        "compare": report.comparisons,
        "robustness": report.robustness,
    }
    for name, rows in named.items():
        for stale in (report.out / f"{name}.csv", report.out / f"{name}.md"):
            stale.unlink(missing_ok=True)
        if rows:
            lines = [_told(report, tables.flat(row), getattr(row, "panel", "")) for row in rows]
            _add(report, tables.write_csv(report.out / f"{name}.csv", lines))
            path = report.out / f"{name}.md"
            path.write_text(tables.markdown(rows), encoding="utf-8")
            _add(report, path)
    _add(report, tables.write_csv(report.out / "trials.csv", report.trials))
    for path in plots.draw_all(report):
        _add(report, path)
    for name, text in (("report.md", page.markdown(report)), ("report.html", page.html(report))):
        (report.out / name).write_text(text, encoding="utf-8")
        _add(report, report.out / name)


def _told(report: Report, line: dict[str, Any], panel: str) -> dict[str, Any]:
    """A line with how the results of its pool came about; what the line itself has a column for gets another name."""
    return line | {f"{k}_name" if k in line else k: v for k, v in report.settings.get(panel, {}).items()}


def _add(report: Report, path: Path) -> None:
    report.paths[path.name] = path
