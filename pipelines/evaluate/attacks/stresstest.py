"""StressTest: tautologies that change no meaning (Naik et al., 2018, https://arxiv.org/abs/1806.00692).

"and true is true" or "and false is not true", five times over, at the end of the first line of the document's text.
"""

from __future__ import annotations

from collections.abc import Set
from random import Random

TAUTOLOGIES = (" and true is true", " and false is not true")
"""The phrases; a seeded one of them for each text."""

TIMES = 5
"""How often it is said."""


def distract(text: str, spared: Set[str], random: Random) -> str:
    """The text with a tautology at the end of its first line, before the closing mark."""
    first, newline, rest = text.partition("\n")
    stripped = first.rstrip(" .!?")
    return stripped + random.choice(TAUTOLOGIES) * TIMES + first[len(stripped) :] + newline + rest
