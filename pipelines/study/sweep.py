"""A whole study: plan, make what is missing, run what is new, report. Repeating it resumes or extends it."""

from __future__ import annotations

import contextlib
import csv
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import cast

import pandas as pd

from conf.errors import redacted
from conf.schema import Config
from pipelines.evaluate.lookup import user_cache
from pipelines.progress import SILENT, Progress, Step, Within
from pipelines.report import Report, Section, TrialRow, write_report
from pipelines.report.data import Kind
from pipelines.store.integrity import Damaged
from pipelines.store.provenance import provenance
from pipelines.store.samples import SAMPLES, read_table
from pipelines.store.store import content_key
from pipelines.study.collect import make_pools
from pipelines.study.columns import measured
from pipelines.study.executors import Workers, open_workers
from pipelines.study.geometry import study_geometry
from pipelines.study.keep import keep_merges, record_study
from pipelines.study.layout import Planned
from pipelines.study.order import by_inputs
from pipelines.study.plan import Plan, make_plan
from pipelines.study.sources import Access, access_of
from pipelines.study.trackers import Trackers, tracking
from pipelines.study.trial import Outcome, Trial
from pipelines.study.worker import find_device


@dataclass
class Sweep:
    """How a study went."""

    name: str
    plan: Plan
    outcome: Outcome[Trial]
    report: Report | None
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time: plan, fetch (weights), make (bases and experts), trials, of which merge and evaluate, keep, report."""

    @property
    def complete(self) -> bool:
        """Whether every trial of the study has its result."""
        return not self.outcome.failures and not self.outcome.interrupted and not self.plan.layout.undecided


def run_study(config: Config, progress: Progress = SILENT) -> Sweep:
    """Run a study; what the store holds already is not computed again.

    Raises UserError when the plan finds something wrong, before anything is spent.
    """
    find_device(config.executor)
    access = access_of(config)
    with tracking(config, progress) as trackers, contextlib.ExitStack() as stack:
        bar = _Bar(lambda trial: _tell([trial], access, trackers))
        opened = open_workers(config.executor, access, Within(bar.part))
        workers = cache(lambda: stack.enter_context(opened))  # those that make experts score them too
        return _study(config, access, progress, trackers, bar, workers)


def _study(
    config: Config, access: Access, progress: Progress, trackers: Trackers, bar: _Bar, workers: Callable[[], Workers]
) -> Sweep:
    clock = _Clock()
    plan = make_plan(config, access)
    plan.check()
    trackers.start(plan.name, config)
    clock.lap("plan")
    if missing := plan.folders(access):
        access.fetch(progress, missing)
        clock.lap("fetch")
    if plan.layout.unmade:
        record_study(config, plan, access)
        make_pools(config, access, progress, workers)
        clock.lap("make")
        plan = make_plan(config, access)
        plan.check()
        clock.lap("plan")
    record_study(config, plan, access)
    plan, outcome = _run(config, plan, access, progress, bar, workers)
    clock.seconds |= outcome.seconds
    clock.lap("trials")
    if kept := keep_merges(config, plan, access, progress):
        record_study(config, plan, access, kept)
        clock.lap("keep")
    try:
        report = _report(config, plan, access, progress)
    except Damaged:  # documents that were changed since: told, and their results set aside
        for row in trial_rows(plan, access):
            with contextlib.suppress(Damaged):
                row.table()
        plan = make_plan(config, access)
        plan, again = _run(config, plan, access, progress, bar, workers)
        outcome.join(again)
        report = _report(config, plan, access, progress)
    clock.lap("report")
    sweep = Sweep(plan.name, plan, outcome, report, report.out if report else _folder(config), clock.seconds)
    _tell(plan.layout.trials, access, trackers)
    trackers.report(report)
    trackers.close(sweep.complete)
    return sweep


def report_study(config: Config, progress: Progress = SILENT) -> Sweep:
    """Tables, figures and page of what the store holds of a study; nothing is run."""
    access = access_of(config)
    plan = make_plan(config, access)
    for lost in plan.layout.lost:
        progress.note(f"{lost.what} is left out: {lost.error}", "warning")
    report = _report(config, plan, access, progress)
    return Sweep(plan.name, plan, Outcome(), report, report.out if report else _folder(config))


def report_together(configs: Sequence[Config], sweeps: Sequence[Sweep], progress: Progress = SILENT) -> Report | None:
    """One report over the several studies that a sweep grammar makes, in the folder above theirs; None for one."""
    if len(sweeps) < 2:
        return None
    rows = [row for config, sweep in zip(configs, sweeps) for row in trial_rows(sweep.plan, access_of(config))]
    above = _folder(configs[0]).parent
    notes = [f"{sweep.name}: {note}" for sweep in sweeps for note in sweep.plan.layout.notes]
    with progress.step("report on all"):
        return _write(rows, above, configs[0], above.name, notes)


class _Clock:
    """Wall time by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def _tell(trials: Iterable[Trial], access: Access, trackers: Trackers) -> None:
    for trial in trials if trackers.open else ():
        if access.store.has("results", trial.key):
            trackers.trial(trial.key, trial.title, access.store.entry("results", trial.key).describe())


