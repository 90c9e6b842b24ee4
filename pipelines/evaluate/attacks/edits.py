"""Attacks that ask no model: misspelt words and added tautologies; and which words of a text an attack may touch.

DeepWordBug (Gao et al., 2018, https://arxiv.org/abs/1801.04354) swaps, substitutes, deletes or inserts one letter of a
word; the paper looks for the words that matter most to the attacked model (``instruction.py``), in documents a seeded
share of the words is taken. StressTest (Naik et al., 2018, https://arxiv.org/abs/1806.00692) adds a tautology that
changes no meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from random import Random
from string import ascii_lowercase

_WORDS = (
    "a an and are as at be been but by can did do does for from had has have he her him his how i if in into is it its "
    "me my no not of on or our she so than that the their them then there these they this those to too up us was we "
    "were what when where which who whom why will with would you your"
)

FUNCTION_WORDS = frozenset(_WORDS.split())
"""Words that carry the sentence: no attack touches them."""

SPARED = FUNCTION_WORDS | {"answer", "question"}
"""Words of documents that are never touched: the cues of prompts too."""

WORD = re.compile(r"[^\W\d_]{2,}")
"""What attacks take for a word."""

EDITS = ("swap", "substitute", "delete", "insert")
"""What DeepWordBug does to one letter (swap: two neighbours) of a word."""

SHARE, MOST = 0.3, 30
"""Share of the words that are misspelt, and most edits in a text: the paper's bound on the edit distance."""

TAUTOLOGIES, TIMES = (" and true is true", " and false is not true"), 5
"""The phrases, a seeded one for each text, and how often it is said."""


def replace_words(
    text: str,
    spared: Set[str],
    random: Random,
    share: float,
    most: int,
    other: Callable[[int, int], str],
) -> str:
    """The text with a random share of its words (at least one, at most ``most``) replaced, in order.

    ``other`` gives the word to put in place of ``text[start:end]``.
    """
    spans = [m.span() for m in WORD.finditer(text) if m.group().lower() not in SPARED | spared]
    count = min(most, max(1, round(share * len(spans))), len(spans))
    out, last = [], 0
    for start, end in sorted(random.sample(spans, count)):
        out += [text[last:start], other(start, end)]
        last = end
    return "".join([*out, text[last:]])


def misspell(text: str, spared: Set[str], random: Random) -> str:
    """The text with a share of its words misspelt."""
    return replace_words(text, spared, random, SHARE, MOST, lambda start, end: misspelt(text[start:end], random))


def misspelt(word: str, random: Random, edit: str | None = None) -> str:
    """A word under one of the four edits (of equal letters none can be swapped), by default at random."""
    at = random.randrange(len(word))
    other = random.choice([c for c in ascii_lowercase if c != word[at].lower()])
    swaps = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    edit = edit or random.choice(EDITS if swaps else EDITS[1:])
    if edit == "swap":
        i = random.choice(swaps or [0])
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    put, rest = {"substitute": (other, at + 1), "delete": ("", at + 1), "insert": (other, at)}[edit]
    return word[:at] + put + word[rest:]


def distract(text: str, spared: Set[str], random: Random) -> str:
    """The text with a tautology at the end of its first line, before the closing mark."""
    first, newline, rest = text.partition("\n")
    stripped = first.rstrip(" .!?")
    return stripped + random.choice(TAUTOLOGIES) * TIMES + first[len(stripped) :] + newline + rest
