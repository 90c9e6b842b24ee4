"""What each command reads of the configuration: anything that is given and not used is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conf.schema import Config

EVERYWHERE = "store runs datasets online allow_pickle"
HERE = "executor.device executor.threads"
MERGE = "experts method dtype vocab strict collect.task seed"
POOLS = "pools experiment scale name about"
COLLECT = "collect.examples collect.labels collect.seed"
STUDY = f"{POOLS} methods sampler attacks suite statistics {COLLECT} collect.task keep dtype vocab strict seed executor"
SEARCH = f"{MERGE} suite search statistics name executor"

READS = {
    "finetune": f"base task finetuning optimizer training seed out {HERE}",
    "merge": f"base {MERGE} out {HERE}",
    "merge --mergekit-config": f"seed out {HERE}",
    "evaluate": "base suite out executor",
    "evaluate experts=[…]": f"base {MERGE} suite out executor",
    "evaluate model=…": "model suite out executor",
    "statistics": f"base experts task {COLLECT} collect.kinds {HERE}",
    "statistics of a pool": f"{POOLS} {COLLECT} collect.kinds {HERE}",
    **dict.fromkeys(("sweep", "plan", "report"), STUDY),
    "search": f"base {SEARCH}",
    "search of a pool": f"{POOLS} {SEARCH} {COLLECT}",
    "verify": HERE,
    "export": f"out {HERE}",
    "results": "name out",
    "prefetch": "suite out",
    **dict.fromkeys(("ls", "show", "gc", "doctor"), ""),
}
"""Keys that a command reads, with everything below them; a command that does several things has a line for each."""

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
    ("executor.workers", lambda c: c.executor.name == "local", "only executor=ray has workers"),
    ("executor.address", lambda c: c.executor.name == "local", "only executor=ray has one"),
    ("search.points", lambda c: c.search.sampler != "grid", "only search=grid has them"),
    *(
        (f"search.{name}", lambda c: c.search.sampler in ("grid", "random"), "only search=tpe and search=cmaes have it")
        for name in ("startup", "batch")
    ),
)
"""Values that something else makes idle: key, whether it does, and what it is."""


def check_used(
    command: str, overrides: Sequence[str], configs: Sequence[Config], config_dir: str | None = None
) -> None:
    """UserError for the first override, or value of a file of the user's own, that this command would not look at."""
    from conf.compose import compose, given
    from conf.errors import UserError

    told = given(overrides)
    for config in configs:
        doing = _doing(command, config)
        for key, text in told:
            if not _reads(doing, key) and not (key == "executor" and config.executor.name == "local"):
                raise UserError(f"`mergebench {doing}` does not use {text}", where=key, do=_instead(doing, key))
    for key, is_idle, reason in IDLE:
        text = next((text for path, text in told if path == key), "")
        if text and all(is_idle(config) for config in configs):
            raise UserError(f"{text} changes nothing", where=key, do=f"{reason}: leave it out")
    if len({config.out for config in configs}) < len(configs) and configs[0].out:
        what = f"{len(configs)} runs would be written to one folder"
        raise UserError(what, where=f"out={configs[0].out}", do="run them one by one")
    if config_dir:
        ((plain, _),) = compose([])
        for config in configs:
            doing = _doing(command, config)
            used = {read.partition(".")[0] for read in f"{EVERYWHERE} {READS[doing]}".split()}
            for key in [field.name for field in dataclasses.fields(config) if field.name not in used]:
                if getattr(config, key) != getattr(plain, key):
                    what = f"`mergebench {doing}` does not use {key}, which a file of {config_dir} sets"
                    raise UserError(what, where=key, do=_instead(doing, key))


def _doing(command: str, config: Config) -> str:
    """The line of READS for what the command is asked to do."""
    if command == "evaluate" and config.model is not None:
        return "evaluate model=…"
    if command == "evaluate" and config.experts:
        return "evaluate experts=[…]"
    return f"{command} of a pool" if command in ("search", "statistics") and config.pools else command


def _reads(doing: str, key: str) -> bool:
    return any(key == read or key.startswith(read + ".") for read in f"{EVERYWHERE} {READS[doing]}".split())


def _instead(doing: str, key: str) -> str:
    """What to do with a key that the command does not read."""
    from conf.schema import Pool

    root = key.partition(".")[0]
    if _reads(doing, "methods") and root == "method":
        return "add it to the study with +method@methods.NAME=…, or set methods.NAME.…"
    if _reads(doing, "pools") and root in {field.name for field in dataclasses.fields(Pool)}:
        return f"a pool has its own: pools.NAME.{key}"
    readers = dict.fromkeys(name.removesuffix(" of a pool") for name in READS if _reads(name, key))
    return "leave it out" + (f"; it is for {', '.join(readers)}" if readers else "")
