"""The commands as functions, for scripts and notebooks: the same settings, the same store, the same numbers.

Each takes Hydra overrides as a command does, and settings by keyword: ``experts=["a", "b"]``,
``method={"method": "ties", "density": 0.2}``, ``suite={"tasks": {"sums": {"skill": "add"}}, "limit": 8}``. Wrong input
raises ``UserError`` with the line that the command would print. Nothing is printed unless ``progress=True``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import terminal
from cli.options import compose_one
from conf.errors import UserError
from pipelines.progress import SILENT, Progress
from pipelines.store.results import result_rows
from pipelines.store.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.compare.compare import Comparison
    from pipelines.report import Report

__all__ = ["Made", "Scores", "Study", "UserError", "compare", "evaluate", "finetune", "merge", "results", "study"]


@dataclass(frozen=True)
class Made:
    """A checkpoint that was made, or found in the store."""

    folder: Path
    """An ordinary transformers folder."""
    about: dict[str, Any]
    """What is recorded of it: recipe, or training and its summary."""

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class Scores:
    """One model on one suite."""

    key: str
    """The result's key in the store."""
    tasks: pd.DataFrame
    """A row per task: metric, value, stderr, n, error."""
    mean: float
    """Mean over tasks; NaN where one failed."""
    documents: pd.DataFrame
    """Per-document scores: task, document, metric, value."""


@dataclass(frozen=True)
class Study:
    """A study that ran, or was found in the store."""

    name: str
    complete: bool
    """Whether every trial has its result."""
    folder: Path
    """Folder of its tables, figures and page."""
    report: Report | None
    trials: pd.DataFrame
    """A row per trial: pool, kind, method, experts, parameters, key and scores."""

    @property
    def verdicts(self) -> list[str]:
        """What the study found, in sentences."""
        return self.report.verdicts if self.report else []


def finetune(*overrides: str, progress: bool = False, config_dir: str | None = None, **settings: Any) -> Made:
    """Fine-tune one expert into the store, as ``mergebench finetune`` does; found there if it was made before."""
    config = compose_one("finetune", _overrides(overrides, settings), config_dir)
    from pipelines.study.single import finetune_expert

    with _listening(progress) as listener:
        made = finetune_expert(config, listener)
    return Made(made.folder, made.entry)


def merge(*overrides: str, progress: bool = False, config_dir: str | None = None, **settings: Any) -> Made:
    """Merge experts into an ordinary checkpoint folder at ``out``, as ``mergebench merge`` does."""
    config = compose_one("merge", _overrides(overrides, settings), config_dir)
    from pipelines.study.single import merge_checkpoint

    with _listening(progress) as listener:
        made = merge_checkpoint(config, listener)
    return Made(made.folder, made.entry)


def evaluate(*overrides: str, progress: bool = False, config_dir: str | None = None, **settings: Any) -> Scores:
    """Score a base, a model or a merge on a suite, as ``mergebench evaluate`` does; a task that fails has its error."""
    config = compose_one("evaluate", _overrides(overrides, settings), config_dir)
    import pandas as pd

    from pipelines.study.single import evaluate_model

    with _listening(progress) as listener:
        entry = evaluate_model(config, listener)
    tasks = pd.DataFrame.from_dict(entry.describe()["tasks"], orient="index").rename_axis("task")
    tasks["value"] = pd.to_numeric(tasks["value"])
    documents = pd.read_parquet(entry.folder / "documents.parquet")
    return Scores(entry.key, tasks, float(tasks["value"].mean(skipna=False)), documents)


def study(*overrides: str, progress: bool = False, config_dir: str | None = None, **settings: Any) -> Study:
    """Run a whole study and report on it, as ``mergebench sweep`` does; repeating it runs only what is missing."""
    config = compose_one("sweep", _overrides(overrides, settings), config_dir)
    import pandas as pd

    from pipelines.study.sweep import run_study

    with _listening(progress) as listener:
        sweep = run_study(config, listener)
    trials = pd.DataFrame(sweep.report.trials if sweep.report else [])
    return Study(sweep.name, sweep.complete, sweep.folder, sweep.report, trials)


def results(*overrides: str, config_dir: str | None = None, **settings: Any) -> pd.DataFrame:
    """Every result of the store, a row per trial and task, as ``mergebench results`` writes them."""
    config = compose_one("results", _overrides(overrides, settings), config_dir)
    import pandas as pd

    return pd.DataFrame(result_rows(Store(config.store), config.name))


def compare(
    *results: str, overrides: tuple[str, ...] = (), metric: str | None = None, tasks: tuple[str, ...] = (),
    power: float = 0.8, **settings: Any,
) -> Comparison:  # fmt: skip
    """Compare two or more results (folders or keys) document by document, as ``mergebench compare`` does."""
    config = compose_one("compare", _overrides(overrides, settings), None)
    from pipelines.compare.compare import compare_results

    names = [str(result) for result in results]
    return compare_results(names, Store(config.store), config.statistics, metric=metric, tasks=tasks, power=power)


def _overrides(overrides: tuple[str, ...], settings: Mapping[str, Any]) -> list[str]:
    """Overrides as the command line takes them; settings come last, a choice before what it is changed by."""
    return [*overrides, *itertools.chain.from_iterable(_flat(name, value) for name, value in settings.items())]


def _flat(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{name}={_value(value)}"
        return
    for key, item in value.items():
        if key == "method" and name in ("method", "finetuning"):
            yield f"{name}={item}"
        else:
            yield from _flat(f"++{name.removeprefix('++')}.{key}", item)


def _value(value: Any) -> str:
    """A Python value in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value, value)) + "]"
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


@contextmanager
def _listening(progress: bool) -> Iterator[Progress]:
    if not progress:
        yield SILENT
        return
    with terminal.listening() as listener:
        yield listener
