"""``mergebench methods``: every merge method, or one explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json

if TYPE_CHECKING:
    from pipelines.study.recipes import MethodInfo

HELP = """List every merge method with its parameters, defaults and paper, or explain one.

[bold]Examples[/]

  mergebench methods

  mergebench methods ties
"""

Name = Annotated[str | None, typer.Argument(metavar="[METHOD]", help="Explain this one.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command(help=HELP, rich_help_panel="Help")
    def methods(name: Name = None, json: Json = False) -> None:
        from cli import console
        from pipelines.study.recipes import all_methods, method

        chosen = [method(name)] if name else all_methods()
        if json:
            return console.print_json([_dict(info) for info in chosen])
        if name:
            for part in _page(chosen[0]):
                console.out.print(part, highlight=False)
            for command in _commands(chosen[0]):
                console.out.print(command, style="dim", highlight=False, markup=False, soft_wrap=True)
        else:
            console.out.print(_table(chosen))


def _dict(info: MethodInfo) -> dict[str, Any]:
    return {**vars(info), "parameters": [vars(p) for p in info.parameters]}


def _table(chosen: list[MethodInfo]) -> Any:
    from rich.table import Table

    table = Table(title=f"{len(chosen)} merge methods", title_justify="left")
    for column in ("method", "what", "parameters", "experts", "paper"):
        table.add_column(column, overflow="fold")
    for info in chosen:
        parameters = ", ".join(f"{p.name}={_value(p.default)}" for p in info.parameters)
        table.add_row(f"[bold]{info.name}[/]", info.pretty, parameters, _count(info), info.url or "")
    return table


def _page(info: MethodInfo) -> Any:
    from rich.markup import escape
    from rich.table import Table

    yield f"[bold]{info.name}[/]  {escape(info.pretty or '')}  [dim]{info.url or ''}[/]"
    yield escape(_flowing(info.doc))
    yield f"experts: {_count(info)}" + ("; draws random numbers from the recipe's seed" if info.random else "")
    table = Table(title="parameters", title_justify="left")
    for column in ("name", "type", "default", "one value for", "what"):
        table.add_column(column, overflow="fold")
    for p in info.parameters:
        kind = ", ".join(p.choices) or p.type
        table.add_row(p.name, kind, _value(p.default), "each expert" if p.per_expert else "all", escape(p.help))
    yield table


def _commands(info: MethodInfo) -> Iterator[str]:
    """What merges by this method, with as many experts as it takes."""
    experts = ("a", "b", "c")[: info.max_experts or max(2, info.min_experts)]
    for expert in experts if info.statistics else ():
        yield f"mergebench statistics experts=[{expert}] task.path={expert}.jsonl collect.kinds=[{info.statistics}]"
    yield f"mergebench merge base.path=base experts=[{','.join(experts)}] method={info.name} out=merged"


def _flowing(doc: str) -> str:
    """Paragraphs without the line breaks of the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in doc.split("\n\n"))


def _count(info: MethodInfo) -> str:
    if info.max_experts is None:
        return f"{info.min_experts} or more"
    return (
        str(info.min_experts) if info.min_experts == info.max_experts else f"{info.min_experts} to {info.max_experts}"
    )


def _value(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
