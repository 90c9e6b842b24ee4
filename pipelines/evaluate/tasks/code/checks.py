"""Whether generated programs pass their tests, each run in a process of its own with limits."""

from __future__ import annotations

from typing import Any

from pipelines.evaluate.sandbox import passes

EXAMPLES = (2, 3, 4)
"""Task ids of the examples in MBPP's prompt, as lm-eval and the paper have them."""


def humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether prompt and continuation pass the document's check."""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass@1": float(passes(program))}


def mbpp(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the continuation passes the document's assertions."""
    setup = doc.get("test_setup_code") or ""
    program = "\n".join([setup, results[0], *doc["test_list"], ""])
    return {"pass@1": float(passes(program))}


def mbpp_examples(documents: Any) -> list[dict[str, Any]]:
    """The three examples of the prompt."""
    return [document for document in documents if document["task_id"] in EXAMPLES]
