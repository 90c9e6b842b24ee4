"""What a search aims at: the mean over tasks, or several aims at once and the front of those that none beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conf.errors import UserError, nearest
from conf.schema import Suite
from pipelines.store.records import mean, mean_score
from pipelines.store.store import Store

WORDS = ("mean", "worst", "length")


@dataclass(frozen=True)
class Objective:
    """One number that a configuration comes to."""

    name: str
    tasks: tuple[str, ...] = ()
    """Tasks whose mean it is; empty for one of ``WORDS``."""

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return -1 if self.name == "length" else 1

    @property
    def direction(self) -> str:
        """The same as Optuna calls it."""
        return "maximize" if self.sign > 0 else "minimize"

    def of(self, key: str, store: Store) -> float | None:
        """Its value for a trial; None where there is no result, or a task has no score."""
        if self.name == "mean" or not store.has("results", key):
            return mean_score(key, store)
        about = store.entry("results", key).describe()
        if self.name == "length":
            return about.get("update_norm")
        values = {name: task["value"] for name, task in about["tasks"].items()}
        if None in values.values():
            return None
        return min(values.values()) if self.name == "worst" else mean([values[task] for task in self.tasks])


def make_objectives(names: Sequence[str], suite: Suite) -> list[Objective]:
    """The objectives of a search, the mean alone where none is named; UserError for one that there is not."""
    made = []
    for name in names or ["mean"]:
        tasks = () if name in WORDS else tuple(str(name).split("+"))
        for task in tasks:
            if task not in suite.tasks:
                do = nearest(task, [*WORDS, *suite.tasks])
                raise UserError(f"no objective is called {task!r}", where="search.objectives", do=do)
        made.append(Objective(str(name), tasks))
    if len(names) == 1 or len({*names}) < len(names):
        what = "one objective is no front" if len(names) == 1 else "an objective is named twice"
        raise UserError(what, where="search.objectives", do="name two or three: [mean,worst]")
    return made
