"""From answers to numbers: metrics by lm-eval's own task objects, standard errors from the documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa
from lm_eval.api import metrics
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.evaluator_utils import _compute_task_aggregations

from conf.errors import UserError
from conf.schema import Suite
from pipelines.evaluate.build import BuiltTask, Leaf, metric_name, reason
from pipelines.process import restore

DOCUMENTS = pa.schema(
    [("task", pa.string()), ("document", pa.string()), ("metric", pa.string()), ("value", pa.float64())]
)
"""Columns of the per-document table: task as named in the suite, document as ``index`` or ``subtask:index`` (the
index in the whole split, whatever the limit), metric as in TaskScore, or a part of it (``mcc.0``, ``prf.recall``)."""


@dataclass(frozen=True)
class TaskScore:
    """One cell: a task's score with its standard error, or why there is none."""

    metric: str
    """Metric as in the documents table: ``acc``, or ``exact_match,strict-match`` when read from a filter."""
    value: float
    """The metric over the documents; NaN where the task failed."""
    stderr: float
    """Standard error from the per-document scores; NaN where there is none."""
    n: int
    """Documents scored."""
    error: str | None = None
    """Why the task failed."""
    note: str | None = None
    """What makes the score doubtful."""


@dataclass(frozen=True)
class Evaluation:
    """One model on one suite."""

    tasks: dict[str, TaskScore]
    """Scores by the suite's task names."""
    documents: pa.Table
    """Per-document values (``DOCUMENTS``)."""
    samples: pa.Table
    """Prompts and answers of the documents that the suite keeps (``pipelines.evaluate.samples``)."""
    batch_size: int
    """Sequences per forward pass, as really used."""
    seconds: float
    """Wall-clock time of scoring."""
    versions: dict[str, Any] = field(default_factory=dict)
    """Packages, tasks, fingerprint of each task's prompts, device, dtype, seed."""
    lm_eval: dict[str, Any] = field(default_factory=dict)
    """The same in lm-eval's own JSON layout (its ``results_*.json``)."""
    answer_length: float = math.nan
    """Characters of a generated answer, averaged over a task's answers, then over tasks; NaN where none was."""

    @property
    def errors(self) -> dict[str, str]:
        """Failed tasks and why."""
        return {name: t.error for name, t in self.tasks.items() if t.error is not None}


def document_table(rows: list[tuple[str, str, str, float]]) -> pa.Table:
    """The documents table of (task, document, metric, value) rows."""
    arrays = [pa.array([row[i] for row in rows], type=column.type) for i, column in enumerate(DOCUMENTS)]
    return pa.table(arrays, schema=DOCUMENTS)


RESAMPLES = 1000
"""Bootstrap resamples where they are cheap: metrics of counts, and sacrebleu's."""

FEW = 200
"""Bootstrap resamples of lm-eval's other aggregations."""


def standard_error(aggregate: Callable[[list[Any]], float], values: list[Any], seed: int) -> float:
    """Standard error of ``aggregate(values)`` over documents; NaN where there is none.

    s/√n for a mean, lm-eval's closed form for ``acc_all``, and for lm-eval's other aggregations the standard deviation
    over a seeded bootstrap of the documents. An aggregation that comes with a task has none, as in lm-eval.
    """
    if len(values) < 2:
        return math.nan
    if aggregate is metrics.mean:
        return float(np.std(np.asarray(values, dtype=float), ddof=1) / math.sqrt(len(values)))
    if aggregate is metrics.acc_all:
        return float(metrics.acc_all_stderr(values))
    if aggregate not in AGGREGATION_REGISTRY.values():
        return math.nan
    rng = np.random.default_rng(seed)
    if aggregate in (metrics.matthews_corrcoef, metrics.f1_score):
        draws = _from_counts(aggregate, values, rng)
    elif aggregate in (metrics.bleu, metrics.chrf, metrics.chrfpp, metrics.ter):
        draws = _from_sums(aggregate, values, rng)
    else:
        picks = rng.integers(0, len(values), size=(FEW, len(values)))
        draws = np.array([aggregate([values[i] for i in pick]) for pick in picks])
    return float(np.std(draws, ddof=1))


