"""Words of a text with the places they stand at, and which of them an attack may touch."""

from __future__ import annotations

import re
from collections.abc import Set
from random import Random

_WORD = re.compile(r"[^\W\d_]{2,}")

_FUNCTION_WORDS = (
    "a an and are as at be been but by can did do does for from had has have he her him his how i if in into is it its "
    "me my no not of on or our she so than that the their them then there these they this those to too up us was we "
    "were what when where which who whom why will with would you your answer question"
)

SPARED = frozenset(_FUNCTION_WORDS.split())
"""Words that carry the sentence, and the cues of prompts: never touched."""


def chosen(text: str, spared: Set[str], random: Random, share: float, most: int) -> list[tuple[int, int]]:
    """Spans [start, end) of a random share of the words (at least one, at most ``most``), in order."""
    spans = [m.span() for m in _WORD.finditer(text) if m.group().lower() not in SPARED | spared]
    count = min(most, max(1, round(share * len(spans))), len(spans))
    return sorted(random.sample(spans, count))


def replaced(text: str, changes: list[tuple[tuple[int, int], str]]) -> str:
    """The text with each span replaced by its word."""
    out, last = [], 0
    for (start, end), word in changes:
        out += [text[last:start], word]
        last = end
    return "".join([*out, text[last:]])
