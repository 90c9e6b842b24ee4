"""``mergebench doctor``: what this machine has, and what to do about what it lacks."""

from __future__ import annotations

import typer

from cli.options import ConfigDir, Json, Overrides, compose_one

HELP = """Look at versions, devices, memory, disk, the hub and mirrors, and say what to do about each problem.

[bold]Examples[/]

  mergebench doctor

  mergebench doctor datasets=mirror store=/data/store --json
"""

STYLES = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command(help=HELP, rich_help_panel="Help")
    def doctor(overrides: Overrides = None, json: Json = False, config_dir: ConfigDir = None) -> None:
        config, _ = compose_one("doctor", overrides, config_dir)
        from cli import console
        from pipelines.study.doctor import examine

        findings = examine(config)
        if json:
            console.print_json([vars(finding) for finding in findings])
        else:
            from rich.table import Table

            table = Table(title="mergebench doctor", title_justify="left")
            for column in ("subject", "state", "found", "what to do"):
                table.add_column(column, overflow="fold")
            for finding in findings:
                table.add_row(finding.subject, STYLES[finding.state], finding.what, finding.do)
            console.out.print(table)
        if any(finding.state == "problem" for finding in findings):
            raise typer.Exit(1)
