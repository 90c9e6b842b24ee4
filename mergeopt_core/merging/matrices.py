"""What methods that treat tensors as matrices have in common: which tensors, what others take, the norm, the rank."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor

from mergeopt_core.merging.mergekit_api import PerExpert, method
from mergeopt_core.merging.updates import Updates, total
from mergeopt_core.spectral.decompositions import Path

NormMatch = Literal["none", "mean_vector", "mean_norm"]
Rest = Literal["mean", "sum", "base"]

_EMBEDDING_OR_HEAD = re.compile(r"embed|lm_head|(^|\.)w[tp]e\.|(^|\.)shared\.|(^|\.)output\.weight$")


def matrix_method(name: str, *, pretty: str, url: str) -> Callable[[Any], Any]:
    """Decorator: register ``f(updates, weight, …own…, spectral, …) -> update [m, n]`` for the matrices of a model.

    The method also gets the parameters of ``kernel`` below, which says what they do to the update and what all other
    tensors take; its own parameters come between ``norm_matched`` and ``tensors``.
    """

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def kernel(
            updates: Updates,
            weight: PerExpert[float] = 1.0,
            lambda_: float = 1.0,
            normalize: bool = False,
            norm_matched: NormMatch = "none",
            tensors: str = "linear",
            rest: Rest = "mean",
            rest_scale: float = 1.0,
            spectral: Path = "gram",
            **own: Any,
        ) -> Tensor:
            if not is_selected(updates.name, updates.shape, tensors):
                return updates.merged(rest_update(updates, weight, rest, rest_scale), lambda_)
            update = function(updates, weight, spectral=spectral, **own) / (total(weight) if normalize else 1.0)
            return updates.merged(match_norm(update, updates, weight, norm_matched), lambda_)

        join_signatures(kernel, function, before="tensors")
        method(name, pretty=pretty, url=url)(kernel)
        return function

    return add


def join_signatures(kernel: Callable[..., Any], function: Callable[..., Any], before: str) -> None:
    """Give a kernel that takes ``**own`` the docstring of ``function`` and its optional parameters.

    mergekit reads parameters from a signature and its annotations; the added ones stand before the one named.
    """
    own, shared = (list(inspect.signature(f).parameters.values()) for f in (function, kernel))
    names = [parameter.name for parameter in shared]
    at = names.index(before)
    between = [p for p in own if p.name not in names and p.default is not p.empty]
    kernel.__signature__ = inspect.Signature([*shared[:at], *between, *shared[at:-1]])  # type: ignore[attr-defined]
    hints = [get_type_hints(f, include_extras=True) for f in (function, kernel)]
    kernel.__annotations__ = hints[0] | hints[1]
    kernel.__doc__ = function.__doc__


def is_selected(name: str, shape: Sequence[int], tensors: str) -> bool:
    """Whether a tensor is treated as a matrix.

    ``linear``: 2-D, not an embedding or the head; ``matrices``: every 2-D tensor; otherwise a regular expression that
    is searched for in the names of 2-D tensors. ValueError where it is no regular expression.
    """
    if len(shape) != 2 or min(shape) == 0:
        return False
    if tensors == "matrices":
        return True
    if tensors == "linear":
        return not _EMBEDDING_OR_HEAD.search(name)
    try:
        return re.search(tensors, name) is not None
    except re.error as error:
        raise ValueError(f"tensors is linear, matrices or a regular expression, not {tensors!r}: {error}") from None


def rest_update(updates: Updates, weights: Sequence[float], rest: Rest, rest_scale: float = 1.0) -> Tensor:
    """The update of a tensor that gets no matrix treatment: weighted mean or sum of task vectors, or none at all."""
    if rest == "base":
        return torch.zeros_like(updates.base)
    update = updates.weighted_sum(weights)
    return update.mul_(rest_scale / (total(weights) if rest == "mean" else 1.0))


def match_norm(update: Tensor, updates: Updates, weights: Sequence[float], match: NormMatch) -> Tensor:
    """The update scaled to ‖Σ w_k Δ_k / Σ w_k‖ (``mean_vector``) or to the mean ‖Δ_k‖ (``mean_norm``)."""
    if match == "none":
        return update
    norm = torch.linalg.vector_norm(update, dtype=torch.float64)
    if norm == 0:
        return update
    if match == "mean_vector":
        target = torch.linalg.vector_norm(updates.weighted_sum(weights), dtype=torch.float64) / abs(total(weights))
    else:
        target = torch.stack([torch.linalg.vector_norm(d, dtype=torch.float64) for d in updates]).mean()
    return update * (target / norm).to(update.dtype)


def note_rank(report: Any, name: str, sigma: Tensor, rank_tolerance: float, threshold: float = 1e-4) -> None:
    """Put an update whose σ ``[r]`` (largest first) fall below 1e-4 · σ₁ into the report: its null space is noise.

    A method that gives every direction weight is ill-posed on it unless ``rank_tolerance`` leaves that space out.
    """
    if report is None or rank_tolerance > 0 or sigma.numel() == 0 or float(sigma[0]) == 0:
        return
    rank = int((sigma > threshold * sigma[0]).sum())
    if rank < sigma.numel():
        report[name] = {"rank": rank, "of": sigma.numel()}
