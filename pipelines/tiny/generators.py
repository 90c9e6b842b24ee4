"""The symbols of the tiny skills, each one token, and one generator per skill, which draws n random items at once.

A generator takes a frozen-stream ``RandomState`` and n and returns ``(prompt [n, L], answer [n], others [n, 3])`` as
indices into ``SYMBOLS``: what stands between the skill's name and the equals sign, the right answer, and three wrong
options of its kind. The order of its draws is part of the data: another order makes other items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NUMBERS = tuple(str(i) for i in range(64))
LETTERS = tuple("abcdefghijklmnop")
OPENING, CLOSING = tuple("([{<"), tuple(")]}>")
CLASSES = (
    ("cat", "dog", "horse", "cow", "sheep", "goat", "pig", "duck"),
    ("red", "green", "blue", "pink", "brown", "black", "white", "grey"),
    ("bread", "rice", "soup", "cheese", "apple", "pear", "cake", "egg"),
    ("hammer", "saw", "drill", "nail", "screw", "spade", "rake", "axe"),
    ("rain", "snow", "wind", "fog", "hail", "storm", "cloud", "frost"),
    ("violin", "flute", "drum", "harp", "piano", "horn", "cello", "organ"),
)
SYMBOLS = (*NUMBERS, *LETTERS, *OPENING, *CLOSING, *(word for kind in CLASSES for word in kind))

NUMBER, LETTER = 0, len(NUMBERS)
OPEN = LETTER + len(LETTERS)
CLOSE = OPEN + len(OPENING)
WORD = CLOSE + len(CLOSING)
"""Index of the first number, letter, opening bracket, closing bracket and word in ``SYMBOLS``."""

Draw = tuple[np.ndarray, np.ndarray, np.ndarray]
Generator = Callable[[np.random.RandomState, int], Draw]


def distinct(rng: np.random.RandomState, n: int, pool: int, size: int) -> np.ndarray:
    """Draw rows of ``size`` distinct integers below ``pool``, in random order: [n, size]."""
    return rng.random_sample((n, pool)).argsort(axis=1)[:, :size]


def shuffled(rng: np.random.RandomState, rows: np.ndarray) -> np.ndarray:
    """Permute every row [n, L] on its own."""
    return np.take_along_axis(rows, rng.random_sample(rows.shape).argsort(axis=1), axis=1)


def three_of(rng: np.random.RandomState, rows: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Three random entries of every row [n, L], of those that are ``wrong`` [n, L]: [n, 3]."""
    order = np.where(wrong, rng.random_sample(rows.shape), 2.0)
    return np.take_along_axis(rows, order.argsort(axis=1)[:, :3], axis=1)


def near(rng: np.random.RandomState, answer: np.ndarray, low: int, high: int, reach: int = 4) -> np.ndarray:
    """Three distinct numbers in [low, high] within ``reach`` of the answer and not equal to it: [n, 3]."""
    options = answer[:, None] + np.array([k for k in range(-reach, reach + 1) if k])  # [n, 2 * reach]
    return three_of(rng, options, (options >= low) & (options <= high))


