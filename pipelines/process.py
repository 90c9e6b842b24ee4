"""What a stage changes of its process for a while and puts back: threads, random states, log levels, the network."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

_LOUD = ("lm_eval", "lm-eval", "transformers", "datasets", "evaluate", "huggingface_hub", "httpx", "fsspec", "absl")

TINY = 2_000_000
"""Parameters below which threads wait for each other longer than they work."""


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Give torch this many CPU threads inside (None: as many as it has)."""
    before = torch.get_num_threads()
    if count is not None and count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def fitting_threads(model: nn.Module) -> int | None:
    """One thread for a model whose matrices are too small to be worth sharing out; None (all) for others."""
    return 1 if sum(p.numel() for p in model.parameters()) < TINY else None


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its inputs; of one that accelerate spread over several devices, what its hook says."""
    hook = getattr(model, "_hf_hook", None)
    place = getattr(hook, "execution_device", None)
    return next(model.parameters()).device if place is None else torch.device(place)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, or in the host for the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def give_back() -> None:
    """Give back what is held but not in use, of the host and of the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def random_states() -> tuple[Any, ...]:
    """States of Python's, numpy's and torch's global generators."""
    return random.getstate(), np.random.get_state(), torch.initial_seed(), torch.get_rng_state()


def restore(states: tuple[Any, ...]) -> None:
    """Put the global generators into these states; generators of other devices start from torch's seed."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.manual_seed(states[2])
    torch.set_rng_state(states[3])


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
    """Keep the libraries' log lines, advice and progress bars to themselves; errors are raised, not logged."""
    import datasets
    from datasets.utils import are_progress_bars_disabled
    from transformers.utils import logging as transformers

    levels = {name: logging.getLogger(name).level for name in _LOUD}
    bars = transformers.is_progress_bar_enabled(), not are_progress_bars_disabled()
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for shown, enable in zip(bars, (transformers.enable_progress_bar, datasets.enable_progress_bars)):
            if shown:
                enable()


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
    modules: tuple[Any, ...] = (datasets.config, hub)
    flags = {module: module.HF_HUB_OFFLINE for module in modules}
    os.environ.update(dict.fromkeys(names, "1"))
    for module in flags:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.HF_HUB_OFFLINE = flag
        for name, old in before.items():
            os.environ.pop(name) if old is None else os.environ.update({name: old})


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


@contextmanager
def uncollected() -> Iterator[None]:
    """What exists now is left out of garbage collection inside: the Trainer collects, and a long study holds much."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
