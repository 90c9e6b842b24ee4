"""Documents grouped by task: the strata that the macro mean weighs equally."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def split(n: int, strata: ArrayLike | None) -> dict[str, NDArray]:
    """Positions of each task's documents, in the order of the tasks' names.

    Args:
        n: number of documents.
        strata: the task of each document `[n]`; None: all one task, named "".

    Raises:
        ValueError: when strata is not a vector of n names, or there are no documents.
    """
    if n == 0:
        raise ValueError("no documents")
    if strata is None:
        return {"": np.arange(n)}
    names = np.asarray(strata)
    if names.shape != (n,):
        raise ValueError(f"strata of shape {list(names.shape)} for {n} documents: give one task name a document")
    unique, codes = np.unique(names, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(unique) + 1))
    return {str(name): order[bounds[t] : bounds[t + 1]] for t, name in enumerate(unique)}


def stratum_weights(n: int, strata: ArrayLike | None) -> NDArray:
    """Weight of each document in the macro mean over tasks `[n]`: 1/(T·n_t)."""
    groups = split(n, strata)
    weights = np.empty(n)
    for positions in groups.values():
        weights[positions] = 1 / (len(groups) * len(positions))
    return weights
