"""Generated pictures in ten tasks: the same arguments give the same pixels on every machine.

A task is a list of classes and a function that draws one of them: a mask [S, S] of what is ink, put in a dark colour on
a light one, under noise. Place, size and colours vary, so a class is told by form (in ``colours``: by colour).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipelines.tiny.skills import SPLITS, Split

VERSION = 1
"""Part of every key that depends on generated pictures; goes up whenever the same arguments would give others."""

SIZE = 24
"""Pixels a side."""
PICTURES: dict[Split, int] = {"train": 1024, "validation": 256, "test": 512}
"""Pictures of a split."""
NOISE = 14.0
"""Standard deviation of a pixel's noise, of 255."""

CANVAS = 32.0
"""Units of length a side that everything is drawn in."""
Y, X = (np.mgrid[0:SIZE, 0:SIZE] + 0.5) * (CANVAS / SIZE)
Mask = np.ndarray
Draw = Callable[[np.random.RandomState, int], Mask]

GLYPHS = {
    "0": "111101101101111", "1": "010110010010111", "2": "111001111100111", "3": "111001111001111",
    "4": "101101111001001", "5": "111100111001111", "6": "111100111101111", "7": "111001001001001",
    "8": "111101111101111", "9": "111101111001111", "a": "010101111101101", "c": "111100100100111",
    "e": "111100111100111", "f": "111100111100100", "h": "101101111101101", "j": "001001001101111",
    "l": "100100100100111", "p": "111101111100100", "t": "111010010010010", "u": "101101101101111",
}  # fmt: skip
"""Digits and letters as five rows of three."""
COLOURS = {
    "red": (210, 30, 40), "green": (40, 160, 60), "blue": (40, 70, 210), "yellow": (235, 215, 50),
    "purple": (140, 50, 170), "orange": (230, 120, 30), "black": (15, 15, 15),
}  # fmt: skip


