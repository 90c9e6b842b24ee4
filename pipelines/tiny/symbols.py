"""The symbols of the tiny world: every number, letter, bracket, word and skill name is one token."""

from __future__ import annotations

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
WORDS = tuple(word for kind in CLASSES for word in kind)
PAD, BOS, EOS, UNKNOWN = SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
EQUALS = "="

SYMBOLS = (*NUMBERS, *LETTERS, *OPENING, *CLOSING, *WORDS)
"""What items are made of, by the index that generators draw."""

NUMBER, LETTER = 0, len(NUMBERS)
OPEN = LETTER + len(LETTERS)
CLOSE = OPEN + len(OPENING)
WORD = CLOSE + len(CLOSING)
"""Index of the first number, letter, opening bracket, closing bracket and word in ``SYMBOLS``."""
