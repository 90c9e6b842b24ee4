"""DARE: drop entries of each task vector at random, rescale what is left, merge by a base method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, fast_path, method
from mergeopt_core.merging.trimming import agreeing_, trim
from mergeopt_core.merging.updates import BLOCK, DEVICE_BLOCK, Updates, block_size, blocks, flat, subtract, total
from mergeopt_core.randomness import tensor_seed

Rescale = Literal["paper", "realised", "l1", "none"]


def mask_pieces(seed: int, expert: object, tensor: str, count: int, drop_rate: float) -> Iterator[Tensor]:
    """True where an entry of an expert's flat task vector stays, ``BLOCK`` entries at a time; each stays with 1 − p.

    The numbers come from generators that are seeded by (seed, expert, tensor), so a mask does not depend on other
    tensors or experts, on their order, on threads or on the device. An entry is dropped where 16 random bits are below
    ⌊2¹⁶ p⌋, and where they are equal to it with the probability that is still missing.
    """
    own = tensor_seed(seed, "dare", expert, tensor)
    source, rest = (np.random.Generator(np.random.SFC64(seed)) for seed in (own, [own, 1]))
    limit, missing = int(drop_rate * 2**16), drop_rate * 2**16 % 1
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        if drop_rate <= 0 or drop_rate >= 1:
            yield torch.full((size,), drop_rate <= 0)
            continue
        words = source.integers(0, 1 << 64, -(-size // 4), dtype=np.uint64)  # those of random_raw, in less time
        drawn = words.astype("<u8", copy=False).view("<u2")[:size]
        keep = drawn >= limit
        if missing and (close := np.flatnonzero(drawn == limit)).size:
            keep[close] = rest.random(close.size) >= missing
        yield torch.from_numpy(keep)


def keep_mask(seed: int, expert: object, tensor: str, shape: torch.Size, drop_rate: float) -> Tensor:
    """The whole of ``mask_pieces`` ``[*shape]``."""
    pieces = list(mask_pieces(seed, expert, tensor, shape.numel(), drop_rate))
    return torch.cat(pieces).view(shape) if pieces else torch.empty(shape, dtype=torch.bool)


def drop(delta: Tensor, seed: int, expert: object, tensor: str, drop_rate: float) -> Tensor:
    """Δ ⊙ m / (1 − p) ``[*shape]``, m the expert's mask of the tensor."""
    keep = keep_mask(seed, expert, tensor, delta.shape, drop_rate)
    return delta * keep.to(delta) * (1 / (1 - drop_rate) if drop_rate < 1 else 1.0)


