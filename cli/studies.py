"""``mergebench sweep``, ``plan``, ``report`` and ``search``: whole studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import terminal
from cli.options import Cfg, ConfigDir, Json, Overrides, command, compose_all, showing

if TYPE_CHECKING:
    from conf.schema import Config
    from pipelines.report import Report
    from pipelines.study.sweep import Sweep

PANEL = "Studies"

DryRun = Annotated[bool, showing("--dry-run", help="Plan only.")]


@command(
    PANEL,
    "+experiment=quickstart",
    "+experiment=quickstart methods.ties.density=0.1 '~methods.model_stock' +method@methods.della=della",
    "+experiment=quickstart --dry-run",
)
def sweep(
    overrides: Overrides = None,
    cfg: Cfg = False,
    json: Json = False,
    config_dir: ConfigDir = None,
    dry_run: DryRun = False,
) -> None:
    """Run a whole study: make what is missing, run every trial that is new, report.

    Repeating the command resumes or extends it; nothing is computed twice.
    """
    configs = compose_all("sweep", overrides, config_dir, cfg)
    if dry_run:
        return _plan(configs, json)
    from pipelines.study.sweep import report_together, run_study

    sweeps = []
    for config in configs:
        with terminal.log_file(_log(config, "study")), terminal.listening() as progress:
            sweeps.append(run_study(config, progress))
    _show(sweeps, report_together(configs, sweeps), json)
    if not all(s.complete for s in sweeps):
        raise typer.Exit(130 if any(s.outcome.interrupted for s in sweeps) else 1)


@command(PANEL, "+experiment=quickstart", "+experiment=quickstart sampler.samples=30 --json")
def plan(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Say what a study would run and what is wrong with it, from headers alone.

    Trials new, cached and waiting; checkpoints to fetch from the hub; disk, memory and time needed; every problem, all
    at once. No weight is fetched.
    """
    _plan(compose_all("plan", overrides, config_dir, cfg), json)


@command(PANEL, "+experiment=in_the_wild", "+experiment=in_the_wild executor=ray --json")
def calibrate(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Run one trial of every base and method of a study, and plan the others with the time that they took.

    They are trials of the study itself: `sweep` goes on from them.
    """
    configs = compose_all("calibrate", overrides, config_dir, cfg)
    from pipelines.study.calibrate import calibrate_study

    with terminal.listening() as progress:
        for config in configs:
            calibrate_study(config, progress)
    _plan(configs, json)


@command(PANEL, "+experiment=quickstart", "+experiment=quickstart statistics.confidence=0.99")
def report(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Write the tables, figures and page of what the store holds of a study; nothing is run."""
    configs = compose_all("report", overrides, config_dir, cfg)
    from pipelines.study.sweep import report_study, report_together

    with terminal.listening() as progress:
        sweeps = [report_study(config, progress) for config in configs]
        together = report_together(configs, sweeps, progress)
    _show(sweeps, together, json)


@command(
    PANEL,
    "+pool@pools.tiny=tiny method=ties search.trials=20",
    "base.path=org/base 'experts=[a,b]' search=cmaes '+search.space.weight={per_expert:true,low:0,high:1}'",
    "+pool@pools.tiny=tiny method=ties search=nsga2 'search.objectives=[mean,worst]'",
    "+pool@pools.tiny=tiny method=della search=random '+search.space.lambda={beta:[2,2]}' --json",
)
def search(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Search a merge method's parameters on a validation split, and score the best once on the test split.

    Random draws, a grid, TPE, CMA-ES or NSGA-II (search=random, grid, tpe, cmaes, nsga2) over search.space; where no
    space is named, over the usual ranges of the method's main parameters. With search.objectives a front is found.
    What was scored is kept: repeating the command resumes it, and more search.trials extend it. Tuning on the split
    that is reported is refused unless search.force=true.
    """
    configs = compose_all("search", overrides, config_dir, cfg)
    from cli.tables import search_parts
    from pipelines.search.run import run_search

    results = []
    for config in configs:
        with terminal.log_file(_log(config, "search")), terminal.listening() as progress:
            results.append(run_search(config, progress))
    parts = [part for config, result in zip(configs, results) for part in search_parts(result, config.search.top)]
    terminal.answer(json, [result.to_dict() for result in results], *parts)
    if any(result.interrupted for result in results):
        raise typer.Exit(130)
    if any(result.failed for result in results):
        raise typer.Exit(1)


def _log(config: Config, unnamed: str) -> Path:
    return Path(config.runs) / (config.name or unnamed) / "log.txt"


def _plan(configs: Sequence[Config], json: bool) -> None:
    from cli.tables import plan_parts
    from pipelines.study.plan import make_plan
    from pipelines.study.sources import access_of

    plans = [make_plan(config, access_of(config)) for config in configs]
    terminal.answer(json, [p.to_dict() for p in plans], *(part for p in plans for part in plan_parts(p)))
    if any(p.problems for p in plans):
        raise typer.Exit(2)


def _show(sweeps: Sequence[Sweep], together: Report | None, json: bool) -> None:
    from cli.tables import report_parts, sweep_dict, sweep_parts

    parts = [part for s in sweeps for part in sweep_parts(s, with_report=together is None)]
    terminal.answer(json, [sweep_dict(s) for s in sweeps], *parts, *(report_parts(together) if together else ()))
