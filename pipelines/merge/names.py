"""What tensors are, told by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.weight$|^head\.weight$")
"""Output head."""
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|tokens_embed|embeddings)\.weight$"
)
"""Input embedding."""
VOCABULARY = re.compile(rf"{EMBEDDING.pattern}|{HEAD.pattern}|(^|\.)(lm_head|embed_out|output_projection)\.bias$")
"""Tensors with one row a token."""
BUFFERS = re.compile(r"rotary_emb\.inv_freq$|attn\.(bias|masked_bias)$|attention\.(bias|masked_bias)$|position_ids$")
"""Constants that some versions of transformers saved and others recompute: never merged into, never missed."""


def first(pattern: re.Pattern[str], names: Iterable[str]) -> str | None:
    """The shortest name that matches, if any does."""
    return min((name for name in names if pattern.search(name)), key=len, default=None)
