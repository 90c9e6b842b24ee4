"""The adapter's other half: mergekit's own runner for its YAML configurations, with all methods registered."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import yaml

from mergeopt_core.merging import mergekit_api as _registers_ours  # noqa: F401


def run_config(
    text: str, out: str, *, source: str | None = None, seed: int = 0, device: str = "cpu", lora_cache: str | None = None
) -> None:
    """Run a mergekit YAML configuration (``text``) into the folder ``out``.

    ``source`` is what the card shows where that is not ``text``. mergekit keeps open checkpoints by path for as long as
    the process lives, and would read one that has been rewritten since as it was: they are forgotten before and after.
    Random states of Python, numpy and torch are left as found. Raises what mergekit raises.
    """
    from mergekit.config import MergeConfiguration  # takes seconds to import
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(quiet=True, random_seed=seed, device=device, lora_merge_cache=lora_cache)
    LoaderCache.loaders.clear()
    try:
        with _random_states_kept():
            run_merge(
                MergeConfiguration.model_validate(yaml.safe_load(text)), out, options, config_source=source or text
            )
    finally:
        LoaderCache.loaders.clear()


@contextmanager
def _random_states_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
