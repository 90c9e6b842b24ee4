"""The tokenizer of the tiny world: a word is a token; text from elsewhere falls apart into characters."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipelines.tiny.skills import SKILLS
from pipelines.tiny.symbols import BOS, EOS, EQUALS, PAD, SPECIAL, SYMBOLS, UNKNOWN

CONTEXT = 512
"""Longest sequence of the tiny model, in tokens."""


def vocabulary() -> list[str]:
    """Every symbol in the order of its token id: special, equals sign, items' symbols, skill names, punctuation."""
    rest = string.ascii_lowercase + string.punctuation
    return list(dict.fromkeys([*SPECIAL, EQUALS, *SYMBOLS, *SKILLS, *rest]))


def tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: splits at white space, then takes the longest known piece of each word.

    Every word of the tiny world is one token. Other ASCII text splits into letters, digits and signs, so that ordinary
    benchmarks can be run on the tiny model too; words with further characters are unknown. No token is added by itself.
    """
    ids = {symbol: i for i, symbol in enumerate(vocabulary())}
    pieces = Tokenizer(
        models.WordPiece(ids, unk_token=UNKNOWN, continuing_subword_prefix="", max_input_chars_per_word=100)
    )
    pieces.normalizer = normalizers.Lowercase()
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
