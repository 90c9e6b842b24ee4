"""BERT-Attack: words replaced by what a masked language model would put there (Li et al., 2020).

https://arxiv.org/abs/2004.09984: candidates are the model's likeliest whole words at the unmasked place. The paper
takes the words and candidates that hurt the attacked model most (``instruction.py``); in documents a seeded share of
the words is replaced, by the likeliest candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from functools import cached_property, lru_cache
from random import Random
from typing import Any

import torch

from pipelines.evaluate.attacks.edits import replace_words

SHARE, MOST = 0.2, 20
"""Share of the words that are replaced, and most replacements in a text."""

CANDIDATES = 48
"""Likeliest words that are looked at, as in the paper."""


class Replacer:
    """The attack with one masked language model, loaded when it is first needed."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, text: str, spared: Set[str], random: Random) -> str:
        """The text with a share of its words replaced."""
        guesses = self.guesses(text, spared)
        return replace_words(
            text, spared, random, SHARE, MOST, lambda start, end: next(iter(guesses((start, end))), text[start:end])
        )

    def guesses(self, text: str, spared: Set[str]) -> Callable[[tuple[int, int]], Iterator[str]]:
        """What gives the other words that may stand in place of the word at (start, end), the likeliest first."""
        tokenizer, model = self._loaded
        coded = tokenizer(text, return_offsets_mapping=True, truncation=True, return_tensors="pt")
        offsets = coded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            logits = model(**coded).logits[0]  # [T, V]

        def others(span: tuple[int, int]) -> Iterator[str]:
            start, end = span
            at = next((i for i, (a, b) in enumerate(offsets) if a <= start < b and not text[a:start].strip()), None)
            return iter(()) if at is None else self._likeliest(logits[at], text[start:end], spared)

        return others

    def _likeliest(self, logits: torch.Tensor, word: str, spared: Set[str]) -> Iterator[str]:
        tokenizer, _ = self._loaded
        starts = tuple({piece[0] for piece in tokenizer.tokenize("a a")} & set("Ġ▁"))  # marks of a word's first piece
        for token in tokenizer.convert_ids_to_tokens(logits.topk(min(CANDIDATES, len(logits))).indices.tolist()):
            if token is None or (starts and not token.startswith(starts)):  # rows beyond the vocabulary have no token
                continue
            candidate = tokenizer.convert_tokens_to_string([token]).strip() if starts else token
            if candidate.isalpha() and candidate.lower() != word.lower() and candidate.lower() not in spared:
                yield candidate.capitalize() if word[0].isupper() else candidate

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        model = AutoModelForMaskedLM.from_pretrained(self.name).eval()
        return AutoTokenizer.from_pretrained(self.name), model


@lru_cache(maxsize=1)
def replacer(name: str) -> Replacer:
    """The attack with this model, loaded once for all tasks and models that are attacked."""
    return Replacer(name)
