"""From answers to numbers: metrics by lm-eval's own task objects, standard errors from the documents."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from lm_eval.api.metrics import mean
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.evaluator_utils import EvalAcc, _compute_task_aggregations, aggregate_groups
from lm_eval.result_schema import _SampleCount
from torch import nn

from pipelines.evaluate.entries import Entered, Leaf, metric_name
from pipelines.evaluate.result import TaskScore, document_table

if TYPE_CHECKING:
    from pipelines.evaluate.evaluator import Evaluator

RESAMPLES = 200
"""Bootstrap resamples for the standard error of a metric that is no mean over documents (Matthews, F1, …)."""

Raw = dict[tuple[str, str], list[Any]]
"""Per-document values of a leaf by (metric, filter)."""


class Summary:
    """Scores, documents and lm-eval's layout of one evaluated model."""

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

    def lm_eval_layout(self, evaluator: Evaluator, model: nn.Module, who: str) -> dict[str, Any]:
        """The results as lm-eval's ``simple_evaluate`` lays them out."""
        out = EvalAcc()
        out.metrics = dict(self.metrics)
        for task in self.tasks:
            if self.errors.get(task.key) is not None:
                continue
            if task.group is not None:
                out.groups[task.group.name] = task.group
                out.groups.update({g.name: g for g in task.group.get_all_groups()})
            for leaf in task.leaves:
                out.configs[leaf.name], out.versions[leaf.name] = leaf.config, leaf.task.VERSION
                out.num_fewshot[leaf.name] = leaf.config.get("num_fewshot", 0)
                out.higher_is_better[leaf.name] = leaf.task.higher_is_better()
                out.n_samples[leaf.name] = _SampleCount(original=leaf.total, effective=len(leaf.ids))
        layout = dict(aggregate_groups(out)._to_eval_results())
        layout["config"] = {"model": "hf", "model_args": {"pretrained": who}, "batch_size": evaluator.scorer.batch_size}
        layout["date"] = time.time()
        return layout

    def _score(self, task: Entered) -> TaskScore:
        nothing = TaskScore(task.metric, math.nan, math.nan, 0, self.errors.get(task.key))
        if nothing.error is not None:
            return nothing
        try:
            for leaf in task.leaves:
                self.raw[id(leaf)] = _process(leaf)
                self.metrics[leaf.name] = self._aggregate(leaf)
            return self._read(task)
        except Exception as error:
            self.errors[task.key] = f"{type(error).__name__}: {error}"
            return TaskScore(task.metric, math.nan, math.nan, 0, self.errors[task.key])

    def _aggregate(self, leaf: Leaf) -> dict[str, Any]:
        values, count = _compute_task_aggregations(leaf.task, self.raw[id(leaf)], bootstrap_iters=0)
        for metric, filter_name in self.raw[id(leaf)]:
            stderr = self._stderr(leaf, metric, filter_name, cheap=True)
            values[f"{metric}_stderr,{filter_name}"] = "N/A" if math.isnan(stderr) else stderr
        alias = leaf.task.get_config("task_alias") or leaf.name
        return {"name": leaf.name, "alias": alias, "sample_len": count, **values}

    def _read(self, task: Entered) -> TaskScore:
        """The reported metric: the leaf's own, or the group's aggregate (over documents where it defines none)."""
        key = f"{task.spec.metric},{task.spec.filter}"
        for leaf in task.leaves:
            if key not in self.metrics[leaf.name]:
                known = sorted(m for m in self.metrics[leaf.name] if "," in m and "_stderr," not in m)
                raise KeyError(f"{leaf.name} has no metric {key}; it has {'; '.join(known)}")
        sizes = np.array([len(leaf.ids) for leaf in task.leaves], dtype=float)
        shares = sizes / sizes.sum() if _by_size(task) else np.full(len(sizes), 1 / len(sizes))
        values = np.array([self.metrics[leaf.name][key] for leaf in task.leaves], dtype=float)
        errors = np.array([self._stderr(leaf, task.spec.metric, task.spec.filter) for leaf in task.leaves])
        return TaskScore(
            metric=task.metric,
            value=float(values[0] if len(values) == 1 else shares @ values),
            stderr=float(np.sqrt(np.sum((shares * errors) ** 2))),
            n=int(sizes.sum()),
        )

    def _stderr(self, leaf: Leaf, metric: str, filter_name: str, cheap: bool = False) -> float:
        """Standard error: s/√n for a mean; a seeded bootstrap for lm-eval's other aggregations, unless cheap."""
        values = self.raw[id(leaf)][metric, filter_name]
        aggregate = leaf.task.aggregation().get(metric, mean)
        if len(values) < 2:
            return math.nan
        if aggregate is mean:
            return float(np.std(np.asarray(values, dtype=float), ddof=1) / math.sqrt(len(values)))
        if cheap or aggregate not in AGGREGATION_REGISTRY.values():
            return math.nan
        rng = np.random.default_rng(self.seed)
        picks = rng.integers(0, len(values), size=(RESAMPLES, len(values)))
        return float(np.std([aggregate([values[i] for i in pick]) for pick in picks], ddof=1))


def settings(evaluator: Evaluator) -> dict[str, Any]:
    """What does not change from model to model: packages, seed, and each task's version, few-shots and prompts."""
    tasks = {}
    for leaf in (leaf for task in evaluator.tasks for leaf in task.leaves):
        shots = leaf.task.get_config("num_fewshot")
        tasks[leaf.name] = {"version": leaf.task.VERSION, "num_fewshot": shots, "prompts": leaf.fingerprint()}
    packages = ("lm_eval", "transformers", "torch", "datasets", "tokenizers")
    return {
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "seed": evaluator.suite.seed,
        "tasks": tasks,
    }


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


def _rows(task: str, names: list[str], metric: str, values: list[Any]) -> list[tuple[str, str, str, float]]:
    """Rows of one metric; a tuple's parts (gold and prediction, …) get rows of their own."""
    if all(isinstance(v, Real) for v in values):
        return [(task, name, metric, float(v)) for name, v in zip(names, values)]
    out = []
    for name, value in zip(names, values):
        for part, item in enumerate(value if isinstance(value, (tuple, list)) else ()):
            if isinstance(item, Real):
                out.append((task, name, f"{metric}.{part}", float(item)))
    return out