def _run(
    config: Config, plan: Plan, access: Access, progress: Progress, bar: _Bar, workers: Callable[[], Workers]
) -> tuple[Plan, Outcome[Trial]]:
    """Run what is new, then, on the same workers, what selections chose from it; the plan as it is then."""
    outcome, asked = Outcome[Trial](), set[str]()
    while new := {p.trial.key: p.trial for p in plan.todo if p.trial is not None and p.trial.key not in asked}:
        asked.update(new)
        with progress.step("trials", len(new)) as bar.step:
            outcome.join(workers().run(by_inputs(list(new.values())), bar.on_trial))
        if outcome.interrupted or not plan.layout.undecided:
            break
        plan = make_plan(config, access)
        plan.cached -= outcome.done + outcome.elsewhere
        record_study(config, plan, access)
    return plan, outcome


class _Bar:
    """What a running step of trials shows: where the workers are, and how many failed."""

    step: Step

    def __init__(self, ended: Callable[[Trial], None]) -> None:
        self.ended = ended
        self.working: dict[int, str] = {}
        self.failed = 0

    def part(self, part: str = "") -> None:
        """Show how far the trial at work is."""
        at = " | ".join(self.working.values())
        self.step.advance(0, failed=self.failed or None, at=at, part=part or None)

    def on_trial(self, trial: Trial, became: str, worker: int) -> None:
        """Show a trial that starts or ended."""
        if became == "started":
            self.working[worker] = trial.title
            return self.part()
        self.failed += became == "failed"
        self.step.advance(1, failed=self.failed or None, trial=trial.title, became=became)
        self.ended(trial)


def trial_rows(plan: Plan, access: Access) -> list[TrialRow]:
    """One row per model of the study, without scores where there is no result; documents are read when asked for."""
    rows = []
    for planned in plan.layout.planned:
        row = TrialRow(
            study=plan.name,
            pool=planned.pool,
            kind=cast(Kind, planned.kind),
            method=planned.label if planned.kind == "merge" else None,
            label=planned.title,
            experts=planned.experts,
            parameters=planned.parameters,
            key=planned.trial.key if planned.trial else "",
            scores={},
            n={},
            suite=planned.suite.name,
            attack=planned.suite.attack,
            run=planned.run,
            reference=plan.layout.references.get(planned.pool),
            columns={"split": planned.split, "setting": planned.setting or None, **planned.drawn},
            settings=plan.layout.settings.get(planned.pool, {}),
        )
        scored = planned.trial is not None and access.store.has("results", planned.trial.key)
        rows.append(_scored(row, planned, planned.trial, access) if planned.trial is not None and scored else row)
    return rows


def _scored(row: TrialRow, planned: Planned, trial: Trial, access: Access) -> TrialRow:
    store, entry = access.store, access.store.entry("results", trial.key)
    about = entry.describe()
    shown = {name: about["tasks"][name] for name in planned.suite.tasks if name in about["tasks"]}
    tasks = {name: task for name, task in shown.items() if not task["error"]}
    kept = trial.merge is not None and store.has("merges", trial.model_key)
    return replace(
        row,
        scores={name: task["value"] for name, task in tasks.items()},
        n={name: task["n"] for name, task in tasks.items()},
        metrics={name: task["metric"] for name, task in tasks.items()},
        stderr={name: task["stderr"] for name, task in tasks.items()},
        documents=partial(read_table, store, entry),
        samples=partial(read_table, store, entry, SAMPLES) if (entry.folder / SAMPLES).is_file() else None,
        seconds=about.get("seconds", {}),
        weights=str(store.folder("merges", trial.model_key)) if kept else None,
        base=trial.base.fingerprint,
        provenance=provenance(about),
        made=about.get("made"),
        columns={**row.columns, **measured(trial, about)},
    )


def _report(config: Config, plan: Plan, access: Access, progress: Progress) -> Report | None:
    beside = partial(study_geometry, config, access, progress)
    with progress.step("report"):
        report = _write(trial_rows(plan, access), _folder(config), config, plan.name, plan.layout.notes, beside)
        if report and plan.layout.choices:
            chosen = pd.DataFrame([choice.to_row() for choice in plan.layout.choices])
            chosen.to_csv(report.out / "chosen.csv", index=False, lineterminator="\n")
    return report


def _write(
    rows: list[TrialRow], folder: Path, config: Config, title: str, notes: Sequence[str],
    beside: Callable[[Path], list[Section]] = lambda folder: [],
) -> Report | None:  # fmt: skip
    """Write a report, with what is made beside it, into a folder, or one next to a folder of trials that it lacks.

    So a narrower or another run of a study's name never takes the place of the fuller report.
    """
    if not any(row.scored for row in rows):
        return None
    keys = {row.key for row in rows}
    if lost := _reported(folder) - keys:
        out = folder.with_name(f"{folder.name}-{content_key(sorted(keys))[:8]}")
        stays = f"{folder} tells of {len(lost)} trials that this study does not have, and stays"
        notes, folder = [*notes, f"{stays}; this report is in {out}."], out
    command = redacted(config.about.partition("\n")[0])  # as the experiment gives it
    notes = [redacted(note) for note in notes]
    return write_report(
        rows, folder, statistics=config.statistics, title=title, left_out=notes, command=command,
        views=config.report, sections=beside(folder), kept=user_cache(),
    )  # fmt: skip


def _reported(folder: Path) -> set[str]:
    """Keys of the scored trials that the report in a folder tells of; none where there is no report."""
    file = folder / "trials.csv"
    if not file.is_file():
        return set()
    with file.open(newline="", encoding="utf-8") as lines:
        return {line["key"] for line in csv.DictReader(lines) if line.get("score")}


def _folder(config: Config) -> Path:
    return Path(config.runs) / (config.name or "study")
