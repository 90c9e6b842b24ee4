"""Random numbers that belong to a tensor: the same in any order of tensors, on any number of threads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def tensor_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed from the recipe's seed and what the numbers belong to (method, tensor name, expert).

    The parts are joined with a character that no tensor name holds, and hashed, so near names share nothing.
    """
    text = "\x1f".join([str(int(seed)), *(str(part) for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *parts: object) -> torch.Generator:
    """A CPU generator seeded by ``tensor_seed``: masks drawn with it are the same whatever the device."""
    return torch.Generator(device="cpu").manual_seed(tensor_seed(seed, *parts))


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
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators (the CPU's and the device's) for a while, then put them back as they were."""
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        yield
