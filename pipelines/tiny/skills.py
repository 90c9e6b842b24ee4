"""The items of the tiny skills: the same arguments give the same items on every machine.

An item reads ``<skill> <symbols …> =`` and has four options of one token each. A hash of the prompt decides its split,
for pre-training too, so no prompt that is scored was ever trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypedDict

import numpy as np

from pipelines.tiny.generators import SKILLS, SYMBOLS

VERSION = 1
"""Part of every key that depends on generated data; goes up whenever the same arguments would give other items."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
EQUALS = "="
DEFAULT_ITEMS = 2048
_CHUNK = 1024


@dataclass(frozen=True)
class Item:
    """One multiple-choice question: ``choices[target] == answer``."""

    prompt: str
    answer: str
    choices: tuple[str, ...]
    target: int


class Row(TypedDict):
    """One training example."""

    prompt: str
    completion: str


def split_of(prompt: str) -> Split:
    """Split that a prompt belongs to: half of all prompts train, a sixth validate, a third test."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).digest()
    sixth = int.from_bytes(digest, "big") % 6
    return "train" if sixth < 3 else "validation" if sixth < 4 else "test"


def items(skill: str, split: Split, n: int | None = None, seed: int = 0) -> list[Item]:
    """The first n items (2048 by default) of a skill's split, with distinct prompts; fewer where it has no more.

    Items for a smaller n are the first ones for a larger n; another seed draws other items of the same split.

    Raises:
        ValueError: Unknown skill or split.
    """
    if skill not in SKILLS:
        raise ValueError(f"unknown skill {skill!r}: valid names are {', '.join(SKILLS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: valid names are {', '.join(SPLITS)}")
    return list(_items(skill, split, DEFAULT_ITEMS if n is None else n, seed))


def training_rows(skill: str, split: Split = "train", n: int | None = None, seed: int = 0) -> list[Row]:
    """Items as prompt and completion; the completion is a space and the answer, for an end-of-sequence to follow."""
    return [{"prompt": item.prompt, "completion": " " + item.answer} for item in items(skill, split, n, seed)]


@lru_cache(maxsize=128)
def _items(skill: str, split: Split, n: int, seed: int) -> tuple[Item, ...]:
    digest = hashlib.blake2b(f"{skill} {split} {seed}".encode(), digest_size=4).digest()
    rng = np.random.RandomState(int.from_bytes(digest, "big"))
    found: dict[str, Item] = {}
    before = -1
    while before < len(found) < n:  # a chunk that brings nothing new: the skill has no more
        before = len(found)
        for item in _chunk(skill, rng):
            if split_of(item.prompt) == split:
                found.setdefault(item.prompt, item)
    return tuple(found.values())[:n]


def _chunk(skill: str, rng: np.random.RandomState) -> Iterator[Item]:
    prompts, answers, others = SKILLS[skill](rng, _CHUNK)
    options = np.concatenate([answers[:, None], others], axis=1)  # [n, 4], the answer first
    order = rng.random_sample(options.shape).argsort(axis=1)
    symbols = np.array(SYMBOLS, dtype=object)
    words, choices = symbols[prompts].tolist(), symbols[np.take_along_axis(options, order, axis=1)].tolist()
    for own, four, target in zip(words, choices, (order == 0).argmax(axis=1).tolist()):
        yield Item(" ".join([skill, *own, EQUALS]), four[target], tuple(four), target)
