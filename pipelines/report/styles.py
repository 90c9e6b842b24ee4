"""A name's colour, shape and dashes, the same in every figure whatever else is drawn beside it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8366B5")
"""Okabe and Ito's colour-blind-safe palette without yellow and black, which vanish on white or dark, and a violet."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES = ((), (6, 2), (2, 2), (8, 2, 2, 2), (4, 4))
SEPARATOR = " · "
"""Between the parts of a line's name where several columns make the lines."""
SLOTS: tuple[tuple[str, ...], ...] = (
    ("task_arithmetic", "plain"), ("ties", "mergopt"), ("dare", "sam"), ("average", "linear", "asam"),
    ("model_stock", "tangent"), ("tsv_m",), ("iso_c",),
    ("task_arithmetic_sb",), ("ties_sb",), ("dare_linear",), ("mixup",), ("summed",), ("wudi",), ("iso_cts",),
    ("breadcrumbs",), ("ties_global",), ("dare_ties",), ("slerp",), ("fisher",), ("regmean",), ("della",),
)  # fmt: skip
"""Names that have a place of their own; a variant has the colour of its method, seven places on, and other dashes."""
REFERENCES: dict[str, tuple[int, ...]] = {
    "base": (6, 3),
    "pre-trained": (6, 3),
    "best expert": (2, 2),
    "mean of experts": (8, 2, 2, 2),
    "experts on their own tasks": (10, 3),
}
"""Dashes of the horizontal lines by name; any other is drawn through."""


@dataclass(frozen=True)
class Style:
    """How a line is drawn: a pair of colour and shape is used once up to 56 names."""

    color: str
    shape: str
    dash: tuple[int, ...]

    @property
    def tint(self) -> str:
        """The colour of a filled area, where no dashes can be seen: half way to white for a dashed line."""
        red, green, blue = (int(self.color[i : i + 2], 16) for i in (1, 3, 5))
        return "#" + "".join(f"{(c + 255) // 2:02X}" for c in (red, green, blue)) if self.dash else self.color


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name (repeats are one), which depends on the name and, where two want one place, on the order.

    Of names in parts the first gives the colour, the others dashes and shape: ``ties · plain``, ``ties · mergopt``.
    """
    split = {name: name.partition(SEPARATOR) for name in names}
    heads = list(dict.fromkeys(head for head, _, _ in split.values()))
    tails = list(dict.fromkeys(tail for _, _, tail in split.values()))
    if len(heads) == 1 and len(tails) > 1:
        slots = _slots(tails)
        return {name: _style(slots[tail], 0) for name, (_, _, tail) in split.items()}
    slots = _slots(heads)
    return {name: _style(slots[head], tails.index(tail)) for name, (head, _, tail) in split.items()}


def _style(slot: int, variant: int) -> Style:
    dash = DASHES[(slot // len(COLORS) + variant) % len(DASHES)]
    return Style(COLORS[slot % len(COLORS)], SHAPES[(slot + 3 * variant) % len(SHAPES)], dash)


def _slots(names: list[str]) -> dict[str, int]:
    """Known names first; another's place follows from its letters, or is the next free one, of a free colour if any."""
    own = {name: place for place, alike in enumerate(SLOTS) for name in alike}
    slots: dict[str, int] = {}
    count = len(COLORS) * len(SHAPES)
    for name in sorted(names, key=lambda n: n not in own):
        start = own.get(name, zlib.crc32(name.encode()) % len(COLORS))
        places = [(start + step) % count for step in range(count)]
        free = [place for place in places if place not in slots.values()]
        slots[name] = (free or places)[0]
    return slots
