"""BERT-Attack: words replaced by what a masked language model would put there (Li et al., 2020).

https://arxiv.org/abs/2004.09984: candidates are the model's likeliest words at the unmasked place. The paper takes
the words and candidates that hurt the attacked model most; here a seeded share of the words, and the likeliest
candidate that is another whole word.
"""

from __future__ import annotations

from collections.abc import Set
from random import Random

import torch

from pipelines.evaluate.attacks.words import chosen, replaced

SHARE = 0.2
"""Share of the words that are replaced."""

MOST = 20
"""Most replacements in a text."""

CANDIDATES = 48
"""Likeliest words that are looked at, as in the paper."""


class Replacer:
    """The attack with one masked language model, loaded when it is first needed."""

    def __init__(self, name: str):
        self.name = name
        self._loaded: tuple | None = None

    def __call__(self, text: str, spared: Set[str], random: Random) -> str:
        """The text with a share of its words replaced."""
        tokenizer, model = self._model()
        spans = chosen(text, spared, random, SHARE, MOST)
        coded = tokenizer(text, return_offsets_mapping=True, truncation=True, return_tensors="pt")
        offsets = coded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            logits = model(**coded).logits[0]  # [T, V]
        changes = []
        for start, end in spans:
            at = next((i for i, (a, b) in enumerate(offsets) if a <= start < b and not text[a:start].strip()), None)
            word = text[start:end] if at is None else self._likeliest(logits[at], text[start:end], spared)
            changes.append(((start, end), word))
        return replaced(text, changes)

    def _likeliest(self, logits: torch.Tensor, word: str, spared: Set[str]) -> str:
        tokenizer, _ = self._model()
        starts = tuple({piece[0] for piece in tokenizer.tokenize("a a")} & set("Ġ▁"))  # marks of a word's first piece
        for token in tokenizer.convert_ids_to_tokens(logits.topk(min(CANDIDATES, len(logits))).indices.tolist()):
            if token is None or (starts and not token.startswith(starts)):  # rows beyond the vocabulary have no token
                continue
            candidate = tokenizer.convert_tokens_to_string([token]).strip() if starts else token
            if candidate.isalpha() and candidate.lower() != word.lower() and candidate.lower() not in spared:
                return candidate.capitalize() if word[0].isupper() else candidate
        return word

    def _model(self) -> tuple:
        if self._loaded is None:
            from transformers import AutoModelForMaskedLM, AutoTokenizer

            model = AutoModelForMaskedLM.from_pretrained(self.name).eval()
            self._loaded = AutoTokenizer.from_pretrained(self.name), model
        return self._loaded
