"""What all commands share: the application, options and their completion, and the configuration that is composed."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape

from cli.completion import complete_override
from conf.errors import UserError

if TYPE_CHECKING:
    from conf.schema import Config

Command = TypeVar("Command", bound=Callable[..., None])

app = typer.Typer(
    name="mergebench",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Fine-tune experts, merge them, evaluate every merge, and say with statistics what merging was worth.\n\n"
        "Arguments are Hydra overrides, such as [cyan]method=ties method.density=0.2[/]. "
        "[dim]Repeating a command resumes it.[/]"
    ),
)


def command(panel: str, *examples: str, name: str | None = None) -> Callable[[Command], Command]:
    """Make a function a command of the application, with its docstring and examples (to be run as they stand) as help.

    The examples' arguments are given without ``mergebench NAME``.
    """

    def add(function: Command) -> Command:
        called = name or function.__name__
        lines = [escape(f"  mergebench {called} {example}".rstrip()) for example in examples]
        text = "\n\n".join([escape(inspect.getdoc(function) or ""), "[bold]Examples[/]", *lines])
        return app.command(called, help=text, rich_help_panel=panel)(function)

    return add


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OVERRIDES]...",
        help="Hydra overrides: group=choice, key=value, +key=value, ~key; a=1,2 makes several runs.",
        autocompletion=complete_override,
        show_default=False,
    ),
]
showing = partial(typer.Option, rich_help_panel="Output")
configuring = partial(typer.Option, rich_help_panel="Configuration")

Cfg = Annotated[bool, showing("--cfg", help="Print the composed configuration and stop.")]
Json = Annotated[bool, showing("--json", help="Print one JSON document on standard output.")]
ConfigDir = Annotated[
    str | None, configuring("--config-dir", metavar="DIR", help="A folder of your own configuration groups.")
]


def compose_all(
    doing: str, overrides: list[str] | None, folder: str | None, cfg: bool = False, one: bool = False
) -> list[Config]:
    """The configurations that a command's overrides ask for (several where the sweep grammar is used).

    With ``cfg`` they are printed as YAML, resolved, and the command ends.
    Raises UserError for what is misspelt, for what the command would not use, and for several where it takes one.
    """
    from conf.compose import compose, to_yaml

    composed = compose(overrides or [], config_dir=folder)
    configs = [config for config, _ in composed]
    check_used(doing, overrides or [], configs, folder)
    if one and len(configs) > 1:
        raise UserError(f"this command takes one configuration, not {len(configs)}", do="give each key a single value")
    if cfg:
        typer.echo("---\n".join(to_yaml(tree) for _, tree in composed), nl=False)
        raise typer.Exit()
    return configs


def compose_one(doing: str, overrides: list[str] | None, folder: str | None, cfg: bool = False) -> Config:
    """The one configuration that a command's overrides ask for."""
    return compose_all(doing, overrides, folder, cfg, one=True)[0]


