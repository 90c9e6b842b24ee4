"""What a report is made of: one row a trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow

Kind = Literal["base", "expert", "merge"]


@dataclass(frozen=True)
class TrialRow:
    """One scored model: a base, an expert or a merge."""

    study: str
    """Name of the study."""
    pool: str
    """Name of the pool."""
    kind: Kind
    """base, expert or merge."""
    method: str | None
    """Name of the merge method as the study calls it; None for a base or an expert."""
    label: str
    """Name of the model in tables."""
    experts: tuple[str, ...]
    """Names of the merged experts in order; an expert's own name; empty for a base."""
    parameters: Mapping[str, Any]
    """Parameters of the merge method."""
    key: str
    """Key of the trial in the store."""
    scores: Mapping[str, float]
    """Score on each task of the suite; NaN or absent where the task failed."""
    n: Mapping[str, int]
    """Documents scored on each task."""
    documents: pyarrow.Table | Callable[[], pyarrow.Table] | None = None
    """Per-document scores (task, document, metric, value), or what loads them when asked; None: not kept."""
    suite: str = ""
    """Name of the suite."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Time spent, by stage."""
    weights: str | None = None
    """Folder of the merged checkpoint where it was kept."""
    attack: str = "none"
    """Perturbation of the prompts that the scores were taken under."""
    base: str = ""
    """What the pool's base is, so that pools of other bases are not compared."""
    reference: str | None = None
    """Pool that this row's pool is compared with; None: the plainly trained one of the same base, or the first."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How the result came about: base, training, seeds, evaluation settings, machine; empty where it is not known."""

    @property
    def scored(self) -> bool:
        """Whether there is a result (perhaps with failed tasks)."""
        return bool(self.scores or self.provenance)

    def table(self) -> pyarrow.Table | None:
        """The per-document scores, loaded if need be."""
        return self.documents() if callable(self.documents) else self.documents

    def complete(self, tasks: list[str]) -> bool:
        """Whether every one of the tasks has a score."""
        return all(not math.isnan(self.scores.get(task, math.nan)) for task in tasks)


@dataclass(frozen=True)
class PanelKey:
    """What must be the same for two trials to stand in one table."""

    study: str
    pool: str
    suite: str
    attack: str

    @classmethod
    def of(cls, row: TrialRow) -> PanelKey:
        """The panel that a row belongs to."""
        return cls(row.study, row.pool, row.suite, row.attack)


def panel_titles(keys: list[PanelKey]) -> dict[PanelKey, str]:
    """A short name for every panel: its pool, and of study, suite and attack what is needed to tell them apart."""
    orders: list[tuple[str, ...]] = [("pool",), ("study", "pool"), ("pool", "suite"), ("pool", "attack")]
    orders += [("study", "pool", "suite"), ("study", "pool", "attack"), ("pool", "suite", "attack")]
    orders += [("study", "pool", "suite", "attack")]
    titles: dict[PanelKey, str] = {}
    for fields in orders:
        titles = {key: " · ".join(_parts(key, fields)) for key in keys}
        if len(set(titles.values())) == len(set(keys)):
            break
    return titles


def _parts(key: PanelKey, fields: tuple[str, ...]) -> list[str]:
    named = [(field, getattr(key, field)) for field in fields]
    return [value for field, value in named if value and (field, value) != ("attack", "none")]
