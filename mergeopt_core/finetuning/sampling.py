"""Noise that is a function of (seed, stream, element): drawn again at will, the same bits on any number of threads.

A 32-bit counter-based hash gives each element its random bits; the inverse distribution function is computed with
additions and multiplications only, so no vendor's ``log`` can change a bit. θ + c·z is written in the same pass: by the
plain kernel in pieces that stay in the cache, or by the same arithmetic compiled into one kernel. On the CPU the
compiled kernel gives the same Laplace noise and the last bit more or less of Gaussian noise; on an accelerator fused
multiply-adds may change the last bit of either.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

DISTRIBUTIONS = ("laplace", "gaussian")
PIECE = 1 << 16
"""Elements worked on at a time and thread: six scratch rows of them fit a core's cache."""
WORTH_COMPILING = 1 << 27
"""Elements from which compiling for the CPU (seconds to a minute once per process) pays within an ordinary run."""

_MASK64 = (1 << 64) - 1
SIGN = -(1 << 31)
BLOCK = 1 << 31
# ln(1 + t) / t on [0, 1], a Chebyshev fit of degree 7: |error of ln| < 2e-7
LN = (0.99999981, -0.49997449, 0.33276177, -0.24499612, 0.17757024, -0.10785368, 0.04421419, -0.00857468)
LN2 = math.log(2.0)
# sin(πt/2) / t as a polynomial in t² on [0, 1]: |error of sin| < 1e-8
SIN = (1.57079632, -0.64596376, 0.0796899226, -0.00467415067, 0.000151675118)