def pick(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Entry ``index`` [n] of every row [n, L]: [n]."""
    return rows[np.arange(len(rows)), index]


def options(rng: np.random.RandomState, rows: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry ``index`` [n] of every row [n, L ≥ 4] as the answer [n], and three others of the row [n, 3]."""
    return pick(rows, index), three_of(rng, rows, np.arange(rows.shape[1]) != index[:, None])


def add(rng: np.random.RandomState, n: int) -> Draw:
    """The sum of two numbers below 32."""
    pair = rng.randint(0, 32, (n, 2))
    total = pair.sum(axis=1)
    return NUMBER + pair, NUMBER + total, NUMBER + near(rng, total, 0, 62, reach=16)


def dist(rng: np.random.RandomState, n: int) -> Draw:
    """The absolute difference of two numbers."""
    pair = rng.randint(0, len(NUMBERS), (n, 2))
    gap = np.abs(pair[:, 0] - pair[:, 1])
    return NUMBER + pair, NUMBER + gap, NUMBER + near(rng, gap, 0, 63, reach=16)


def med(rng: np.random.RandomState, n: int) -> Draw:
    """The median of five distinct numbers."""
    five = NUMBER + distinct(rng, n, len(NUMBERS), 5)
    return five, *options(rng, five, five.argsort(axis=1)[:, 2])


def second(rng: np.random.RandomState, n: int) -> Draw:
    """The second of four distinct letters in alphabetical order."""
    four = LETTER + distinct(rng, n, len(LETTERS), 4)
    return four, *options(rng, four, four.argsort(axis=1)[:, 1])


def count(rng: np.random.RandomState, n: int) -> Draw:
    """How often the letter a occurs in a row of seven."""
    others = rng.randint(1, len(LETTERS), (n, 7))
    row = shuffled(rng, np.where(np.arange(7) < rng.randint(0, 8, n)[:, None], 0, others))
    times = (row == 0).sum(axis=1)
    return LETTER + row, NUMBER + times, NUMBER + near(rng, times, 0, 7)


def seq(rng: np.random.RandomState, n: int) -> Draw:
    """The letter that continues a row of period two, three or four."""
    letters = LETTER + distinct(rng, n, len(LETTERS), 4)
    places = np.arange(8)[None, :] % rng.randint(2, 5, n)[:, None]  # [n, 8]
    return np.take_along_axis(letters, places[:, :7], axis=1), *options(rng, letters, places[:, 7])


def odd(rng: np.random.RandomState, n: int) -> Draw:
    """The one word of four that is of another kind than the rest."""
    kinds = distinct(rng, n, len(CLASSES), 2)
    size = len(CLASSES[0])
    three = kinds[:, :1] * size + distinct(rng, n, size, 3)
    odd_one = kinds[:, 1] * size + rng.randint(0, size, n)
    row = shuffled(rng, np.concatenate([three, odd_one[:, None]], axis=1))
    return WORD + row, WORD + odd_one, WORD + three


def close(rng: np.random.RandomState, n: int) -> Draw:
    """The bracket that closes the innermost open one of seven."""
    length, kinds = 7, len(OPENING)
    stack = np.zeros((n, length + 1), dtype=int)
    depth = np.zeros(n, dtype=int)
    row = np.zeros((n, length), dtype=int)
    for t in range(length):
        opens = (depth == 0) | (rng.random_sample(n) < 0.55)
        kind = np.where(opens, rng.randint(0, kinds, n), pick(stack, depth))
        row[:, t] = np.where(opens, OPEN, CLOSE) + kind
        depth += np.where(opens, 1, -1)
        stack[opens, depth[opens]] = kind[opens]
    answer = pick(stack, depth)  # an odd length leaves at least one open
    return row, CLOSE + answer, CLOSE + (answer[:, None] + np.arange(1, kinds)) % kinds


def at(rng: np.random.RandomState, n: int, backwards: bool = False) -> Draw:
    """The letter at a place counted from the left, among six."""
    row = LETTER + distinct(rng, n, len(LETTERS), 6)
    place = rng.randint(0, 6, n)
    prompt = np.concatenate([NUMBER + place[:, None] + 1, row], axis=1)
    return prompt, *options(rng, row, 5 - place if backwards else place)


def back(rng: np.random.RandomState, n: int) -> Draw:
    """The letter at a place counted from the right, among six."""
    return at(rng, n, backwards=True)


def most(rng: np.random.RandomState, n: int) -> Draw:
    """The letter that occurs three times where the others occur once or twice."""
    letters = LETTER + distinct(rng, n, len(LETTERS), 4)
    return shuffled(rng, letters[:, [0, 0, 0, 1, 1, 2, 3]]), letters[:, 0], letters[:, 1:]


def top(rng: np.random.RandomState, n: int) -> Draw:
    """The largest of four distinct numbers."""
    four = NUMBER + distinct(rng, n, len(NUMBERS), 4)
    return four, *options(rng, four, four.argmax(axis=1))


SKILLS: dict[str, Generator] = {
    skill.__name__: skill for skill in (add, dist, med, second, count, seq, odd, close, at, back, most, top)
}
"""Every skill by its name, which is the first word of its prompts."""
