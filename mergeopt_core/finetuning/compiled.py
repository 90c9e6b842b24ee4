"""The noise as one compiled kernel: the same bits as the plain one on CPU, in a single pass over the weights.

Compiling costs seconds to a minute once a process, so on CPU it is used where much moves, and only where a C++ compiler
is installed. On an accelerator fused multiply-adds may change the last bit of an element.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from mergeopt_core.finetuning import sampling

WORTHWHILE = 1 << 27
"""Elements from which compiling for the CPU pays within an ordinary run."""


def worthwhile(elements: int, device: torch.device) -> bool:
    """Whether to compile: always on CUDA, on CPU for large models with a compiler at hand."""
    if device.type == "cuda":
        return True
    return device.type == "cpu" and elements >= WORTHWHILE and any(shutil.which(c) for c in ("g++", "clang++", "c++"))


def add_noise(
    weight: Tensor, out: Tensor, factor: float, noise: sampling.Noise, place: int = 0, *, loc: float = 0.0,
    scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """As ``sampling.add_noise``; falls back to it where compilation fails."""
    if factor * scale == 0.0 or not weight.is_contiguous():
        return sampling.add_noise(weight, out, factor, noise, place, loc=loc, scale=scale)
    try:
        kernel = _kernel(noise.distribution)
        reals = torch.tensor([factor * scale, factor * loc], device=weight.device)
        source, target = weight.view(-1), out.view(-1)
        done = 0
        while done < source.numel():
            block, start = divmod(place + done, sampling.BLOCK)
            end = min(done + sampling.BLOCK - start, source.numel())
            kernel(source[done:end], target[done:end], _words(noise.key, block, start).to(weight.device), reals)
            done = end
        return out
    except Exception:  # no compiler that works here: whatever it raises, the plain kernel gives the same noise
        _kernel.cache_clear()
        return sampling.add_noise(weight, out, factor, noise, place, loc=loc, scale=scale)


def _words(key: int, block: int, start: int) -> Tensor:
    """What names a stretch of a stream: four words of its keys, and its first counter."""
    words = []
    for name in (key, sampling.mixed(key, 1)):
        mixed = sampling.mixed(name, block)
        words += [sampling.signed32(mixed), sampling.signed32(mixed >> 32)]
    return torch.tensor([*words, start], dtype=torch.int32)


@cache
def _kernel(distribution: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    draw = {"laplace": _laplace, "gaussian": _gaussian}[distribution]

    def kernel(weight: Tensor, out: Tensor, words: Tensor, reals: Tensor) -> None:
        counter = torch.arange(weight.numel(), dtype=torch.int32, device=weight.device) + words[4]
        noise = draw(counter, words) * reals[0] + reals[1]
        out.copy_(weight + noise)

    return torch.compile(kernel, dynamic=True)


def _hash(counter: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return _mix(_mix(counter ^ low) + high)


def _mix(x: Tensor) -> Tensor:
    for shift, multiplier in sampling.ROUNDS:
        x = x ^ ((x >> shift) & ((1 << (32 - shift)) - 1))
        if multiplier is not None:
            x = x * multiplier
    return x


def _log_uniform(x: Tensor) -> Tensor:
    bits = ((x & 0x7FFFFFFF) | 1).to(torch.float32).view(torch.int32)
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32) - 1.0
    exponent = ((bits >> 23).to(torch.float32) - (127.0 + 31.0)) * sampling.LN2
    return _polynomial(mantissa, mantissa, sampling.LN) + exponent


def _polynomial(last: Tensor, m: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    p = m * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        p = (p + c) * m
    return (p + coefficients[0]) * last


def _laplace(counter: Tensor, keys: Tensor) -> Tensor:
    x = _hash(counter, keys[0], keys[1])
    sign = x & sampling.SIGN
    return (_log_uniform(x).view(torch.int32) ^ sign).view(torch.float32)


def _gaussian(counter: Tensor, keys: Tensor) -> Tensor:
    x = _hash(counter, keys[0], keys[1])
    sign = ((x >> 31) | 1).to(torch.float32)
    radius = (_log_uniform(x) * -4.0).clamp(min=0.0).sqrt() * sign
    angle = (_hash(counter, keys[2], keys[3]) & 0x7FFFFFFF).to(torch.float32) * 2.0**-31
    return radius * _polynomial(angle, angle * angle, sampling.SIN)
