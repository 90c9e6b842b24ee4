"""What was measured of task vectors, as tables: norms, cosines, layers by sign, fitted laws and histograms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mergeopt_core.geometry import LaplaceFit, cosines, laplace_fit
from pipelines.geometry.measure import Measured

NEAR_ZERO = 1e-6
"""Cosines up to this size count as zero: below it the sign is that of rounding, not of the two updates."""
SUM = "sum"
"""Name of the sum of all task vectors."""
BINS = 81
WIDTH = 8.0
"""A histogram reaches this many scales of the fitted Laplace law to both sides of its median."""


def norms(measured: Measured) -> pd.DataFrame:
    """‖Δ_k‖₂ of every expert and ‖Σ_k Δ_k‖₂, over all entries."""
    products = measured.gram
    squares = [*products.diagonal().tolist(), float(products.sum())]
    names = [*measured.experts, SUM]
    return pd.DataFrame({"expert": names, "norm": [math.sqrt(max(square, 0.0)) for square in squares]})


def pair_cosines(measured: Measured) -> pd.DataFrame:
    """Cosine of every ordered pair of experts; empty where one of them is the base itself."""
    return _pairs(measured.experts, cosine=cosines(measured.gram))


def layer_signs(measured: Measured) -> pd.DataFrame:
    """For every ordered pair, in how many layers (tensors) the cosine is positive, negative, and zero.

    Zero are those up to ``NEAR_ZERO`` in size, and layers that one of the two does not move.
    """
    values = cosines(measured.grams).nan_to_num(0.0)  # [L, K, K]
    counts = {"positive": values > NEAR_ZERO, "negative": values < -NEAR_ZERO, "zero": values.abs() <= NEAR_ZERO}
    return _pairs(measured.experts, **{name: which.sum(dim=0) for name, which in counts.items()})


def _pairs(experts: list[str], **matrices: Tensor) -> pd.DataFrame:
    lists = {name: matrix.tolist() for name, matrix in matrices.items()}
    return pd.DataFrame([
        {"expert_1": experts[i], "expert_2": experts[j], **{name: rows[i][j] for name, rows in lists.items()}}
        for i, j in itertools.product(range(len(experts)), repeat=2)
    ])  # fmt: skip


def vectors(measured: Measured) -> Iterator[tuple[str, Tensor]]:
    """The entries of every task vector and of their sum."""
    yield from zip(measured.experts, measured.entries)
    if len(measured.experts) > 1:
        yield SUM, measured.entries.double().sum(dim=0)


def laws(measured: Measured) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fits of the Laplace and the normal law to every task vector and to the sum, and histograms with both densities.

    The first has a row per vector; the second one per vector, curve (entries, Laplace, normal) and bin, with the bin's
    middle as x and the density as y; bars have edges, low and high. A zero vector has no row.
    """
    fits, curves = [], []
    for name, entries in vectors(measured):
        fit = laplace_fit(entries)
        if fit.scale == 0:
            continue
        fits.append({
            "vector": name, "entries": fit.n, "of": measured.total, "unmoved": float((entries == 0).double().mean()),
            "location": fit.location, "scale": fit.scale, "mean": fit.mean, "deviation": fit.deviation,
            "ks_laplace": fit.ks_laplace, "ks_normal": fit.ks_normal,
            "log_laplace": fit.log_laplace, "log_normal": fit.log_normal,
        })  # fmt: skip
        curves.append(_histogram(name, entries, fit))
    columns = ["vector", "curve", "x", "y", "low", "high"]
    return pd.DataFrame(fits), pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=columns)


def _histogram(name: str, entries: Tensor, fit: LaplaceFit) -> pd.DataFrame:
    """Densities in ``BINS`` bins; entries outside count in the density's total and are not shown."""
    edges = fit.location + fit.scale * np.linspace(-WIDTH, WIDTH, BINS + 1)
    x, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    counts = torch.histogram(entries.double(), torch.from_numpy(edges)).hist.numpy()
    z, normal = np.abs(x - fit.location) / fit.scale, (x - fit.mean) / fit.deviation
    curves = {
        "entries": counts / (fit.n * width),
        "Laplace": np.exp(-z) / (2 * fit.scale),
        "normal": np.exp(-0.5 * normal**2) / (fit.deviation * math.sqrt(2 * math.pi)),
    }
    made = pd.concat([pd.DataFrame({"vector": name, "curve": c, "x": x, "y": y}) for c, y in curves.items()])
    bars = made["curve"] == "entries"
    sides = {"low": x - width / 2, "high": x + width / 2}
    return made.assign(**{side: np.where(bars, np.tile(edge, len(curves)), np.nan) for side, edge in sides.items()})
