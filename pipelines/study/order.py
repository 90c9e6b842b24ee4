"""The order in which trials run: what one has loaded serves the next."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.study.trial import Trial

Subset = frozenset[str]
"""Paths of the experts that a trial reads."""


def by_inputs(trials: Sequence[Trial]) -> list[Trial]:
    """Base by base in the order given: its single models, then all merges of a subset together.

    Each subset is followed by the one, of those that are left, of which it holds most: the fewest experts are new.
    """
    groups: dict[str, dict[Subset, list[Trial]]] = {}
    for trial in trials:
        group = groups.setdefault(trial.base.path, {})
        group.setdefault(trial.reads if trial.merge else Subset(), []).append(trial)
    return [trial for group in groups.values() for subset in _path(list(group)) for trial in group[subset]]


def _path(subsets: list[Subset]) -> list[Subset]:
    """A greedy path over subsets from the smallest; the earlier one where several would do."""
    left, path = dict.fromkeys(sorted(subsets, key=len)), []
    here = Subset()
    while left:
        here = min(left, key=lambda subset: (len(subset - here), len(subset)))
        path.append(here)
        del left[here]
    return path
