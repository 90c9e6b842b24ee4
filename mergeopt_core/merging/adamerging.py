"""AdaMerging: a sum of task vectors with coefficients by block and expert, as entropy minimisation finds them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from mergeopt_core.merging.lines import block_of
from mergeopt_core.merging.mergekit_api import PerExpert, method
from mergeopt_core.merging.updates import Updates


def _check(parameters: Mapping[str, Any], experts: int) -> None:
    for block, values in parameters["blocks"].items():
        numbers = isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)
        if not block.isdecimal() or not numbers or len(values) != experts:
            raise ValueError(f"adamerging: blocks.{block} has to be a block's index with {experts} numbers")


@method("adamerging", pretty="AdaMerging", url="https://arxiv.org/abs/2310.02575", check=_check, propagates=True)
def adamerging(
    updates: Updates,
    weight: PerExpert[float] = 0.3,
    blocks: Mapping[str, Any] = MappingProxyType({}),
    lambda_: float = 1.0,
) -> Tensor:
    """A sum of task vectors with coefficients by block and expert.

    W = θ0 + λ · Σ_k a_k^l Δ_k in block l

    a_k^l is ``blocks.l[k]``, and ``weight`` in blocks that are not named and outside of the blocks (embeddings, final
    norm, head). The paper finds the coefficients by gradient descent on the entropy of the merged model's answers to
    unlabelled prompts: `mergebench search search=adamerging` does that and merges by this method.
    """
    own = blocks.get(str(block_of(updates.name)))
    if own is not None:
        weight = updates.values(dict(zip(updates.given, own)))
    return updates.merged(updates.weighted_sum(weight), lambda_)
