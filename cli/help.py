"""``mergebench methods`` and ``doctor``: what there is to choose from, and what this machine has and lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import terminal
from cli.options import ConfigDir, Json, Overrides, command, compose_one

if TYPE_CHECKING:
    from pipelines.study.recipes import MethodInfo

PANEL = "Help"
STATES = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}

Name = Annotated[str | None, typer.Argument(metavar="[METHOD]", help="Explain this one.", show_default=False)]


@command(PANEL, "", "ties")
def methods(name: Name = None, json: Json = False) -> None:
    """List every merge method with its parameters, defaults and paper, or explain one."""
    from pipelines.study.recipes import all_methods, method

    chosen = [method(name)] if name else all_methods()
    if json:
        terminal.print_json([{**vars(m), "parameters": [vars(p) for p in m.parameters]} for m in chosen])
    elif name:
        terminal.show(*_page(chosen[0]))
        for line in _commands(chosen[0]):
            terminal.show(line, style="dim", markup=False, soft_wrap=True)
    else:
        terminal.show(_overview(chosen))


@command(PANEL, "", "datasets=mirror store=/data/store --json")
def doctor(overrides: Overrides = None, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Look at versions, devices, memory, disk, the hub and mirrors, and say what to do about each problem."""
    config = compose_one("doctor", overrides, config_dir)
    from pipelines.study.doctor import examine

    findings = examine(config)
    rows = [(f.subject, STATES[f.state], f.what, f.do) for f in findings]
    table = terminal.table("mergebench doctor", ("subject", "state", "found", "what to do"), rows)
    terminal.answer(json, [vars(finding) for finding in findings], table)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _overview(chosen: Sequence[MethodInfo]) -> Any:
    """A table of all methods, their parameters below what they are: a row fits 80 columns without a broken word."""
    shown = terminal.table(f"{len(chosen)} merge methods", (), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("method", "what, parameters", "experts", "paper"):
        shown.add_column(heading, no_wrap=heading != "what, parameters")
    for info in chosen:
        parameters = " ".join(f"{p.name}={_value(p.default)}" for p in info.parameters)
        what = f"{info.pretty or ''}\n[dim]{parameters}[/]".rstrip()
        shown.add_row(f"[bold]{info.name}[/]", what, _count(info).replace(" or more", "+"), _paper(info.url))
    return shown


def _paper(url: str | None) -> str:
    """arXiv:2306.01708 of an address there, the site of any other."""
    address = (url or "").removeprefix("https://")
    site, _, rest = address.partition("/")
    return f"arXiv:{rest.removeprefix('abs/')}" if site == "arxiv.org" else site


def _page(info: MethodInfo) -> Iterator[Any]:
    yield f"[bold]{info.name}[/]  {info.pretty or ''}  [dim]{info.url or ''}[/]"
    # paragraphs without the line breaks of the source
    yield "\n\n".join(" ".join(paragraph.split()) for paragraph in info.doc.split("\n\n"))
    yield f"experts: {_count(info)}" + ("; draws random numbers from the recipe's seed" if info.random else "")
    rows = []
    for p in info.parameters:
        kind = ", ".join(p.choices) or p.type
        rows.append((p.name, kind, _value(p.default), "each expert" if p.per_expert else "all", p.help))
    yield terminal.table("parameters", ("name", "type", "default", "one value for", "what"), rows)


def _commands(info: MethodInfo) -> Iterator[str]:
    """What merges by this method, with as many experts as it takes."""
    experts = ("a", "b", "c")[: info.max_experts or max(2, info.min_experts)]
    for expert in experts if info.statistics else ():
        yield (
            f"mergebench statistics 'experts=[{expert}]' task.path={expert}.jsonl 'collect.kinds=[{info.statistics}]'"
        )
    yield f"mergebench merge base.path=base 'experts=[{','.join(experts)}]' method={info.name} out=merged"


def _count(info: MethodInfo) -> str:
    low, high = info.min_experts, info.max_experts
    return f"{low} or more" if high is None else f"{low}" if low == high else f"{low} to {high}"


def _value(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