def mixed(*words: int) -> int:
    """One 64-bit key from integers (SplitMix64's finaliser after each word)."""
    key = 0
    for word in words:
        key = (key + (word & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK64
        key ^= key >> 31
    return key


def _signed32(word: int) -> int:
    """The low 32 bits of a word as a two's-complement integer, which is what ``torch.int32`` takes."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


# a 32-bit integer hash with low bias
_ROUNDS = ((16, _signed32(0x7FEB352D)), (15, _signed32(0x846CA68B)), (16, None))


class Noise:
    """One stream of standard noise: the element at a place is the same whoever asks, and in whatever order.

    Neighbouring requests share the piece that they fall into, so that many small weights cost no more than a large one.

    Args:
        key: 64-bit name of the stream; another key gives independent noise.
        distribution: laplace (scale 1), or gaussian of the same standard deviation √2.
        size: Elements that will be asked for.
    """

    def __init__(self, key: int, distribution: str = "laplace", size: int = 1 << 62):
        self.key, self.distribution, self.size = key, distribution, size
        self._rows: list[Tensor] = []
        self._bounds: tuple[int, int] = (0, 0)
        self._unit: Tensor | None = None

    def piece(self, place: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Noise from ``place`` to the end of its piece, [n], and a row of the same size to work in."""
        begin, end = self._bounds
        if self._unit is None or self._unit.device != device or not begin <= place < end:
            begin, end = self._fill(place, device)
        assert self._unit is not None
        return self._unit[place - begin :], self._rows[4][place - begin : end - begin]

    def _fill(self, place: int, device: torch.device) -> tuple[int, int]:
        length = min(self.size, PIECE * (torch.get_num_threads() if device.type == "cpu" else 1 << 9))
        if not self._rows or len(self._rows[0]) != length or self._rows[0].device != device:
            self._rows = _rows(length, device)
        # pieces begin at multiples of their length within a block of counters, so that neighbours find the same one
        begin = place - place % BLOCK % length
        end = min(begin + length, self.size, (place // BLOCK + 1) * BLOCK)
        self._unit = _DRAWS[self.distribution]([row[: end - begin] for row in self._rows], _words(self.key, begin))
        self._bounds = (begin, end)
        return self._bounds


def add_noise(
    weight: Tensor, out: Tensor, factor: float, noise: Noise, place: int = 0, *, loc: float = 0.0, scale: float = 1.0
) -> Tensor:
    """Write θ + factor · z to ``out``, with z drawn per element: Laplace(loc, scale), or Gaussian as wide.

    Args:
        weight: θ of any shape and floating dtype.
        out: Contiguous tensor of the same shape on the same device, or ``weight`` itself; half precision is rounded
            once, at the end.
        factor: c in θ + c·z.
        noise: The stream.
        place: Place in the stream of the weight's first element.
        loc: Mean μ of z.
        scale: Laplace scale b of z.
    """
    if factor * scale == 0.0 and factor * loc == 0.0:
        return out if out is weight else out.copy_(weight)
    source, target = weight.reshape(-1), out.view(-1)
    done = 0
    while done < target.numel():
        unit, row = noise.piece(place + done, weight.device)
        n = min(len(unit), target.numel() - done)
        torch.mul(unit[:n], factor * scale, out=row[:n])
        if loc:
            row[:n].add_(factor * loc)
        torch.add(source[done : done + n], row[:n], out=target[done : done + n])
        done += n
    return out


def add_noise_compiled(
    weight: Tensor, out: Tensor, factor: float, noise: Noise, place: int = 0, *, loc: float = 0.0, scale: float = 1.0
) -> Tensor:
    """As ``add_noise``, in a single pass over the weights; falls back to it where compilation fails."""
    if factor * scale == 0.0 or not weight.is_contiguous():
        return add_noise(weight, out, factor, noise, place, loc=loc, scale=scale)
    try:
        kernel = _kernel(noise.distribution)
        reals = torch.tensor([factor * scale, factor * loc], device=weight.device)
        source, target = weight.view(-1), out.view(-1)
        done = 0
        while done < source.numel():
            end = min(done + BLOCK - (place + done) % BLOCK, source.numel())
            words = torch.tensor(_words(noise.key, place + done), dtype=torch.int32).to(weight.device)
            kernel(source[done:end], target[done:end], words, reals)
            done = end
        return out
    except Exception:  # no compiler that works here: whatever it raises, the plain kernel gives the same noise
        _kernel.cache_clear()
        return add_noise(weight, out, factor, noise, place, loc=loc, scale=scale)


def noise_like(weight: Tensor, noise: Noise, place: int = 0, *, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    """The noise itself: a new tensor of the weight's shape and dtype."""
    out = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    return add_noise(out, out, 1.0, noise, place, loc=loc, scale=scale)


def worth_compiling(elements: int, device: torch.device) -> bool:
    """Whether compiling pays: always on CUDA, on the CPU for large models where a C++ compiler is installed."""
    if device.type == "cpu":
        return elements >= WORTH_COMPILING and any(map(shutil.which, ("g++", "clang++", "c++")))
    return device.type == "cuda"


@cache
def _kernel(distribution: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    def kernel(weight: Tensor, out: Tensor, words: Tensor, reals: Tensor) -> None:
        noise = _DRAWS[distribution](_rows(weight.numel(), weight.device), words)
        out.copy_(weight + (noise * reals[0] + reals[1]))

    return torch.compile(kernel, dynamic=True)


def _rows(length: int, device: torch.device) -> list[Tensor]:
    """Counters and the rows to work in: integers x, t, s and reals m, p."""
    kinds = (torch.int32,) * 3 + (torch.float32,) * 2
    counter = torch.arange(length, dtype=torch.int32, device=device)
    return [counter, *(torch.empty(length, dtype=kind, device=device) for kind in kinds)]


def _words(key: int, start: int) -> list[int]:
    """What names a stretch of a stream: the two words of each of its two hashes, and its first counter."""
    block, counter = divmod(start, BLOCK)
    hashes = [mixed(name, block) for name in (key, mixed(key, 1))]
    return [_signed32(word) for h in hashes for word in (h, h >> 32)] + [counter]


Words: TypeAlias = "Sequence[int] | Tensor"


def _hash(counter: Tensor, words: Words, i: int, x: Tensor, t: Tensor) -> Tensor:
    """Random bits of the stretch's elements by its i-th hash: int32 [n], in ``x``."""
    torch.add(counter, words[4], out=x).bitwise_xor_(words[2 * i])
    _mix(x, t)
    x.add_(words[2 * i + 1])
    _mix(x, t)
    return x


def _mix(x: Tensor, t: Tensor) -> None:
    for shift, multiplier in _ROUNDS:
        torch.bitwise_right_shift(x, shift, out=t)
        x.bitwise_xor_(t.bitwise_and_((1 << (32 - shift)) - 1))  # the mask makes the shift logical
        if multiplier is not None:
            x.mul_(multiplier)


def _log_uniform(x: Tensor, t: Tensor, m: Tensor, p: Tensor) -> Tensor:
    """ln u in ``p`` for u = (31 low bits of x, made odd) / 2³¹, which is never 0: between −21.5 and 0."""
    x.bitwise_and_(0x7FFFFFFF).bitwise_or_(1)
    m.copy_(x)
    bits = m.view(torch.int32)
    torch.bitwise_right_shift(bits, 23, out=t)  # exponent + 127
    bits.bitwise_and_(0x7FFFFF).bitwise_or_(0x3F800000)
    m.sub_(1.0)  # mantissa − 1, in [0, 1)
    _polynomial(m, m, LN, p)
    exponent = x.view(torch.float32).copy_(t).sub_(127.0 + 31.0).mul_(LN2)
    return p.add_(exponent)


def _polynomial(last: Tensor, m: Tensor, coefficients: tuple[float, ...], p: Tensor) -> Tensor:
    """last · Σ_i coefficients[i] mⁱ in ``p``, by Horner's rule."""
    torch.mul(m, coefficients[-1], out=p)
    for c in coefficients[-2:0:-1]:
        p.add_(c).mul_(m)
    return p.add_(coefficients[0]).mul_(last)


def _laplace(rows: list[Tensor], words: Words) -> Tensor:
    """Standard Laplace noise: ± ln u."""
    counter, x, t, s, m, p = rows
    _hash(counter, words, 0, x, t)
    torch.bitwise_and(x, SIGN, out=s)
    _log_uniform(x, t, m, p).view(torch.int32).bitwise_xor_(s)
    return p


def _gaussian(rows: list[Tensor], words: Words) -> Tensor:
    """Gaussian noise of standard deviation √2: ± √(−4 ln u) · sin(πv/2) (Box and Muller, one of the pair)."""
    counter, x, t, s, m, p = rows
    _hash(counter, words, 0, x, t)
    torch.bitwise_and(x, SIGN, out=s)
    radius = _log_uniform(x, t, m, p).mul_(-4.0).clamp_(min=0.0).sqrt_()
    angle = s.view(torch.float32)
    sign = torch.bitwise_right_shift(s, 31, out=t).bitwise_or_(1)  # −1 or 1
    radius.mul_(m.copy_(sign))
    _hash(counter, words, 1, x, t)
    angle.copy_(x.bitwise_and_(0x7FFFFFFF)).mul_(2.0**-31)  # v in [0, 1]
    square, sine = m.copy_(angle).mul_(angle), x.view(torch.float32)
    return radius.mul_(_polynomial(angle, square, SIN, sine))


_DRAWS: dict[str, Callable[[list[Tensor], Words], Tensor]] = {"laplace": _laplace, "gaussian": _gaussian}
