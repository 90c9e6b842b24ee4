"""How well a Laplace law describes the elements of a task vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LaplaceFit:
    """Maximum-likelihood Laplace law of some elements, and how far they are from it and from the normal one."""

    location: float
    scale: float
    ks_laplace: float
    ks_normal: float
    n: int


def laplace_fit(x: Tensor) -> LaplaceFit:
    """Fit p(x) = exp(−|x−μ|/b) / 2b: μ is the median, b = mean |x − μ|.

    The Kolmogorov–Smirnov distances are of the fitted Laplace law and of the normal law with x's mean and deviation.

    Args:
        x: elements of a task vector, any shape.

    Raises:
        ValueError: for no elements, or non-finite ones.
    """
    values = _sorted(x)  # [n]
    n = values.numel()
    location = float((values[(n - 1) // 2] + values[n // 2]) / 2)
    scale = float((values - location).abs().mean())
    if scale == 0:  # all elements equal: both laws are a point, and so are the elements
        return LaplaceFit(location, 0.0, 0.0, 0.0, n)
    return LaplaceFit(
        location,
        scale,
        _distance(_laplace_cdf(values, location, scale)),
        _distance(_normal_cdf(values, float(values.mean()), float(values.std(correction=0)))),
        n,
    )


def ks_laplace(x: Tensor, location: float, scale: float) -> float:
    """Kolmogorov–Smirnov distance sup |F_n − F| between the elements and a Laplace law of scale > 0."""
    return _distance(_laplace_cdf(_sorted(x), location, scale))


def ks_normal(x: Tensor, mean: float, deviation: float) -> float:
    """Kolmogorov–Smirnov distance sup |F_n − F| between the elements and a normal law of deviation > 0."""
    return _distance(_normal_cdf(_sorted(x), mean, deviation))


def _sorted(x: Tensor) -> Tensor:
    values = x.detach().to(torch.float64).flatten().sort().values
    if values.numel() == 0:
        raise ValueError("no elements to fit")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("elements hold NaN or infinity")
    return values


def _laplace_cdf(values: Tensor, location: float, scale: float) -> Tensor:
    z = (values - location) / scale
    return torch.where(z < 0, 0.5 * torch.exp(-z.abs()), 1 - 0.5 * torch.exp(-z.abs()))


def _normal_cdf(values: Tensor, mean: float, deviation: float) -> Tensor:
    return 0.5 * (1 + torch.erf((values - mean) / (deviation * math.sqrt(2))))


def _distance(cdf: Tensor) -> float:
    """Sup distance between a law's values at the sorted elements and the steps of their empirical law."""
    n = cdf.numel()
    steps = torch.arange(n + 1, dtype=torch.float64, device=cdf.device) / n
    return float(torch.maximum((steps[1:] - cdf).max(), (cdf - steps[:-1]).max()))
