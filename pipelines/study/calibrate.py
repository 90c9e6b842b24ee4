"""What a study will take, from a few of its own trials."""

from __future__ import annotations

from conf.errors import UserError
from conf.schema import Config
from pipelines.progress import SILENT, Progress
from pipelines.study.executors import run_trials
from pipelines.study.order import by_inputs
from pipelines.study.plan import make_plan
from pipelines.study.sources import access_of
from pipelines.study.trial import Trial
from pipelines.study.worker import find_device


def calibrate_study(config: Config, progress: Progress = SILENT) -> None:
    """Run one trial of every base and method of which the store has none yet, each of a subset of middle size.

    They are the study's own trials: their results stay, and a plan made then knows their times. Raises UserError for
    what is wrong with the study, for one whose experts are still to be made, and where a trial failed.
    """
    find_device(config.executor)
    access = access_of(config)
    plan = make_plan(config, access)
    plan.check()
    if plan.layout.unmade:
        do = "run it with mergebench sweep: after its first trials mergebench plan tells the time"
        raise UserError(f"{len(plan.layout.unmade)} of its models are still to be made", where=plan.name, do=do)
    new = [planned.trial for planned in plan.todo if planned.trial is not None]
    keys = {trial.key for trial in new}
    measured = {_kind(trial) for trial in plan.layout.trials if trial.key not in keys}
    trials = by_inputs(one_of_each([trial for trial in new if _kind(trial) not in measured]))
    access.fetch(progress, [source.path for trial in trials for source in (trial.base, *trial.experts)])
    with progress.step("calibrate", len(trials)) as step:
        outcome = run_trials(trials, config.executor, access, lambda _, became, __: step.advance(became != "started"))
    if outcome.interrupted:
        raise KeyboardInterrupt
    for failure in outcome.failures:
        raise UserError(failure.reason, where=failure.trial.title)


def one_of_each(trials: list[Trial]) -> list[Trial]:
    """Of every base and method the trial that stands in the middle by its number of experts."""
    kinds: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        kinds.setdefault(_kind(trial), []).append(trial)
    return [sorted(kind, key=lambda trial: len(trial.experts))[len(kind) // 2] for kind in kinds.values()]


def _kind(trial: Trial) -> tuple[str, str]:
    return trial.base.path, trial.merge.method if trial.merge else ""
