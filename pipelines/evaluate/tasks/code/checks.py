"""Whether generated programs pass their tests, which run apart from them (pipelines/evaluate/sandbox)."""

from __future__ import annotations

import ast
from typing import Any

from pipelines.evaluate.sandbox import passes

EXAMPLES = (2, 3, 4)
"""Task ids of the examples in MBPP's prompt, as lm-eval and the paper have them."""


def humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether prompt and continuation pass the document's check; helpers of the prompt are the prompt's own."""
    tests = f"{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass@1": float(passes(doc["prompt"] + results[0], tests, [doc["entry_point"]], setup=doc["prompt"]))}


def mbpp(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the continuation passes the document's assertions.

    They see what it defines by the names that the reference solution defines, and what the reference imports.
    """
    tests = "\n".join([doc.get("test_setup_code") or "", *doc["test_list"]])
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    body = ast.parse(doc["code"]).body
    names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in used]
    imports = "\n".join(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    return {"pass@1": float(passes(results[0], tests, sorted(names), setup=imports))}


def mbpp_examples(documents: Any) -> list[dict[str, Any]]:
    """The three examples of the prompt."""
    return [document for document in documents if document["task_id"] in EXAMPLES]
