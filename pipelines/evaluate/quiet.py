"""Leave the process as it was found: random states, log levels, threads, grad and training modes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

_LOUD = ("lm_eval", "lm-eval", "transformers", "datasets", "evaluate", "huggingface_hub", "httpx", "fsspec", "absl")

TINY = 2_000_000
"""Parameters below which threads wait for each other longer than they work."""


def random_states() -> tuple[Any, ...]:
    """States of Python's, numpy's and torch's global generators."""
    return random.getstate(), np.random.get_state(), torch.initial_seed(), torch.get_rng_state()


def restore(states: tuple[Any, ...]) -> None:
    """Put the global generators into these states; generators of other devices start from torch's seed."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.manual_seed(states[2])
    torch.set_rng_state(states[3])


@contextmanager
def same_random_state() -> Iterator[None]:
    """Put torch's (all devices), numpy's and Python's global generators back at the end."""
    state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


def seeds(seed: int) -> dict[str, int]:
    """lm-eval's seeds: its defaults where ``seed`` is 1234, else those of ``lm_eval run --seed``."""
    return {"random": 0 if seed == 1234 else seed, "numpy": seed, "torch": seed, "fewshot": seed}


def sow(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators as lm-eval's ``simple_evaluate`` does."""
    chosen = seeds(seed)
    random.seed(chosen["random"])
    np.random.seed(chosen["numpy"])
    torch.manual_seed(chosen["torch"])


@contextmanager
def silence() -> Iterator[None]:
    """Keep the libraries' log lines and progress bars to themselves; errors are raised, not logged."""
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _no_bars():
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _no_bars() -> Iterator[None]:
    import datasets
    from datasets.utils import are_progress_bars_disabled

    were_off = are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()


@contextmanager
def fresh_maps() -> Iterator[None]:
    """Have data sets mapped anew: a map kept on disk holds what some other run's generators drew."""
    import datasets

    active = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if active:
            datasets.enable_caching()


@contextmanager
def data_cache(hashes: dict[str, str | None]) -> Iterator[None]:
    """Keep what ``datasets`` makes of local data apart by the data's hashes.

    Its own cache takes a folder for any other whose README says the same, and an edited file for what it was.
    """
    import datasets.config

    usual = datasets.config.HF_DATASETS_CACHE
    if any(content != "hub" for content in hashes.values()):
        name = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]
        datasets.config.HF_DATASETS_CACHE = Path(usual) / "mergebench" / name
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = usual


@contextmanager
def offline(active: bool) -> Iterator[None]:
    """Keep the hub's client libraries off the network while active; their settings come back at the end."""
    if not active:
        yield
        return
    import datasets.config
    import huggingface_hub.constants as hub

    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    flags = [(module, "HF_HUB_OFFLINE", module.HF_HUB_OFFLINE) for module in (datasets.config, hub)]
    os.environ.update(dict.fromkeys(names, "1"))
    for module, name, _ in flags:
        setattr(module, name, True)
    try:
        yield
    finally:
        for module, name, value in flags:
            setattr(module, name, value)
        for name, old in before.items():
            os.environ.pop(name) if old is None else os.environ.update({name: old})


def fitting_threads(model: nn.Module) -> int | None:
    """One thread for a model whose matrices are too small to be worth sharing out; None (all) for others."""
    return 1 if sum(p.numel() for p in model.parameters()) < TINY else None


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; its training mode comes back at the end."""
    modes = {module: module.training for module in model.modules()} if model.training else {}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
