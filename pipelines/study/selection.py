"""Choosing on a split that is not the one reported: what a suite is there, and which candidate is best."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Suite, SuiteTask
from pipelines.evaluate.lookup import OWN_TASKS, leaves, task_index
from pipelines.store.records import mean_score
from pipelines.store.store import Store
from pipelines.study.trial import Trial
from pipelines.tiny.skills import SPLITS


@dataclass(frozen=True)
class Choice:
    """What a method's selection came to, for one subset of a pool."""

    pool: str
    run: int
    """Place of the experts' training seed among the pool's."""
    method: str
    experts: tuple[str, ...]
    split: str
    values: Mapping[str, Any]
    """The grid's values that were chosen, what was drawn, and the number of the draw."""
    score: float
    """Mean over tasks on the split."""
    candidates: int
    key: str
    """Key of the chosen candidate's trial."""

    def to_dict(self) -> dict[str, Any]:
        """The choice for machines."""
        return {**vars(self), "experts": list(self.experts), "values": dict(self.values)}

    def to_row(self) -> dict[str, Any]:
        """The choice as a line of a table: a column a value."""
        return {"experts": "+".join(self.experts)} | {
            name: value for name, value in {**vars(self), **self.values}.items() if name not in ("experts", "values")
        }


def on_split(suite: Suite, split: str) -> Suite:
    """The suite with every task scored on a split."""
    tasks = {name: dataclasses.replace(task, split=None) for name, task in suite.tasks.items()}
    return dataclasses.replace(suite, tasks=tasks, split=split)


def check_split(suite: Suite, split: str, where: str) -> None:
    """UserError for a split that a built-in skill of the suite does not have."""
    if split not in SPLITS and any(_generated(task) for task in suite.tasks.values()):
        raise UserError(f"a built-in skill has no split {split!r}", where=where, do=nearest(split, SPLITS))


def _generated(task: SuiteTask) -> bool:
    return bool(task.skill or (task.images and task.images.skill))


def same_documents(one: Suite, other: Suite) -> list[str]:
    """Tasks of a suite that are scored on the same split in another form of it."""
    index, same = task_index(OWN_TASKS, one.include_path), []
    for name, spec in one.tasks.items():
        splits, found = [suite.tasks[name].split or suite.split for suite in (one, other)], []
        if spec.skill is not None or spec.images is not None:
            splits = [split or "test" for split in splits]
        else:
            found = leaves(spec.task or name, index) if (spec.task or name) in index else []
        if splits[0] == splits[1] or any(leaf.split(splits[0]) == leaf.split(splits[1]) for leaf in found):
            same.append(name)
    return same


def selection_suite(suite: Suite, split: str) -> Suite:
    """What a method's candidates are scored on: the tasks that have a part in the choice, each on its split for it."""
    tasks = {
        name: dataclasses.replace(task, split=task.select)
        for name, task in suite.tasks.items()
        if task.select != "none"
    }
    return dataclasses.replace(suite, name=f"{suite.name} on {split}", tasks=tasks, split=split)


def check_selection(suite: Suite, split: str, where: str) -> None:
    """UserError for a split that cannot be, or whose documents are those that the suite reports."""
    check_split(suite, split, where)
    chosen_on = selection_suite(suite, split)
    if not chosen_on.tasks:
        what = f"no task of suite {suite.name} has a part in the choice"
        raise UserError(what, where=where, do="give one of them a split: select: train")
    if same := same_documents(chosen_on, suite):
        what = f"{same[0]} would be chosen on the split that is reported"
        raise UserError(what, where=where, do="choose another split, such as select: train, or another suite.split")


def best(trials: Sequence[Trial | None], store: Store) -> tuple[int, float, int] | None:
    """Place and score of the trial with the highest mean over tasks, the first of equals, and how many have no mean.

    Those are trials with a result in which a task has no score. None until every trial has a result, and one a mean.
    """
    if not all(trial is not None and store.has("results", trial.key) for trial in trials):
        return None
    scores = [mean_score(trial.key, store) for trial in trials if trial is not None]
    known = [score for score in scores if score is not None]
    return (scores.index(max(known)), max(known), len(scores) - len(known)) if known else None
