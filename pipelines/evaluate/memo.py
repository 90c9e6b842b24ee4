"""Options and targets of a task's documents, rendered once instead of for every model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lm_eval.api.task import ConfigurableTask, Task


def remember_documents(task: Task, documents: list[Any]) -> None:
    """Keep what ``doc_to_text``, ``doc_to_choice`` and ``doc_to_target`` say of these very documents.

    lm-eval asks for them again in every ``process_results``, through a template engine. Other documents (few-shot
    examples) and calls that override the template are asked as before.
    """
    if not isinstance(task, ConfigurableTask):
        return
    known = {id(document): document for document in documents}
    for method in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        setattr(task, method, _remembering(getattr(task, method), known))


def _remembering(ask: Callable[..., Any], known: dict[int, Any]) -> Callable[..., Any]:
    kept: dict[int, Any] = {}

    def answer(document: Any, *args: Any, **kwargs: Any) -> Any:
        key = id(document)
        if args or kwargs or known.get(key) is not document:
            return ask(document, *args, **kwargs)
        if key not in kept:
            kept[key] = ask(document)
        value = kept[key]
        return list(value) if isinstance(value, list) else value

    return answer
