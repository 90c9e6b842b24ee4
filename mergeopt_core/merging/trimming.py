"""Trim by selection, per tensor or over a whole model, elect signs, merge what agrees: the three steps of TIES."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergeopt_core.merging.updates import blocks

Bounds = tuple[float, int]
"""Threshold and last flat index of a trim: an entry stays if its magnitude is above the threshold, or equal to it at an
index up to the last. Among equal magnitudes those of lowest flat index stay, on every machine."""


def kept_count(numel: int, density: float) -> int:
    """How many entries of a tensor stay: max(1, ⌊density · n⌋), none for density 0, all for density 1."""
    if density >= 1 or numel == 0:
        return numel
    return 0 if density <= 0 else max(1, int(density * numel))


def kth_largest(magnitudes: Tensor, k: int) -> float:
    """The k-th largest of ``[n]`` magnitudes (1 ≤ k ≤ n), by selection in O(n); they may be reordered in place."""
    if magnitudes.device.type != "cpu":
        return kth_by_sample(magnitudes, k)
    position, array = magnitudes.numel() - k, magnitudes.numpy()
    array.partition(position)
    return float(array[position])


SAMPLE = 1 << 18
"""Entries of a sample that brackets a magnitude of a given rank."""


def kth_by_sample(magnitudes: Tensor, k: int) -> float:
    """The same on an accelerator, which sorts fast and has no selection: only what a sample leaves in doubt is sorted.

    A sample's quantiles bracket the k-th largest to within six standard deviations of its rank among the sampled.
    Where they do not (of a tensor that is far from random), it is found bit by bit.
    """
    step = max(1, magnitudes.numel() // SAMPLE)
    sample = magnitudes[::step].sort(descending=True).values
    rank, share = k / step, k / magnitudes.numel()
    margin = 6 * (len(sample) * share * (1 - share)) ** 0.5 + 8
    first, last = math.floor(rank - margin), math.ceil(rank + margin)
    high = float(sample[first]) if first >= 0 else math.inf
    low = float(sample[last]) if last < len(sample) else 0.0
    above = int((magnitudes > high).sum())
    doubtful = magnitudes[(magnitudes >= low) & (magnitudes <= high)]
    if not above < k <= above + len(doubtful):
        return kth_by_bits(magnitudes, k)
    return float(doubtful.sort(descending=True).values[k - above - 1])


def kth_by_bits(magnitudes: Tensor, k: int) -> float:
    """The same bit by bit from the top: a pass over all of it for each bit.

    Patterns of magnitudes order as their values do: the k-th largest is the largest pattern that k of them reach.
    """
    kind, bits = (torch.int64, 63) if magnitudes.dtype == torch.float64 else (torch.int32, 31)
    patterns = magnitudes.view(kind)
    found = torch.zeros((), dtype=kind, device=magnitudes.device)
    for bit in reversed(range(bits)):
        tried = found | (1 << bit)
        found = torch.where((patterns >= tried).sum() >= k, tried, found)
    return float(found.view(magnitudes.dtype))


Fill = Callable[[Tensor, int], object]
"""Writes the magnitudes of flat entries from an index on into the given memory."""


def trim_bounds(fill: Fill, n: int, k: int, like: Tensor) -> Bounds:
    """The bounds that keep the k largest of the n magnitudes that ``fill`` gives, in memory of the kind of ``like``."""
    if k <= 0 or k >= n:
        return (0.0, n) if k > 0 else (float("inf"), -1)
    magnitudes = like.new_empty(n)
    for block in blocks(magnitudes):
        fill(magnitudes[block], block.start)
    threshold = kth_largest(magnitudes, k)
    wanted = _wanted(magnitudes, threshold, k)
    for block in blocks(magnitudes) if wanted else ():
        piece = magnitudes[: block.stop - block.start]
        fill(piece, block.start)
        equal = piece == threshold
        here = int(np.count_nonzero(equal.numpy()) if equal.device.type == "cpu" else equal.sum())
        if wanted <= here:
            return threshold, block.start + int(torch.nonzero(equal)[wanted - 1])
        wanted -= here
    return threshold, n


def _wanted(magnitudes: Tensor, threshold: float, k: int) -> int:
    """How many of the magnitudes equal to the k-th largest are to stay, as ``kth_largest`` leaves them; 0: all."""
    if magnitudes.device.type == "cpu":
        lower, upper = np.split(magnitudes.numpy(), [magnitudes.numel() - k])
        return k - int(np.count_nonzero(upper > threshold)) if lower.max() == threshold else 0
    above, tied = int((magnitudes > threshold).sum()), int((magnitudes == threshold).sum())
    return k - above if above + tied > k else 0


def trim_(piece: Tensor, bounds: Bounds, start: int = 0) -> Tensor:
    """Zero what does not stay of a flat piece ``[b]`` of Δ that begins at flat index ``start``, in place."""
    threshold, last = bounds
    if last < 0:
        return piece.mul_(0)
    if threshold > 0:
        kind = np.float64 if piece.dtype == torch.float64 else np.float32
        below = float(np.nextafter(kind(threshold), kind(0)))
        place = max(0, last + 1 - start)
        for part, bound in ((piece[:place], below), (piece[place:], threshold)):
            if part.numel():
                torch.ops.aten.hardshrink.out(part, bound, out=part)
    return piece


def trim(delta: Tensor, density: float) -> Tensor:
    """Δ ``[*shape]`` with all but its ``kept_count`` entries of largest magnitude set to zero."""
    k = kept_count(delta.numel(), density)
    if k == delta.numel():
        return delta
    flat = delta.flatten()

    def fill(out: Tensor, start: int) -> None:
        torch.abs(flat[start : start + len(out)], out=out)

    return trim_(flat.clone(), trim_bounds(fill, len(flat), k, flat)).view_as(delta)


def agreeing_(rows: Tensor, weights: Sequence[float], zero_sign: int = 1) -> tuple[Tensor, Tensor]:
    """Σ w_k Δ_k and Σ w_k over the experts that agree, entrywise; ``[K, *shape]``, overwritten → two ``[*shape]``.

    An expert agrees on an entry if its sign there is that of Σ_k w_k Δ_k, or ``zero_sign`` where that is exactly 0; an
    entry that is 0 never agrees. Where the agreeing weights add up to 0, the second result is 1. With γ = ±1 the
    elected sign, an expert agrees where w_k Δ_k · γ > 0: no branch and no mask is needed.
    """
    for row, weight in zip(rows, weights):
        if weight != 1:
            row.mul_(weight)
    sign = rows.sum(dim=0)
    sign = (sign.ge_(0) if zero_sign > 0 else sign.gt_(0)).mul_(2).sub_(1)
    divisor = torch.zeros_like(sign)
    rows.mul_(sign).clamp_(min=0)
    summed = rows.sum(dim=0).mul_(sign)
    for row, weight in zip(rows, weights):
        divisor.add_(row.sign_(), alpha=weight)
    least = min(weights)
    return summed, divisor.clamp_(min=least) if least > 0 else divisor.masked_fill_(divisor == 0, 1)


def disjoint_merge(deltas: Tensor, weights: Sequence[float], normalize: bool, zero_sign: int = 1) -> Tensor:
    """The sum of what agrees on the elected sign, or with ``normalize`` its weighted mean; see ``agreeing_``."""
    summed, divisor = agreeing_(deltas.clone(), weights, zero_sign)
    return summed.div_(divisor) if normalize else summed


Models = Callable[[], Iterable[tuple[str, Tensor, Sequence[Tensor]]]]
"""One pass over all tensors of a model: name, the base's tensor, the experts' in the order of their ids."""

_HIGH_BITS, _LOW_BITS = 16, 15  # a magnitude has 31 bits: the sign bit is 0


def global_thresholds(
    models: Models,
    keys: Sequence[str],
    kept: Callable[[int, str], int],
    labels: Mapping[str, str],
    *,
    transform: Callable[[Tensor, str, str], Tensor] | None = None,
    cache: Any = None,
) -> dict[str, float]:
    """Exact k-th largest |Δ_k| over all tensors of each expert, in two passes and 512 KiB per expert.

    The first pass counts magnitudes by the upper 16 bits of their float32 pattern, which order as the values do; the
    second counts the lower 15 bits of those that share the upper bits of the k-th largest. ``kept(n, expert)`` is how
    many of n entries are to stay; the threshold is that entry's magnitude, and all entries equal to it stay too.
    ``labels`` say what else fixes a threshold, for the cache; ``transform(delta, expert, tensor)`` comes first (and
    forbids a cache). Tensors of whole numbers are left out.
    """
    cache = {} if transform or cache is None else cache
    places = {key: ("threshold", str(key), labels[key]) for key in keys}
    found = {key: float(value) for key in keys if (value := cache.get(places[key])) is not None}
    missing = set(keys) - set(found)

    def histograms(bits: int, bin_of: Callable[[Any, str], Any]) -> dict[str, np.ndarray]:
        counts = {key: np.zeros(1 << bits, dtype=np.int64) for key in missing}
        for name, base, experts in models() if missing else ():
            for key, delta in _deltas(base, keys, experts, missing):
                delta = transform(delta, key, name) if transform else delta
                values = delta.abs().flatten().contiguous()
                if values.device.type == "cpu":
                    counts[key] += np.bincount(bin_of(values.numpy().view(np.uint32), key), minlength=1 << bits)
                else:
                    there = torch.bincount(bin_of(values.view(torch.int32), key), minlength=1 << bits)
                    counts[key] += there.cpu().numpy()
        return counts

    upper: dict[str, tuple[int, int]] = {}  # upper bits of the threshold, and its rank among those
    for key, counts in histograms(_HIGH_BITS, lambda patterns, key: patterns >> _LOW_BITS).items():
        wanted = min(kept(int(counts.sum()), key), int(counts.sum()))
        if wanted > 0:
            upper[key] = _descend(counts, wanted)
        else:  # nothing stays
            found[key] = cache[places[key]] = float("inf")
    missing = set(upper)

    def lower_bits(patterns: Any, key: str) -> Any:
        return patterns[(patterns >> _LOW_BITS) == upper[key][0]] & ((1 << _LOW_BITS) - 1)

    for key, counts in histograms(_LOW_BITS, lower_bits).items():
        prefix, rank = upper[key]
        pattern = np.array([(prefix << _LOW_BITS) | _descend(counts, rank)[0]], dtype=np.uint32)
        found[key] = cache[places[key]] = float(pattern.view(np.float32)[0])
    return {key: found[key] for key in keys}


def majority_sign(models: Models, keys: Sequence[str], thresholds: Mapping[str, float]) -> int:
    """The sign that most entries of the summed trimmed task vectors have over the whole model: -1, or 1 in a tie."""
    signs, order = 0, sorted(range(len(keys)), key=lambda k: str(keys[k]))
    for _, base, experts in models():
        summed = torch.zeros(base.shape, device=base.device)
        for key, delta in _deltas(base, [keys[k] for k in order], [experts[k] for k in order], keys):
            summed += delta * (delta.abs() >= thresholds[key])
        signs += int(torch.sign(summed).sum(dtype=torch.float64))
    return -1 if signs < 0 else 1


def _deltas(
    base: Tensor, keys: Sequence[str], experts: Sequence[Tensor], wanted: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """The wanted experts' task vectors in float32; none of a tensor of whole numbers."""
    anchor = base.to(torch.float32)
    for key, expert in zip(keys, experts) if base.is_floating_point() else ():
        if key in wanted:
            yield key, expert.to(torch.float32) - anchor


def _descend(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """Bin of the ``wanted``-th largest value, and its rank within that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, wanted))
    return len(counts) - 1 - place, wanted - (int(from_top[place - 1]) if place else 0)