@dataclass(frozen=True)
class Dropped:
    """One expert's task vector with entries dropped, made a block at a time."""

    updates: Updates
    k: int
    seed: int
    drop_rate: float

    def masks(self) -> Iterator[Tensor]:
        """``mask_pieces`` of this expert."""
        updates = self.updates
        return mask_pieces(self.seed, updates.keys[self.k], updates.name, updates.base.numel(), self.drop_rate)

    def pieces(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Δ_k and Δ_k ⊙ m_k of the flat tensor by blocks, in memory that the next block overwrites."""
        base, expert = flat([self.updates.base, self.updates.experts[self.k]])
        pieces: Iterator[Tensor] = self.masks()
        masks = pieces
        if base.device.type != "cpu":
            several = iter(lambda: list(islice(pieces, DEVICE_BLOCK // BLOCK)), [])
            masks = (torch.cat(part).to(base.device) for part in several)
        delta, left = base.new_empty(2, block_size(base))
        for block, keep in zip(blocks(base), masks):
            width = block.stop - block.start
            subtract(expert[block], base[block], delta[:width])
            left[:width].copy_(keep.view(torch.uint8))  # which the CPU converts much faster than bool
            yield block, delta[:width], left[:width].mul_(delta[:width])

    def factor(self, rescale: Rescale) -> float:
        """What the dropped task vector is multiplied by.

        ``paper``: 1/(1 − p). ``realised``: n / number kept. ``l1``: what restores the tensor's L1 norm (mergekit; 1
        where either norm is below 1e-7). ``none``: 1. Where nothing is kept, 1.
        """
        if rescale == "paper":
            return 1 / (1 - self.drop_rate) if self.drop_rate < 1 else 1.0
        if rescale == "realised":
            kept = sum(int(piece.count_nonzero()) for piece in self.masks())
            return self.updates.base.numel() / kept if kept else 1.0
        if rescale == "l1":
            before = after = 0.0
            for _, delta, left in self.pieces():
                before, after = before + float(delta.abs().sum()), after + float(left.abs().sum())
            return before / after if min(before, after) >= 1e-7 else 1.0
        return 1.0


@method("dare", pretty="DARE", url="https://arxiv.org/abs/2311.03099", random=True, propagates=True)
def dare(
    updates: Updates,
    weight: PerExpert[float] = 1.0,
    lambda_: float = 1.0,
    normalize: bool = False,
    drop_rate: PerExpert[float] = 0.9,
    rescale: Rescale = "paper",
    base_method: Literal["task_arithmetic", "average", "ties"] = "task_arithmetic",
    density: PerExpert[float] = 1.0,
    matrices_only: bool = False,
    seed: int = 0,
) -> Tensor:
    """Random drop with rescaling, then Task Arithmetic, the average or TIES.

    W = θ0 + λ · Σ_k w_k m_k ⊙ Δ_k / (1 − p_k), m_k[i] = 1 with probability 1 − p_k

    Under ``task_arithmetic`` the sum is divided by Σ_k w_k with ``normalize``, under ``average`` always. Under
    ``ties`` the dropped task vectors are trimmed to ``density`` (1: not at all), signs are elected by the weighted
    sum, and what agrees is summed, or averaged with ``normalize``. With ``matrices_only``, tensors of one dimension
    keep all entries. The masks depend on the recipe's seed, the expert and the tensor only.
    """
    spared = matrices_only and updates.base.dim() < 2
    dropped = [Dropped(updates, k, seed, 0.0 if spared else rate) for k, rate in enumerate(drop_rate)]
    if base_method == "ties":
        return updates.merged(_ties(updates, dropped, rescale, density, weight, normalize), lambda_)
    update = torch.zeros_like(updates.base).flatten()
    for one, share in zip(dropped, weight):
        factor = one.factor(rescale)
        for block, _, left in one.pieces():
            update[block].add_(left, alpha=share * factor)
    divided = normalize or base_method == "average"
    return updates.merged(update.view(updates.shape), lambda_ / total(weight) if divided else lambda_)


def _ties(
    updates: Updates,
    dropped: Sequence[Dropped],
    rescale: Rescale,
    density: Sequence[float],
    weights: Sequence[float],
    normalize: bool,
) -> Tensor:
    rows = updates.base.new_empty(len(updates), updates.base.numel())
    for row, one, share in zip(rows, dropped, density):
        factor = one.factor(rescale)
        for block, _, left in one.pieces():
            torch.mul(left, factor, out=row[block])
        if share < 1:
            row.copy_(trim(row, share))
    update = torch.empty_like(rows[0])
    for block in blocks(update):
        summed, divisor = agreeing_(rows[:, block], weights)
        update[block] = summed.div_(divisor) if normalize else summed
    return update.view(updates.shape)


def _as_in_mergekit(base_method: Literal["task_arithmetic", "ties"]) -> Callable[..., Tensor]:
    """A kernel with the parameters of mergekit's ``dare_linear`` and ``dare_ties``, its masks those of ``dare``."""

    def kernel(
        updates: Updates,
        weight: PerExpert[float],
        int8_mask: bool = False,
        normalize: bool = False,
        rescale: bool = True,
        lambda_: float = 1.0,
        density: PerExpert[float] = 1.0,
        seed: int = 0,
    ) -> Tensor:
        given: dict[str, Any] = {"weight": weight, "lambda_": lambda_, "normalize": normalize, "seed": seed}
        given |= {"drop_rate": [1 - share for share in density], "density": [1.0] * len(updates)}
        return dare(updates, rescale="l1" if rescale else "none", base_method=base_method, **given)

    return kernel


dare_linear = fast_path("dare_linear", propagates=True)(_as_in_mergekit("task_arithmetic"))
dare_ties = fast_path("dare_ties", propagates=True)(_as_in_mergekit("ties"))
