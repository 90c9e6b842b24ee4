"""Random numbers that belong to a tensor, the same in any order and on any number of threads; guards of states."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def tensor_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed from the recipe's seed and what the numbers belong to (method, tensor name, expert).

    The parts are joined with a character that no tensor name holds, and hashed, so near names share nothing.
    """
    text = "\x1f".join([str(int(seed)), *(str(part) for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread, where the order of a sum or of random numbers would depend on the number."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def random_state_restored(seed: int | None = None) -> Iterator[None]:
    """Put torch's (all devices), numpy's and Python's global generators back at the end; seeded inside, if asked."""
    python, array = random.getstate(), np.random.get_state()
    # a GPU that nobody has used yet is not woken for this
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
