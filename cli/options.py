"""The options that every command shares, and what is done with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.completion import complete_override

if TYPE_CHECKING:
    from conf.schema import Config

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OVERRIDES]...",
        help="Hydra overrides: group=choice, key=value, +key=value, ~key; a=1,2 makes several runs.",
        autocompletion=complete_override,
        show_default=False,
    ),
]
Cfg = Annotated[
    bool, typer.Option("--cfg", help="Print the composed configuration and stop.", rich_help_panel="Output")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output.", rich_help_panel="Output")
]
ConfigDir = Annotated[
    str | None,
    typer.Option(
        "--config-dir",
        metavar="DIR",
        help="A folder of your own configuration groups.",
        rich_help_panel="Configuration",
    ),
]


def compose_all(command: str, overrides: list[str] | None, config_dir: str | None) -> list[tuple[Config, Any]]:
    """The configurations that a command's overrides ask for (several where the sweep grammar is used).

    Raises UserError for what is misspelt, and for what the command would not use.
    """
    from cli.used import check_used
    from conf.compose import compose

    composed = compose(overrides or [], config_dir=config_dir)
    check_used(command, overrides or [], [config for config, _ in composed], config_dir)
    return composed


def print_cfg(composed: list[tuple[Config, Any]]) -> None:
    """Print composed configurations as YAML, resolved."""
    from conf.compose import to_yaml

    typer.echo("---\n".join(to_yaml(tree) for _, tree in composed), nl=False)


def compose_one(command: str, overrides: list[str] | None, config_dir: str | None) -> tuple[Config, Any]:
    """The one configuration that a command's overrides ask for."""
    from conf.errors import UserError

    composed = compose_all(command, overrides, config_dir)
    if len(composed) > 1:
        raise UserError(f"this command takes one configuration, not {len(composed)}", do="give each key a single value")
    return composed[0]
