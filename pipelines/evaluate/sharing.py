"""Which models may compute shared prefixes: known architectures in which every token attends to all before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

FAMILIES = frozenset(
    """
    apertus arcee cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5 exaone4 falcon gemma gemma2 gemma3_text glm glm4
    glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe helium hunyuan_v1_dense llama ministral
    mistral mixtral nemotron olmo olmo2 olmo3 olmoe opt phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3
    stablelm starcoder2
    """.split()  # noqa: SIM905
)
"""transformers' model types whose code was read, and run on branching trees, for this: tokens meet in attention only,
under the mask that is passed, and a token's position is what ``position_ids`` says."""

STEADY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that do not depend on the length of the sequence."""


def can_share(model: nn.Module, longest: int) -> bool:
    """Whether shared prefixes give a model's decisions on inputs of up to ``longest`` tokens.

    Only in float32: in 16 bits log-likelihoods tie or differ by their own rounding, and another order of the same sums
    decides between options. A window must hold the longest input: the tree's mask is passed to every layer.
    """
    config: Any = model.config
    layers = set(getattr(config, "layer_types", None) or ())
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return (
        type(model).__module__.startswith("transformers.models.")
        and config.model_type in FAMILIES
        and config._attn_implementation in ("sdpa", "eager")
        and all(p.dtype == torch.float32 for p in model.parameters())
        and layers <= {"full_attention", "sliding_attention"}
        and all(not window or longest <= window for window in windows)
        and not any(getattr(config, name, False) for name in ("alibi", "use_bidirectional_attention"))
        and _positions_are_steady(getattr(config, "rope_parameters", None) or {}, longest)
    )


def _positions_are_steady(rope: dict[str, Any], longest: int) -> bool:
    """Whether no rotary embedding (of any layer type) changes within ``longest`` tokens."""
    per_layer = [part for part in rope.values() if isinstance(part, dict)]
    for part in per_layer or [rope]:
        kind = part.get("rope_type", "default")
        switches = kind == "longrope" and longest > part.get("original_max_position_embeddings", 0)
        if switches or kind not in (*STEADY, "longrope"):
            return False
    return True
