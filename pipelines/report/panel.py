"""One panel: the trials of one pool on one suite, with the bootstrap replicates that every table is read from."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.schema import Statistics
from mergeopt_core.statistics import Interval, cluster_weights, difference_p, percentile_interval, task_replicates
from pipelines.report.data import PanelKey, Samples, TrialRow, gather, panel_titles
from pipelines.store.results import joined


@dataclass
class Skill:
    """An expert on the task of its own name."""

    name: str
    expert: int
    """The expert's row."""
    score: Interval
    base: Interval
    gain: Interval


@dataclass(eq=False)
class Panel:
    """Rows that can be compared, and their replicates."""

    key: PanelKey
    title: str
    rows: list[TrialRow]
    samples: Samples
    statistics: Statistics
    base: int | None = None
    experts: dict[str, int] = field(default_factory=dict)
    merges: list[int] = field(default_factory=list)
    scores: NDArray = field(default_factory=lambda: np.empty(0))
    """Suite score of every row `[rows]`: the macro mean over tasks."""
    replicates: NDArray = field(default_factory=lambda: np.empty((0, 0)))
    """Their bootstrap replicates `[rows, B]`; NaN where a row has no documents."""
    skills: list[Skill] = field(default_factory=list)
    kept: NDArray = field(default_factory=lambda: np.empty(0))
    """Share of its experts' summed own-skill gain that each row keeps `[rows]`, NaN where it cannot be said."""
    kept_each: NDArray = field(default_factory=lambda: np.empty(0))
    """Mean of the shares of the single experts whose own gain is beyond noise `[rows]`."""
    kept_replicates: NDArray = field(default_factory=lambda: np.empty((0, 0)))
    incomplete: list[TrialRow] = field(default_factory=list)
    """Models without a result, or with a task that failed."""

    @property
    def provenance(self) -> dict[str, Any]:
        """How the panel's results came about; of columns in which they differ, all values."""
        columns = [row.provenance for row in (*self.rows, *self.incomplete) if row.provenance]
        return {name: joined(told[name] for told in columns) for name in columns[0]} if columns else {}

    @property
    def plain(self) -> bool:
        """Whether all of the panel's experts were trained plainly, as far as is known."""
        trained = [row.provenance.get("training") for row in self.rows if row.kind == "expert"]
        return bool(trained) and all(str(text).split(",")[0].split(" ")[0] == "plain" for text in trained)

    @property
    def pool_size(self) -> int:
        """Number of experts in the pool, as far as the rows show."""
        return len({name for row in (*self.rows, *self.incomplete) for name in row.experts})

    @property
    def documents(self) -> int:
        """Number of documents that a row is scored on."""
        return sum(matrix.shape[1] for matrix in self.samples.documents.values())

    def interval(self, estimate: float, replicates: NDArray, differing: int | None = None) -> Interval:
        """Percentile interval at the report's confidence; with a p-value when it is a difference."""
        p = None if differing is None else difference_p(estimate, replicates, differing)
        return percentile_interval(estimate, replicates, self.statistics.confidence, p=p)

    def differing(self, rows: list[int], others: list[int]) -> int:
        """Documents on which any of the rows differs from its counterpart."""
        return sum(int((m[rows] != m[others]).any(axis=0).sum()) for m in self.samples.documents.values())

    def cluster(self, rows: list[int]) -> NDArray:
        """Weights `[rows, B]` that average the rows, resampling the draw of their expert subsets.

        Rows of the same subset (other seeds, other orders) are one cluster; subsets that are all there are of their
        size are not resampled, as there was no draw. The same subsets get the same weights whatever the method.
        """
        groups: dict[frozenset[str], list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            groups[frozenset(self.rows[row].experts)].append(place)
        subsets = sorted(groups, key=sorted)
        sizes = {len(s) for s in subsets}
        population = math.comb(self.pool_size, sizes.pop()) if len(sizes) == 1 else None
        seed = self.statistics.seed + zlib.crc32(repr([sorted(s) for s in subsets]).encode())
        drawn = cluster_weights(len(subsets), population, resamples=self.statistics.resamples, seed=seed)
        weights = np.empty((len(rows), self.statistics.resamples))
        for subset, row_weights in zip(subsets, drawn):
            weights[groups[subset]] = row_weights / len(groups[subset])
        return weights


def build_panels(rows: list[TrialRow], statistics: Statistics) -> list[Panel]:
    """Group the rows by study, pool, suite and attack, pair their documents, and draw the replicates."""
    groups: dict[PanelKey, list[TrialRow]] = defaultdict(list)
    for row in rows:
        groups[PanelKey.of(row)].append(row)
    titles = panel_titles(list(groups))
    return [_build(key, titles[key], members, statistics) for key, members in groups.items()]


def _build(key: PanelKey, title: str, rows: list[TrialRow], statistics: Statistics) -> Panel:
    tasks = list(dict.fromkeys(t for row in rows for t, s in row.scores.items() if not math.isnan(s)))
    complete = [row for row in rows if tasks and row.complete(tasks)]
    panel = Panel(key, title, complete, gather(complete, tasks), statistics)
    panel.incomplete = [row for row in rows if not (tasks and row.complete(tasks))]
    for i, row in enumerate(complete):
        if row.kind == "base":
            panel.base = i
        elif row.kind == "expert":
            panel.experts[row.experts[0]] = i
        else:
            panel.merges.append(i)
    _replicate(panel)
    return panel


def _replicate(panel: Panel) -> None:
    """Draw every task's replicates once: they go into the suite score and into what is kept of each skill."""
    samples, draw = panel.samples, panel.statistics
    total = np.zeros((len(panel.rows), draw.resamples))
    kept = _Kept(panel)
    for task in samples.tasks:
        if task in samples.documents:
            drawn = task_replicates(samples.documents[task], resamples=draw.resamples, seed=draw.seed, task=task)
        else:
            drawn = np.repeat(samples.scores[task][:, None], draw.resamples, axis=1)
        total += drawn
        skill = _skill(panel, task, drawn)
        if skill is not None:
            panel.skills.append(skill)
            kept.add(panel, skill, drawn)
    tasks = max(1, len(samples.tasks))
    panel.scores = sum(samples.scores.values(), np.zeros(len(panel.rows))) / tasks
    panel.replicates = total / tasks if samples.documents else np.full_like(total, np.nan)
    kept.finish(panel)


class _Kept:
    """Gathers, task by task, what merges keep of their experts' own-skill gain: Σ(merge − base) / Σ(expert − base)."""

    def __init__(self, panel: Panel):
        rows = len(panel.rows)
        self.won, self.gain = np.zeros(rows), np.zeros(rows)
        self.won_draws, self.gain_draws = np.zeros((2, rows, panel.statistics.resamples))
        self.ratios, self.counted = np.zeros(rows), np.zeros(rows)

    def add(self, panel: Panel, skill: Skill, drawn: NDArray) -> None:
        point, base, expert = panel.samples.scores[skill.name], panel.base, skill.expert
        members = [m for m in panel.merges if skill.name in panel.rows[m].experts]
        self.won[members] += point[members] - point[base]
        self.gain[members] += skill.gain.estimate
        self.won_draws[members] += drawn[members] - drawn[base]
        self.gain_draws[members] += drawn[expert] - drawn[base]
        if skill.gain.low > 0:
            self.ratios[members] += (point[members] - point[base]) / skill.gain.estimate
            self.counted[members] += 1

    def finish(self, panel: Panel) -> None:
        """Keep the shares of those merges whose experts' gains together are beyond noise."""
        low = np.quantile(self.gain_draws, (1 - panel.statistics.confidence) / 2, axis=1) if len(self.gain) else 0.0
        sure = np.where(low > 0, 1.0, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            panel.kept = self.won / self.gain * sure
            panel.kept_each = self.ratios / self.counted
            panel.kept_replicates = self.won_draws / self.gain_draws * sure[:, None]


def _skill(panel: Panel, task: str, drawn: NDArray) -> Skill | None:
    """The expert of this task's name against the base, on this task; None when either was not scored."""
    expert = panel.experts.get(task)
    if expert is None or panel.base is None or task not in panel.samples.documents:
        return None
    point = panel.samples.scores[task]
    matrix = panel.samples.documents[task]
    gain = panel.interval(
        point[expert] - point[panel.base],
        drawn[expert] - drawn[panel.base],
        int((matrix[expert] != matrix[panel.base]).sum()),
    )
    return Skill(
        task,
        expert,
        panel.interval(point[expert], drawn[expert]),
        panel.interval(point[panel.base], drawn[panel.base]),
        gain,
    )
