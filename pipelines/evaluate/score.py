"""From answers to numbers: metrics by lm-eval's own task objects, standard errors from the documents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa
from lm_eval.api.metrics import mean
from lm_eval.evaluator_utils import _compute_task_aggregations

from conf.errors import UserError
from pipelines.evaluate.entries import Entered, Leaf, metric_name, told
from pipelines.evaluate.result import TaskScore, document_table
from pipelines.evaluate.stderr import standard_error
from pipelines.process import restore

Raw = dict[tuple[str, str], list[Any]]
"""Per-document values of a leaf by (metric, filter)."""


class Summary:
    """Scores and documents of one evaluated model."""

    def __init__(self, tasks: list[Entered], failed: dict[str, str], seed: int):
        self.tasks, self.seed = tasks, seed
        self.errors = {**{t.key: t.error for t in tasks if t.error is not None}, **failed}
        self.raw: dict[int, Raw] = {}
        self.metrics: dict[str, dict[str, Any]] = {}
        self.scores: dict[str, TaskScore] = {}
        for task in tasks:
            self.scores[task.key] = self._score(task)

    def documents(self) -> pa.Table:
        """Every document's value of every metric."""
        rows: list[tuple[str, str, str, float]] = []
        for task in self.tasks:
            if self.errors.get(task.key) is not None:
                continue
            for leaf in task.leaves:
                prefix = f"{leaf.name}:" if len(task.leaves) > 1 else ""
                names = [f"{prefix}{i}" for i in leaf.ids]
                for (metric, filter_name), values in self.raw[id(leaf)].items():
                    rows.extend(_rows(task.key, names, metric_name(metric, filter_name), values))
        return document_table(rows)

    def _score(self, task: Entered) -> TaskScore:
        nothing = TaskScore(task.metric, math.nan, math.nan, 0, self.errors.get(task.key))
        if nothing.error is not None:
            return nothing
        restore(task.states)
        try:
            for leaf in task.leaves:
                self.raw[id(leaf)] = _process(leaf)
                self.metrics[leaf.name] = self._aggregate(leaf)
            return self._read(task)
        except Exception as error:
            self.errors[task.key] = told(error)
            return TaskScore(task.metric, math.nan, math.nan, 0, self.errors[task.key])

    def _aggregate(self, leaf: Leaf) -> dict[str, Any]:
        values, count = _compute_task_aggregations(leaf.task, self.raw[id(leaf)], bootstrap_iters=0)
        for metric, filter_name in self.raw[id(leaf)]:
            stderr = self._stderr(leaf, metric, filter_name)
            values[f"{metric}_stderr,{filter_name}"] = "N/A" if math.isnan(stderr) else stderr
        alias = leaf.task.get_config("task_alias") or leaf.name
        return {"name": leaf.name, "alias": alias, "sample_len": count, **values}

    def _read(self, task: Entered) -> TaskScore:
        """The reported metric: the leaf's own, or the group's aggregate (over documents where it defines none)."""
        key = f"{task.spec.metric},{task.spec.filter}"
        for leaf in task.leaves:
            if key not in self.metrics[leaf.name]:
                known = sorted(m for m in self.metrics[leaf.name] if "," in m and "_stderr," not in m)
                raise UserError(f"{leaf.name} has no metric {key}; it has {'; '.join(known)}")
        sizes = np.array([len(leaf.ids) for leaf in task.leaves], dtype=float)
        shares = sizes / sizes.sum() if _by_size(task) else np.full(len(sizes), 1 / len(sizes))
        values = np.array([self.metrics[leaf.name][key] for leaf in task.leaves], dtype=float)
        stated = [self.metrics[leaf.name][f"{task.spec.metric}_stderr,{task.spec.filter}"] for leaf in task.leaves]
        errors = np.array([math.nan if error == "N/A" else error for error in stated], dtype=float)
        return TaskScore(
            metric=task.metric,
            value=float(values[0] if len(values) == 1 else shares @ values),
            stderr=float(np.sqrt(np.sum((shares * errors) ** 2))),
            n=int(sizes.sum()),
            note=self._note(task),
        )

    def _note(self, task: Entered) -> str | None:
        """What a task whose documents all have one outcome is noted with: often its target is wrong."""
        metric = task.spec.metric, task.spec.filter
        outcomes = [repr(value) for leaf in task.leaves for value in self.raw[id(leaf)][metric]]
        if len(outcomes) < 2 or len(set(outcomes)) > 1:
            return None
        return f"all {len(outcomes)} documents have the same outcome, {outcomes[0]}: look at doc_to_target"

    def _stderr(self, leaf: Leaf, metric: str, filter_name: str) -> float:
        aggregate = leaf.task.aggregation().get(metric, mean)
        return standard_error(aggregate, self.raw[id(leaf)][metric, filter_name], self.seed)


def _process(leaf: Leaf) -> Raw:
    """Per-document metrics by lm-eval's ``process_results``, for each filter."""
    raw: Raw = {}
    for filter_name in leaf.instances[0][0].filtered_resps:
        for requests in leaf.instances:
            document = requests[0].doc
            results = leaf.task.process_results(document, [r.filtered_resps[filter_name] for r in requests])
            for metric, value in results.items():
                raw.setdefault((metric, filter_name), []).append(value)
    return raw


def _by_size(task: Entered) -> bool:
    """Whether a group weighs its subtasks by their size (also where it does not say)."""
    listed = (task.group.aggregate_metric_list if task.group is not None else None) or []
    return next((a.weight_by_size for a in listed if a.metric == task.spec.metric), True)


def _rows(task: str, names: list[str], metric: str, values: list[Any]) -> Iterator[tuple[str, str, str, float]]:
    """Rows of one metric, part by part."""
    for name, value in zip(names, values):
        for part, number in _numbers(value, metric):
            yield task, name, part, number


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """The numbers in a document's value; those of a list or dictionary by place or key (``mcc.0``, ``prf.recall``)."""
    if isinstance(value, (Real, np.bool_)):
        yield name, float(value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(part, f"{name}.{key}")
    elif isinstance(value, (tuple, list, np.ndarray)):
        for place, part in enumerate(value):
            yield from _numbers(part, f"{name}.{place}")
