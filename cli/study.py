"""``mergebench sweep``, ``plan`` and ``report``: whole studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Cfg, ConfigDir, Json, Overrides, compose_all, print_cfg

if TYPE_CHECKING:
    from pipelines.report import Report
    from pipelines.study.plan import Plan
    from pipelines.study.sweep import Sweep

SWEEP = """Run a whole study: make what is missing, run every trial that is new, report.

Repeating the command resumes or extends it; nothing is computed twice.

[bold]Examples[/]

  mergebench sweep +experiment=quickstart

  mergebench sweep +experiment=quickstart methods.ties.density=0.1 '~methods.model_stock' +method@methods.della=della

  mergebench sweep +experiment=quickstart --dry-run
"""

PLAN = """Say what a study would run and what is wrong with it, from headers alone.

Trials new, cached and waiting; checkpoints to fetch from the hub; disk, memory and time needed; every problem, all at
once. No weight is fetched.

[bold]Examples[/]

  mergebench plan +experiment=quickstart

  mergebench plan +experiment=quickstart sampler.samples=30 --json
"""

REPORT = """Write the tables, figures and page of what the store holds of a study; nothing is run.

[bold]Examples[/]

  mergebench report +experiment=quickstart

  mergebench report +experiment=quickstart statistics.confidence=0.99
"""

DryRun = Annotated[bool, typer.Option("--dry-run", help="Plan only.", rich_help_panel="Output")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    panel = "Studies"

    @app.command(help=SWEEP, rich_help_panel=panel)
    def sweep(
        overrides: Overrides = None,
        cfg: Cfg = False,
        json: Json = False,
        config_dir: ConfigDir = None,
        dry_run: DryRun = False,
    ) -> None:
        composed = compose_all("sweep", overrides, config_dir)
        if cfg:
            return print_cfg(composed)
        if dry_run:
            return _plan(composed, json)
        from cli import console
        from pipelines.study.sweep import report_together, run_study

        sweeps = []
        for config, _ in composed:
            with (
                console.log_file(Path(config.runs) / (config.name or "study") / "log.txt"),
                console.listening() as progress,
            ):
                sweeps.append(run_study(config, progress))
        _show(sweeps, report_together([config for config, _ in composed], sweeps), json)
        if not all(s.complete for s in sweeps):
            raise typer.Exit(130 if any(s.outcome.interrupted for s in sweeps) else 1)

    @app.command(help=PLAN, rich_help_panel=panel)
    def plan(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
        composed = compose_all("plan", overrides, config_dir)
        return print_cfg(composed) if cfg else _plan(composed, json)

    @app.command(help=REPORT, rich_help_panel=panel)
    def report(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
        composed = compose_all("report", overrides, config_dir)
        if cfg:
            return print_cfg(composed)
        from cli import console
        from pipelines.study.sweep import report_study, report_together

        with console.listening() as progress:
            sweeps = [report_study(config, progress) for config, _ in composed]
            together = report_together([config for config, _ in composed], sweeps, progress)
        _show(sweeps, together, json)


def _plan(composed: list[tuple[Any, Any]], json: bool) -> None:
    from cli import console
    from cli.plan_view import plan_tables
    from pipelines.study.plan import make_plan
    from pipelines.study.sources import access_of

    plans: list[Plan] = [make_plan(config, access_of(config)) for config, _ in composed]
    if json:
        console.print_json([p.to_dict() for p in plans])
    else:
        for p in plans:
            for table in plan_tables(p):
                console.out.print(table)
    if any(p.problems for p in plans):
        raise typer.Exit(2)


def _show(sweeps: list[Sweep], together: Report | None, json: bool) -> None:
    from cli import console
    from cli.sweep_view import report_parts, sweep_dict, sweep_lines

    if json:
        return console.print_json([sweep_dict(s) for s in sweeps])
    for s in sweeps:
        for line in sweep_lines(s, alone=together is None):
            console.out.print(line, highlight=False)
    for line in report_parts(together) if together else ():
        console.out.print(line, highlight=False)
