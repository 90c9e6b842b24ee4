"""``mergebench finetune``, ``merge``, ``extract``, ``evaluate`` and ``statistics``: one model at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cli import terminal
from cli.options import Cfg, ConfigDir, Json, Overrides, command, compose_all, compose_one, configuring
from pipelines.store.records import mean

PANEL = "One model"

MergekitConfig = Annotated[
    str | None,
    configuring("--mergekit-config", metavar="FILE", help="Run a mergekit YAML, with our methods registered."),
]


@command(
    PANEL,
    "base.path=my-base task.path=my.jsonl out=my-expert",
    "base=qwen2_5_1_5b_instruct task.path=my.jsonl finetuning=mergopt training.epochs=2",
    "base=tiny task=skills/add finetuning=mergopt finetuning.scale=0.0005,0.001",
)
def finetune(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Fine-tune one expert into the store."""
    configs = compose_all("finetune", overrides, config_dir, cfg)
    from pipelines.study.single import finetune_expert

    with terminal.listening() as progress:
        made = [finetune_expert(config, progress) for config in configs]
    lines = []
    for m in made:
        lines.append(f"[bold]{m.entry['name']}[/] {'made' if m.new else 'in the store already'}: {m.folder}")
        lines.append(f"  key {m.entry['key']}  {terminal.fields_line(m.entry.get('summary', {}))}")
    terminal.answer(json, [{"folder": m.folder, "new": m.new, **m.entry} for m in made], *lines, soft_wrap=True)


@command(
    PANEL,
    "base.path=org/base 'experts=[out/a,out/b]' method=ties method.density=0.2 out=merged",
    "base.path=org/base 'experts=[org/one,org/two,org/three]' 'method.weight=[0.5,0.3,0.2]' out=merged",
    "base.path=org/base 'experts=[org/lora1,org/lora2]' method=knots out_adapter=32 out=merged-adapter",
    "--mergekit-config recipe.yaml out=merged",
)
def merge(
    overrides: Overrides = None,
    cfg: Cfg = False,
    json: Json = False,
    config_dir: ConfigDir = None,
    mergekit_config: MergekitConfig = None,
) -> None:
    """Merge experts into an ordinary checkpoint folder, or with out_adapter=RANK into a LoRA adapter."""
    config = compose_one("merge --mergekit-config" if mergekit_config else "merge", overrides, config_dir, cfg)
    from pipelines.study.single import merge_checkpoint, merge_mergekit_config

    with terminal.listening() as progress:
        if mergekit_config:
            made = merge_mergekit_config(config, mergekit_config, progress)
        else:
            made = merge_checkpoint(config, progress)
    line = f"merged into [bold]{made.folder}[/]"
    terminal.answer(json, {"folder": made.folder, **made.entry}, line, soft_wrap=True)


@command(
    PANEL,
    "base.path=org/base model=out/a out_adapter=16 out=adapter",
    "base.path=org/base model=org/finetuned out_adapter=64 out=adapter --json",
)
def extract(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Turn a whole model into a LoRA adapter on its base: the nearest one of a rank, and what it leaves out."""
    config = compose_one("extract", overrides, config_dir, cfg)
    from pipelines.study.single import extract_adapter

    with terminal.listening() as progress:
        made = extract_adapter(config, progress)
    terminal.answer(json, {"folder": made.folder, **made.entry}, f"adapter in [bold]{made.folder}[/]", soft_wrap=True)


@command(
    PANEL,
    "base=tiny suite=skills",
    "model=merged suite=real_mini datasets=mirror out=scores",
    "base.path=org/base 'experts=[out/a,out/b]' method=ties suite=real_mini",
)
def evaluate(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Score a base, an expert, a folder, a hub id or a merge on a suite."""
    configs = compose_all("evaluate", overrides, config_dir, cfg)
    from pipelines.study.single import evaluate_model, names

    results = []
    with terminal.listening() as progress:
        for config in configs:
            entry = evaluate_model(config, progress)
            results.append({"folder": entry.folder, **entry.describe(), "names": names(config)})
    if json:
        terminal.print_json(results)
    for about in results if not json else ():
        terminal.show(_scores(about), *_measured(about))
        terminal.show(f"[dim]{about['folder']}[/]", soft_wrap=True)
    if any(task["error"] for about in results for task in about["tasks"].values()):
        raise typer.Exit(1)


def _scores(about: dict[str, Any]) -> Table:

    method = f"{about['recipe']['method']} of " if about["recipe"] else ""
    table = Table(title=f"{about['suite']} · {method}{', '.join(about['names'])}", title_justify="left")
    table.add_column("task")
    table.add_column("metric")
    for column in ("value", "±", "n"):
        table.add_column(column, justify="right")
    for name, task in about["tasks"].items():
        if task["error"]:
            table.add_row(name, f"[red]{escape(task['error'])}[/]", "", "", "")
        else:
            half = "" if task["stderr"] is None else f"{1.96 * task['stderr']:.4f}"
            value = "—" if task["value"] is None else f"{task['value']:.4f}"
            table.add_row(name, task["metric"], value, half, str(task["n"]))
    score = mean([task["value"] for task in about["tasks"].values() if not task["error"]])
    if score is not None:
        table.add_row("[bold]mean[/]", "", f"[bold]{score:.4f}[/]", "", "")
    table.caption = "± is half of a 95 % interval over documents"
    return table


def _measured(about: dict[str, Any]) -> Iterator[str]:
    """What was scored, on what and with what, in one line; then what is to be known of single tasks."""
    from pipelines.store.provenance import provenance, said

    yield escape(said({name: value for name, value in provenance(about).items() if name != "settings"}))
    yield from (escape(f"{name}: {task['note']}") for name, task in about["tasks"].items() if task.get("note"))


@command(
    PANEL,
    "+pool@pools.tiny=tiny",
    "'experts=[out/a]' task=skills/add 'collect.kinds=[gram]'",
    "'experts=[org/one]' task=file task.path=one.jsonl collect.examples=512",
)
def statistics(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Collect what `fisher` and `regmean` need of each expert's data, and keep it in the store.

    Merges and studies then find it by themselves; a study collects what its own experts lack. For every parameter the
    diagonal of the Fisher information, for every linear layer the Gram matrix of its inputs.
    """
    configs = compose_all("statistics", overrides, config_dir, cfg)
    from pipelines.study.collect import collect_statistics

    with terminal.listening() as progress:
        entries = [entry for config in configs for entry in collect_statistics(config, progress)]
    found = [{"folder": str(entry.folder), **entry.describe()} for entry in entries]
    columns = ("key", "expert", "task", "statistic", "examples", "tokens")
    rows = [[s["key"][:10], s["name"], s["task"], s["statistic"], str(s["examples"]), str(s["tokens"])] for s in found]
    terminal.answer(json, found, terminal.table(f"{len(found)} statistics in the store", columns, rows))
