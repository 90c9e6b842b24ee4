"""What no value of a configuration may be, whatever its key: not finite, beyond 64 bits, out of range, unprintable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from conf.errors import UNSEEN, UserError, redacted

MOST = (1 << 63) - 1
SEED = (1 << 32) - 1
"""The largest seed that numpy's global generator takes, which the Trainer seeds."""
TEXTS = ("about", "separator")
"""Fields that may hold line breaks."""
LONGEST = 4096
"""Characters of a text, but for ``about``."""
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, SEED), "seeds": (0, SEED),
    "executor.threads": (1, 1024), "executor.workers": (1, 1024), "executor.retries": (0, 100),
    "executor.price": (0, 1e6), "executor.vllm_memory": (0.01, 0.99),
    "sampler.samples": (1, 100_000), "sampler.orders": (1, 1000), "sampler.draws": (1, 1000),
    "sampler.sizes": (1, 1000),
    "statistics.confidence": (0.01, 0.9999), "statistics.resamples": (1, 1_000_000),
    "finetuning.rho": (0, 1e30), "finetuning.eta": (0, 1e30), "finetuning.scale": (0, 1e30),
    "optimizer.lr": (0, 1e38), "optimizer.weight_decay": (0, 1e6), "optimizer.eps": (0, 1),
    "optimizer.momentum": (0, 1), "optimizer.betas": (0, 1),
    "lora.rank": (0, 65_536), "lora.dropout": (0, 1), "lora.alpha": (0, 1e6),
    "training.steps": (1, 10**9), "training.epochs": (1e-9, 1e6), "training.batch_size": (1, 10**6),
    "training.accumulation": (1, 10**6), "training.ranks": (1, 65_536),
    "training.clip": (0, 1e9), "training.warmup_steps": (0, 10**9), "training.max_length": (1, 10**8),
    "training.save_steps": (1, 10**9),
    "task.limit": (1, 10**12), "task.epochs": (0, 1e6),
    "suite.batch_size": (1, 10**6), "suite.batch_tokens": (1, 10**9), "suite.max_length": (1, 10**8),
    "num_fewshot": (0, 10_000),
    "budget": (1e-6, 1e6), "scale.lr": (1e-12, 1e12), "scale.batch_size": (1e-6, 1e6), "scale.offset": (1e-12, 1e12),
    "collect.examples": (1, 10**9), "base.hidden": (1, 65_536), "base.layers": (1, 1000), "base.steps": (0, 10**9),
    "search.trials": (1, 1_000_000), "search.points": (1, 10_000), "search.startup": (1, 1_000_000),
    "search.batch": (1, 10_000), "search.estimate_from": (2, 10**9), "search.top": (1, 10_000),
    "search.steps": (1, 10**6), "search.lr": (0, 1e3), "search.documents": (1, 10**6),
    "gen_kwargs.max_gen_toks": (1, 10**8), "gen_kwargs.max_new_tokens": (1, 10**8), "gen_kwargs.max_tokens": (1, 10**8),
    "gen_kwargs.max_completion_tokens": (1, 10**8), "gen_kwargs.temperature": (0, 1e6), "gen_kwargs.top_p": (1e-9, 1),
    "gen_kwargs.min_p": (0, 1), "gen_kwargs.typical_p": (1e-9, 1), "gen_kwargs.top_k": (0, 10**9),
    "gen_kwargs.repetition_penalty": (1e-6, 1e6), "gen_kwargs.num_beams": (1, 10_000),
}  # fmt: skip
"""Smallest and largest value, by the end of the key; of a list that of each entry."""


def check_values(config: Any, part: str = "") -> None:
    """UserError for the first value that means nothing: told with its key and what it may be.

    ``part`` is the key of a part of a configuration, such as training.
    """
    for key, value in _leaves(config, part):
        if isinstance(value, str):
            _check_text(key, value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_number(key, value)


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value below a node with its dotted key, and the keys of tables as texts of their own."""
    if is_dataclass(node):
        for field in fields(node):
            yield from _leaves(getattr(node, field.name), f"{key}.{field.name}".lstrip("."))
    elif isinstance(node, dict):
        for name, below in node.items():
            yield f"a key of {key}", str(name)
            yield from _leaves(below, f"{key}.{name}")
    elif isinstance(node, (list, tuple)):
        for below in node:
            yield from _leaves(below, key)
    else:
        yield key, node


def _check_text(key: str, value: str) -> None:
    name = key.rpartition(".")[2]
    if name != "about" and len(value) > LONGEST:
        raise UserError(f"{key} has {len(value)} characters", where=key[:80], do=f"give at most {LONGEST}")
    if redacted(value) != value:
        what = f"{key} holds what looks like a token or a password, and a configuration is told to others"
        raise UserError(what, where=value[:80], do="leave it out: services read theirs from the environment")
    unseen = UNSEEN.search(value.replace("\t", ""))
    if unseen or ("\n" in value and name not in TEXTS):
        raise UserError(f"{key} holds a control character", where=repr(value[:80]), do="write it without")


def _check_number(key: str, value: float) -> None:
    if not math.isfinite(value) or abs(value) > (MOST if isinstance(value, int) else math.inf):
        raise UserError(f"{key} is {value}", where=key, do="give a finite number of 64 bits at most")
    for end, (low, high) in RANGES.items():
        if f".{key}".endswith(f".{end}") and not low <= value <= high:
            raise UserError(f"{key} is {value}", where=key, do=f"give {low:.15g} to {high:.15g}")
