"""``mergebench evaluate``: the scores of one model."""

from __future__ import annotations

from typing import Any

import typer

from cli.options import Cfg, ConfigDir, Json, Overrides, compose_all, print_cfg

HELP = """Score a base, an expert, a folder, a hub id or a merge on a suite.

[bold]Examples[/]

  mergebench evaluate base=tiny suite=skills

  mergebench evaluate model=merged suite=real_mini datasets=mirror out=scores

  mergebench evaluate base.path=org/base experts=[out/a,out/b] method=ties suite=real_mini
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command(help=HELP, rich_help_panel="One model")
    def evaluate(
        overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None
    ) -> None:
        composed = compose_all("evaluate", overrides, config_dir)
        if cfg:
            return print_cfg(composed)
        from cli import console
        from pipelines.study.single import evaluate_model, names

        told = []
        with console.listening() as progress:
            for config, _ in composed:
                entry = evaluate_model(config, progress)
                told.append({"folder": entry.folder, **entry.describe(), "names": names(config)})
        if json:
            console.print_json(told)
        for about in () if json else told:
            console.out.print(_table(about))
            console.out.print(f"[dim]{about['folder']}[/]", soft_wrap=True, highlight=False)
        if any(task["error"] for about in told for task in about["tasks"].values()):
            raise typer.Exit(1)


def _table(about: dict[str, Any]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    method = f"{about['recipe']['method']} of " if about["recipe"] else ""
    table = Table(title=f"{about['suite']} · {method}{', '.join(about['names'])}", title_justify="left")
    for column, justify in (("task", "left"), ("metric", "left"), ("value", "right"), ("±", "right"), ("n", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, task in about["tasks"].items():
        if task["error"]:
            table.add_row(name, f"[red]{escape(task['error'])}[/]", "", "", "")
        else:
            half = "" if task["stderr"] is None else f"{1.96 * task['stderr']:.4f}"
            table.add_row(name, task["metric"], f"{task['value']:.4f}", half, str(task["n"]))
    values = [task["value"] for task in about["tasks"].values() if not task["error"]]
    if values:
        table.add_row("[bold]mean[/]", "", f"[bold]{sum(values) / len(values):.4f}[/]", "", "")
    notes = [f"{name}: {task['note']}" for name, task in about["tasks"].items() if task.get("note")]
    table.caption = escape("\n".join(["± is half of a 95 % interval over documents", *notes]))
    return table