def split_words(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Arguments that are names, keys or texts, and those that are overrides."""
    words = [text for text in arguments or () if "=" not in text and not text.startswith("~")]
    return words, [text for text in arguments or () if text not in words]


EVERYWHERE = "store runs datasets online allow_pickle"
HERE = "executor.device executor.threads"
MERGE = "experts method dtype vocab strict collect.task seed"
POOLS = "pools experiment scale name about"
COLLECT = "collect.examples collect.labels collect.seed"
STUDY = f"{POOLS} methods sampler references attacks suite statistics geometry report keep trackers dtype vocab strict"
STUDY += f" seed executor {COLLECT} collect.task"
SEARCH = f"{MERGE} suite search statistics name executor"

READS = {
    "finetune": f"base task finetuning optimizer training seed out {HERE}",
    "merge": f"base {MERGE} out out_adapter {HERE}",
    "extract": f"base model dtype vocab strict out out_adapter {HERE}",
    "merge --mergekit-config": f"seed out {HERE}",
    "evaluate": "base suite out executor",
    "evaluate experts=[…]": f"base {MERGE} suite out executor",
    "evaluate model=…": "model base suite out executor",
    "statistics": f"base experts task {COLLECT} collect.kinds {HERE}",
    "statistics of a pool": f"{POOLS} {COLLECT} collect.kinds {HERE}",
    **dict.fromkeys(("sweep", "plan", "calibrate", "report"), STUDY),
    "search": f"base {SEARCH}",
    "search of a pool": f"{POOLS} {SEARCH} {COLLECT}",
    "geometry": "base experts geometry vocab strict out",
    "diagnose": "base experts vocab strict",
    "diagnose of a pool": STUDY,
    "geometry of a pool": f"{STUDY} out",
    "landscape": f"base experts landscape vocab strict seed out {HERE}",
    "landscape of a pool": f"{STUDY} landscape out",
    "verify": HERE,
    **dict.fromkeys(("export", "push"), f"out {HERE}"),
    "results": "name out",
    "compare": "statistics out",
    "prefetch": "suite out",
    **dict.fromkeys(("ls", "show", "gc", "doctor"), ""),
}
"""Keys that a command reads, with everything below them; a command that does several things has a line for each."""

OF_A_POOL = ("search", "statistics", "geometry", "diagnose", "landscape")
"""Commands that do the same for a study's pools as for single experts."""

IDLE: tuple[tuple[str, Callable[[Config], object], str], ...] = (
    ("training.epochs", lambda c: c.task.epochs is not None, "the task's own task.epochs comes first"),
    ("training.steps", lambda c: c.task.epochs is not None, "the task's own task.epochs comes first"),
    ("training.epochs", lambda c: c.training.steps is not None, "training.steps takes its place"),
    ("training.warmup_steps", lambda c: c.training.schedule == "constant", "training.schedule=constant has none"),
    *(
        (f"training.lora.{name}", lambda c: not c.training.lora.rank, "training.lora.rank is 0")
        for name in ("alpha", "dropout", "targets")
    ),
    ("optimizer.momentum", lambda c: c.optimizer.name != "sgd", "only optimizer=sgd has it"),
    ("optimizer.betas", lambda c: not c.optimizer.name.startswith("adamw"), "only optimizer=adamw has them"),
    ("optimizer.eps", lambda c: not c.optimizer.name.startswith("adamw"), "only optimizer=adamw has it"),
    *(
        (
            key,
            lambda c: c.model is not None and c.suite.linearised is not True,
            "only suite.linearised=true takes a base",
        )
        for key in ("base", "base.path", "base.name", "base.revision")
    ),
    ("executor.workers", lambda c: c.executor.name == "local", "only executor=ray has workers"),
    ("executor.address", lambda c: c.executor.name == "local", "only executor=ray has one"),
    (
        "executor.vllm_memory",
        lambda c: all(s is None or s.generate_with != "vllm" for s in (c.suite, *(p.suite for p in c.pools.values()))),
        "only suite.generate_with=vllm takes memory of its own",
    ),
    ("search.points", lambda c: c.search.sampler != "grid", "only search=grid has them"),
    *(
        (f"search.{name}", lambda c: c.search.sampler != "adamerging", "only search=adamerging has it")
        for name in ("steps", "lr", "documents", "blocks")
    ),
    ("search.estimate_from", lambda c: c.search.sampler == "adamerging", "search=adamerging scores one configuration"),
    *(
        (f"search.{name}", lambda c: c.search.sampler in ("grid", "random"), "only search=tpe and search=cmaes have it")
        for name in ("startup", "batch")
    ),
)
"""Values that something else makes idle: key, whether it does, and what it is."""


def check_used(doing: str, overrides: Sequence[str], configs: Sequence[Config], folder: str | None = None) -> None:
    """UserError for the first override, or value of a file of the user's own, that this command would not look at."""
    from conf.compose import compose, given

    values, plain = given(overrides), compose([])[0][0] if folder else None
    for config in configs:
        variant = _variant(doing, config)
        for key, text in values:
            if not _reads(variant, key) and not (key == "executor" and config.executor.name == "local"):
                raise UserError(f"`mergebench {variant}` does not use {text}", where=key, do=_instead(variant, key))
        for key in [f.name for f in dataclasses.fields(config)] if plain else ():
            if not _reads(variant, key, within=True) and getattr(config, key) != getattr(plain, key):
                what = f"`mergebench {variant}` does not use {key}, which a file of {folder} sets"
                raise UserError(what, where=key, do=_instead(variant, key))
    for key, is_idle, reason in IDLE if doing != "extract" else ():  # which takes a model and its base
        text = next((text for path, text in values if path == key), "")
        if text and all(is_idle(config) for config in configs):
            raise UserError(f"{text} changes nothing", where=key, do=f"{reason}: leave it out")
    if len({config.out for config in configs}) < len(configs) and configs[0].out:
        what = f"{len(configs)} runs would be written to one folder"
        raise UserError(what, where=f"out={configs[0].out}", do="run them one by one")


def _variant(doing: str, config: Config) -> str:
    """The line of READS for what the command is asked to do."""
    if doing == "evaluate" and config.model is not None:
        return "evaluate model=…"
    if doing == "evaluate" and config.experts:
        return "evaluate experts=[…]"
    return f"{doing} of a pool" if doing in OF_A_POOL and config.pools else doing


def _reads(variant: str, key: str, within: bool = False) -> bool:
    """Whether a key is read as a whole, or (``within``) something below it."""
    reads = f"{EVERYWHERE} {READS[variant]}".split()
    return any(f"{key}.".startswith(f"{read}.") or (within and read.startswith(f"{key}.")) for read in reads)


def _instead(variant: str, key: str) -> str:
    """What to do with a key that the command does not read."""
    from conf.schema import Pool

    root = key.partition(".")[0]
    if _reads(variant, "methods") and root == "method":
        return "add it to the study with +method@methods.NAME=…, or set methods.NAME.…"
    if _reads(variant, "pools") and root in {field.name for field in dataclasses.fields(Pool)}:
        return f"a pool has its own: pools.NAME.{key}"
    readers = dict.fromkeys(name.removesuffix(" of a pool") for name in READS if _reads(name, key))
    return "leave it out" + (f"; it is for {', '.join(readers)}" if readers else "")
