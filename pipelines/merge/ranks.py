"""Warnings about updates of low rank, on which methods that reshape the spectrum are ill-posed."""

from __future__ import annotations

from collections.abc import Sequence

from mergeopt_core import merging
from pipelines.merge.lora import AdaptedCheckpoint, Model
from pipelines.merge.recipe import Recipe

SPECTRAL = ("iso_c", "iso_cts", "tsv_m", "task_arithmetic_sb", "ties_sb", "subspace_boosting")
"""Methods that raise small singular values of the update: zero ones have no direction to raise."""


def rank_notes(recipe: Recipe, experts: Sequence[Model]) -> list[str]:
    """One line an adapter where the method reshapes the spectrum: the largest rank its update can have."""
    if recipe.method not in SPECTRAL:
        return []
    notes = []
    known = {parameter.name for parameter in merging.describe(recipe.method).parameters}
    way = " (rank_tolerance leaves them out)" if "rank_tolerance" in known else ""
    for expert in experts:
        if not isinstance(expert, AdaptedCheckpoint) or not expert.ranks:
            continue
        name, rank = max(expert.ranks.items(), key=lambda item: (item[1], item[0]))
        full = min(expert.header[name].shape) if name in expert.header else 0
        if rank < full:
            notes.append(
                f"{expert.name} is an adapter: its update has rank {rank} at most, of {full}; {recipe.method} raises "
                f"small singular values and is ill-posed on those that are zero{way}"
            )
    return notes