def _frame(rng: np.random.RandomState, low: float, high: float, shift: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [S, S] around a shifted middle, in units of a random size."""
    middle = CANVAS / 2 + rng.uniform(-shift, shift, 2)
    size = rng.uniform(low, high)
    return (X - middle[0]) / size, (Y - middle[1]) / size


def _shape(rng: np.random.RandomState, label: int) -> Mask:
    u, v = _frame(rng, 8.0, 12.0)
    square = np.maximum(abs(u), abs(v))
    return (
        u * u + v * v < 1,
        square < 0.85,
        (v < 0.8) & (v > -0.9) & (abs(u) < (v + 0.9) / 1.7),
        (square < 1) & (np.minimum(abs(u), abs(v)) < 0.3),
        (u * u + v * v < 1) & (u * u + v * v > 0.4),
        abs(u) + abs(v) < 1.1,
    )[label]


def _texture(rng: np.random.RandomState, label: int) -> Mask:
    u, v = _frame(rng, 1.1, 1.9)
    waves = np.sin(u), np.sin(v), np.sin((u + v) / math.sqrt(2)), np.sin(u) * np.sin(v)
    return (np.minimum(np.sin(u), np.sin(v)) > 0.2) if label == 4 else waves[label] > 0


def _glyph(rng: np.random.RandomState, name: str) -> Mask:
    u, v = _frame(rng, 4.0, 5.6, shift=3.0)
    column, row = np.floor(u + 1.5).astype(int), np.floor(v + 2.5).astype(int)
    inside = (column >= 0) & (column < 3) & (row >= 0) & (row < 5)
    cells = np.array([mark == "1" for mark in GLYPHS[name]]).reshape(5, 3)
    return inside & cells[row.clip(0, 4), column.clip(0, 2)]


def _spots(centres: np.ndarray, radius: float) -> Mask:
    """Round spots at centres [n, 2]."""
    return ((X[..., None] - centres[:, 0]) ** 2 + (Y[..., None] - centres[:, 1]) ** 2 < radius**2).any(axis=-1)


def _count(rng: np.random.RandomState, label: int) -> Mask:
    cells = rng.permutation(9)[: label + 1]
    centres = np.stack([cells % 3, cells // 3], axis=1) * 10.0 + 6.0 + rng.uniform(-1.5, 1.5, (label + 1, 2))
    return _spots(centres, rng.uniform(2.2, 3.4))


def _place(rng: np.random.RandomState, label: int) -> Mask:
    centre = np.array([(8, 8), (24, 8), (8, 24), (24, 24), (16, 16)][label]) + rng.uniform(-2.5, 2.5, 2)
    return _spots(centre[None], rng.uniform(3.0, 6.0))


def _line(rng: np.random.RandomState, label: int) -> Mask:
    u, v = _frame(rng, 10.0, 14.0)
    angle = math.radians(45 * label + rng.uniform(-10, 10))
    along, across = u * math.cos(angle) - v * math.sin(angle), u * math.sin(angle) + v * math.cos(angle)
    return (abs(along) < 1) & (abs(across) < 0.16)


def _arrow(rng: np.random.RandomState, label: int) -> Mask:
    u, v = _frame(rng, 9.0, 12.0)
    a, b = ((-v, u), (v, u), (-u, v), (u, v))[label]  # a points where the arrow does
    return ((a > -1) & (a < 0.2) & (abs(b) < 0.2)) | ((a >= 0.2) & (a < 1) & (abs(b) < (1 - a) * 0.8))


def _face(rng: np.random.RandomState, label: int) -> Mask:
    u, v = _frame(rng, 11.0, 14.0, shift=2.0)
    eyes = (abs(abs(u) - 0.35) < 0.13) & (abs(v + 0.3) < 0.13)
    bend = (0.55 - u * u * 2.2, 0.3 + u * u * 2.2, np.full_like(u, 0.45))[label]
    mouth = (abs(v - bend) < 0.13) & (abs(u) < 0.45)
    return (u * u + v * v < 1) & ~eyes & ~mouth


def _glyphs(names: str) -> Draw:
    return lambda rng, label: _glyph(rng, names[label])


@dataclass(frozen=True)
class Pictures:
    """A task: the words of its classes, the texts that they are put into, and what draws one."""

    classes: tuple[str, ...]
    template: str
    draw: Draw


SKILLS = {
    "shapes": Pictures(("circle", "square", "triangle", "cross", "ring", "diamond"), "a picture of a {}", _shape),
    "textures": Pictures(
        ("upright stripes", "flat stripes", "slanted stripes", "checks", "dots"), "a surface of {}", _texture
    ),
    "digits": Pictures(tuple("0123456789"), "a picture of the number {}", _glyphs("0123456789")),
    "letters": Pictures(tuple("acefhjlptu"), "a picture of the letter {}", _glyphs("acefhjlptu")),
    "colours": Pictures(tuple(COLOURS), "a spot that is {}", lambda rng, label: _shape(rng, 0)),
    "counts": Pictures(("one", "two", "three", "four", "five"), "a picture of {} spots", _count),
    "places": Pictures(
        ("top left", "top right", "bottom left", "bottom right", "middle"), "a spot at the {}", _place
    ),
    "lines": Pictures(("flat", "rising", "upright", "falling"), "a line that is {}", _line),
    "arrows": Pictures(("up", "down", "left", "right"), "an arrow to the {}", _arrow),
    "faces": Pictures(("happy", "sad", "calm"), "a face that looks {}", _face),
}  # fmt: skip
"""Every task by its name."""


@lru_cache(maxsize=64)
def pictures(skill: str, split: Split, n: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The first n pictures (by default all) of a task's split: pixels uint8 [n, S, S, 3] and labels [n].

    Pictures for a smaller n are the first ones for a larger n; another seed or split draws others.

    Raises:
        ValueError: Unknown task or split.
    """
    for what, name, known in (("picture task", skill, SKILLS), ("split", split, SPLITS)):
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}: valid names are {', '.join(known)}")
    digest = hashlib.blake2b(f"pictures {skill} {split} {seed}".encode(), digest_size=4).digest()
    rng = np.random.RandomState(int.from_bytes(digest, "big"))
    task, count = SKILLS[skill], PICTURES[split] if n is None else n
    labels = np.arange(count) % len(task.classes)
    return np.stack([_picture(rng, skill, int(label)) for label in labels]), labels


def _picture(rng: np.random.RandomState, skill: str, label: int) -> np.ndarray:
    mask = SKILLS[skill].draw(rng, label)
    ink, paper = _colours(rng, COLOURS[SKILLS[skill].classes[label]] if skill == "colours" else None)
    clean = np.where(mask[..., None], ink, paper)
    return (clean + rng.normal(0, NOISE, clean.shape)).clip(0, 255).astype(np.uint8)


def _colours(rng: np.random.RandomState, ink: tuple[int, int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Dark ink, or that of a class of colour, and light paper."""
    own = rng.uniform(0, 110, 3) if ink is None else np.array(ink) + rng.uniform(-25, 25, 3)
    return own, rng.uniform(150, 255, 3)
