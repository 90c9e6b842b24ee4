"""What a model was asked and what it answered, document by document, as ``lm_eval run --log_samples`` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from lm_eval.utils import handle_non_serializable, hash_string, sanitize_list

from conf.schema import Suite
from pipelines.evaluate.build import Leaf
from pipelines.evaluate.score import Raw, Summary

SCHEMA = pa.schema(
    [("task", pa.string()), ("document", pa.string()), ("lm_eval_task", pa.string()), ("sample", pa.string())]
)
"""Columns: task and document as in the documents table; lm-eval's name of the task and its line of JSON."""


def samples(summary: Summary, suite: Suite) -> pa.Table:
    """The first ``suite.samples`` documents of each of lm-eval's tasks (all where nothing but answers is wanted)."""
    every = suite.predict_only or suite.samples == "all"
    most = None if every else 0 if suite.samples == "none" else int(suite.samples)
    rows = []
    for task in summary.tasks:
        for leaf in task.leaves if task.key not in summary.errors else []:
            prefix = f"{leaf.name}:" if len(task.leaves) > 1 else ""
            for place in range(len(leaf.ids))[:most]:
                lines = _lines(leaf, place, summary.raw[id(leaf)])
                rows += [(task.key, f"{prefix}{leaf.ids[place]}", leaf.name, line) for line in lines]
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def _lines(leaf: Leaf, place: int, raw: Raw) -> Iterator[str]:
    """A document's lines of JSON, one for each filter."""
    requests = leaf.instances[place]
    document = requests[0].doc
    target = leaf.task.doc_to_target(document)
    asked = {f"gen_args_{i}": {f"arg_{j}": arg for j, arg in enumerate(r.args)} for i, r in enumerate(requests)}
    for filter_name in requests[0].filtered_resps:
        metrics = {metric: values[place] for (metric, name), values in raw.items() if name == filter_name}
        sample = {
            "doc_id": leaf.ids[place],
            "doc": document,
            "target": str(target),
            "arguments": asked,
            "resps": sanitize_list([request.resps for request in requests]),
            "filtered_resps": sanitize_list([request.filtered_resps[filter_name] for request in requests]),
            "filter": filter_name,
            "metrics": list(metrics),
            "doc_hash": hash_string(_json(document, indent=2)),
            "prompt_hash": hash_string(requests[0].arguments[0]),
            "target_hash": hash_string(str(target)),
            **metrics,
        }
        yield _json(sample)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)
