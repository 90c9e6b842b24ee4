"""DeepWordBug: words misspelt by one character each (Gao et al., 2018, https://arxiv.org/abs/1801.04354).

The paper's four transformations: two neighbouring letters swapped, one substituted, one deleted, one inserted. The
paper looks for the words that matter most to the attacked model; here a seeded share of the words is taken.
"""

from __future__ import annotations

from collections.abc import Set
from random import Random
from string import ascii_lowercase

from pipelines.evaluate.attacks.words import chosen, replaced

SHARE = 0.3
"""Share of the words that are misspelt."""

MOST = 30
"""Most edits in a text: the paper's bound on the edit distance."""


def misspell(text: str, spared: Set[str], random: Random) -> str:
    """The text with a share of its words misspelt."""
    spans = chosen(text, spared, random, SHARE, MOST)
    return replaced(text, [((start, end), _misspelt(text[start:end], random)) for start, end in spans])


def _misspelt(word: str, random: Random) -> str:
    """One of the four edits; always another word."""
    at = random.randrange(len(word))
    other = random.choice([c for c in ascii_lowercase if c != word[at].lower()])
    swaps = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    edit = random.choice(["swap", "substitute", "delete", "insert"] if swaps else ["substitute", "delete", "insert"])
    if edit == "swap":
        i = random.choice(swaps)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if edit == "substitute":
        return word[:at] + other + word[at + 1 :]
    return word[:at] + word[at + 1 :] if edit == "delete" else word[:at] + other + word[at:]
