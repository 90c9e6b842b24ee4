"""The one number of a trial."""

from __future__ import annotations

from pipelines.store import Store
from pipelines.trial import Trial


def mean_score(trial: Trial, store: Store) -> float | None:
    """Mean over the suite's tasks; None where the store holds no complete result."""
    if not store.has("results", trial.key, complete=True):
        return None
    values = [task["value"] for task in store.entry("results", trial.key).describe()["tasks"].values()]
    return sum(values) / len(values) if values and None not in values else None