def _from_counts(aggregate: Callable[..., float], values: list[Any], rng: np.random.Generator) -> np.ndarray:
    """Matthews' coefficient or binary F1 of resampled (gold, prediction) pairs, from their confusion matrices."""
    labels, codes = np.unique(np.asarray(values), return_inverse=True)
    k, n = len(labels), len(values)
    gold, said = codes.reshape(n, 2).T
    shares = np.bincount(gold * k + said, minlength=k * k) / n
    matrix = rng.multinomial(n, shares, size=RESAMPLES).reshape(-1, k, k).astype(float)  # [R, gold, prediction]
    true, given = matrix.sum(2), matrix.sum(1)  # [R, k]
    if aggregate is metrics.f1_score:
        one = labels == 1
        hits = matrix[:, one, one].sum(1)
        return _ratio(2 * hits, true[:, one].sum(1) + given[:, one].sum(1))
    right = np.trace(matrix, axis1=1, axis2=2)
    spread = (n * n - (true**2).sum(1)) * (n * n - (given**2).sum(1))
    return _ratio(right * n - (true * given).sum(1), np.sqrt(spread))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, and 0 where below is 0, as scikit-learn has it."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _from_sums(aggregate: Callable[..., float], values: list[Any], rng: np.random.Generator) -> np.ndarray:
    """BLEU, chrF or TER of resampled documents, from the sums of each document's counts."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    made: dict[Any, Any] = {metrics.bleu: BLEU, metrics.chrf: CHRF, metrics.ter: TER}
    scorer = CHRF(word_order=2) if aggregate is metrics.chrfpp else made[aggregate]()
    references, predictions = metrics._sacreformat(*(list(part) for part in zip(*values)))
    counts = np.array(scorer._extract_corpus_statistics(predictions, references))  # [n, counts]
    picks = (rng.integers(0, len(counts), size=len(counts)) for _ in range(RESAMPLES))
    return np.array([scorer._compute_score_from_stats(counts[pick].sum(0).tolist()).score for pick in picks])


Raw = dict[tuple[str, str], list[Any]]
"""Per-document values of a leaf by (metric, filter)."""


class Summary:
    """Scores and documents of one evaluated model."""

    def __init__(self, tasks: list[BuiltTask], failed: dict[str, str], suite: Suite):
        self.tasks, self.seed, self.predict_only = tasks, suite.seed, suite.predict_only
        self.errors = {**{t.key: t.error for t in tasks if t.error is not None}, **failed}
        self.raw: dict[int, Raw] = {}
        self.metrics: dict[str, dict[str, Any]] = {}
        self.scores: dict[str, TaskScore] = {}
        for task in tasks:
            self.scores[task.key] = self._score(task)
        self.answer_length = self._answer_length()

    def documents(self) -> pa.Table:
        """Every document's value of every metric."""
        rows: list[tuple[str, str, str, float]] = []
        for task in self.tasks:
            for leaf in task.leaves if task.key not in self.errors else []:
                prefix = f"{leaf.name}:" if len(task.leaves) > 1 else ""
                for (metric, filter_name), values in self.raw[id(leaf)].items():
                    for index, value in zip(leaf.ids, values):
                        parts = _numbers(value, metric_name(metric, filter_name))
                        rows.extend((task.key, f"{prefix}{index}", part, number) for part, number in parts)
        return document_table(rows)

    def _answer_length(self) -> float:
        means = []
        for task in self.tasks:
            requests = [r for leaf in task.leaves for of_document in leaf.instances for r in of_document]
            told = [len(answer) for r in requests if r.request_type == "generate_until" for answer in r.resps]
            means += [sum(told) / len(told)] if told else []
        return sum(means) / len(means) if means else math.nan

    def _score(self, task: BuiltTask) -> TaskScore:
        if task.key not in self.errors:
            restore(task.states)
            try:
                for leaf in task.leaves:
                    self.raw[id(leaf)] = {} if self.predict_only else per_document(leaf)
                    self.metrics[leaf.name] = self._aggregate(leaf)
                return self._read(task)
            except Exception as error:
                self.errors[task.key] = reason(error)
        return TaskScore(task.metric, math.nan, math.nan, 0, self.errors[task.key])

    def _aggregate(self, leaf: Leaf) -> dict[str, Any]:
        values, count = _compute_task_aggregations(leaf.task, self.raw[id(leaf)], bootstrap_iters=0)
        for (metric, filter_name), scored in self.raw[id(leaf)].items():
            stderr = standard_error(leaf.task.aggregation().get(metric, metrics.mean), scored, self.seed)
            values[f"{metric}_stderr,{filter_name}"] = "N/A" if math.isnan(stderr) else stderr
        alias = leaf.task.get_config("task_alias") or leaf.name
        return {"name": leaf.name, "alias": alias, "sample_len": count, **values}

    def _read(self, task: BuiltTask) -> TaskScore:
        """The reported metric: the leaf's own, or the group's aggregate (over documents where it defines none)."""
        if self.predict_only:
            count = sum(len(leaf.ids) for leaf in task.leaves)
            return TaskScore(task.metric, math.nan, math.nan, count, note="predictions only: no metric was computed")
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

    def _note(self, task: BuiltTask) -> str | None:
        """What a task whose documents all have one outcome is noted with: often its target is wrong."""
        metric = task.spec.metric, task.spec.filter
        outcomes = [repr(value) for leaf in task.leaves for value in self.raw[id(leaf)][metric]]
        if len(outcomes) < 2 or len(set(outcomes)) > 1:
            return None
        return f"all {len(outcomes)} documents have the same outcome, {outcomes[0]}: look at doc_to_target"


def per_document(leaf: Leaf) -> Raw:
    """Per-document metrics by lm-eval's ``process_results``, for each filter."""
    raw: Raw = {}
    for filter_name in leaf.instances[0][0].filtered_resps:
        for requests in leaf.instances:
            document = requests[0].doc
            results = leaf.task.process_results(document, [r.filtered_resps[filter_name] for r in requests])
            for metric, value in results.items():
                raw.setdefault((metric, filter_name), []).append(value)
    return raw


def _by_size(task: BuiltTask) -> bool:
    """Whether a group weighs its subtasks by their size (also where it does not say)."""
    listed = (task.group.aggregate_metric_list if task.group is not None else None) or []
    return next((a.weight_by_size for a in listed if a.metric == task.spec.metric), True)


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
