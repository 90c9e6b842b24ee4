"""Which label a written answer names: the first that stands in it as a word; an answer without one is wrong."""

from __future__ import annotations

import re
from typing import Any


def sentiment(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer names the sentence's sentiment."""
    return _accuracy(("negative", "positive"), doc, results[0])


def grammar(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer says rightly that the sentence is acceptable, or not."""
    return _accuracy(("unacceptable", "acceptable"), doc, results[0])


def _accuracy(labels: tuple[str, str], doc: dict[str, Any], answer: str) -> dict[str, float]:
    said = re.search(rf"\b({'|'.join(labels)})\b", answer.lower())
    return {"acc": float(said is not None and said.group() == labels[doc["label"]])}
