"""From the rows of trials to the folder of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Statistics
from pipelines.report import page, plots, tables
from pipelines.report.compare import ComparisonRow, RobustnessRow, compare, comparison_verdicts, robustness
from pipelines.report.leaderboard import LeaderRow, build_cells, merge_standings
from pipelines.report.panel import Panel, build_panels
from pipelines.report.rows import TrialRow
from pipelines.report.skills import ExpertRow, InterferenceRow, expert_rows, interference_rows
from pipelines.report.trials import trial_lines
from pipelines.report.verdict import judge


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
    notes: list[str] = field(default_factory=list)
    """What a reader must know about how the numbers were made."""
    paths: dict[str, Path] = field(default_factory=dict)
    """Files by name: leaderboard.csv, report.html, …"""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; numbers that are not known are None."""
        return _json(asdict(self) | {"paths": {name: str(path) for name, path in self.paths.items()}})


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(rows: Sequence[TrialRow], out: Path, *, statistics: Statistics, title: str) -> Report:
    """Judge the trials and write leaderboard, tables, figures, report.md and report.html into a folder.

    Trials of one study, pool, suite and attack are compared with one another; see docs/statistics.md for how.

    Args:
        rows: the trials; more may come later, the same folder is then overwritten.
        out: folder of the report; made where it is missing.
        statistics: confidence, resamples and seed of the bootstrap.
        title: heading of the report.

    Raises:
        UserError: when there are no rows, or statistics that cannot be.
    """
    _check(rows, statistics)
    report = Report(title, Path(out), statistics)
    panels = build_panels(list(rows), statistics)
    for panel in panels:
        _judge(report, panel, alone=len(panels) == 1)
    report.comparisons, notes = compare(panels)
    report.robustness = robustness(panels)
    report.verdicts += comparison_verdicts(report.comparisons, statistics.confidence)
    report.notes += [*notes, *_method_notes(statistics, panels)]
    if report.comparisons:
        report.notes.append(
            "Pools compared: experts are resampled as training runs. Merges are not: each pool's experts were trained "
            "once, and a difference between merges can be the luck of that training."
        )
    _write(report, panels)
    return report


def _check(rows: Sequence[TrialRow], statistics: Statistics) -> None:
    if not rows:
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


def _judge(report: Report, panel: Panel, alone: bool) -> None:
    standings = merge_standings(panel)
    cells = build_cells(panel, standings)
    kept = interference_rows(panel)
    report.leaderboard += [cell.row for cell in cells]
    report.experts += expert_rows(panel)
    report.interference += kept
    report.trials += trial_lines(panel, standings)
    verdict = judge(panel, cells, standings, kept)
    prefix = "" if alone else f"{panel.title}: "
    report.verdicts += [prefix + line for line in verdict.headline]
    report.details[panel.title] = verdict.details
    report.notes += [prefix + note for note in panel.samples.notes]
    if panel.incomplete:
        count = len(panel.incomplete)
        report.notes.append(f"{prefix}{count} trial{'s' * (count > 1)} left out: a task has no score (see trials.csv).")


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
            _add(report, tables.write_csv(report.out / f"{name}.csv", [tables.flat(r) for r in rows]))
            path = report.out / f"{name}.md"
            path.write_text(tables.markdown(rows), encoding="utf-8")
            _add(report, path)
    _add(report, tables.write_csv(report.out / "trials.csv", report.trials))
    for path in plots.draw_all(report):
        _add(report, path)
    for name, text in (("report.md", page.markdown(report)), ("report.html", page.html(report))):
        (report.out / name).write_text(text, encoding="utf-8")
        _add(report, report.out / name)


def _add(report: Report, path: Path) -> None:
    report.paths[path.name] = path
