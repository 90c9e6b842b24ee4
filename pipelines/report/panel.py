"""One panel: the trials of one pool on one suite, with the bootstrap replicates that every table is read from."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conf.schema import Statistics
from mergeopt_core.statistics import Interval, cluster_weights, difference_p, percentile_interval, task_replicates
from pipelines.report.data import PanelKey, Samples, TrialRow, gather, panel_titles, trial_frame
from pipelines.store.provenance import joined


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
    incomplete: list[TrialRow]
    """Models without a result, or with a task that failed."""
    samples: Samples
    statistics: Statistics
    trials: list[int] = field(default_factory=list)
    """Places of ``rows`` in the tidy table's column ``trial``."""
    base: int | None = None
    experts: dict[tuple[str, int], int] = field(default_factory=dict)
    """Rows by name and training run."""
    joint: dict[int, int] = field(default_factory=dict)
    """Rows of the models trained on all tasks together, by training run."""
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

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if row.kind == "base":
                self.base = i
            elif row.kind == "expert":
                self.experts[row.experts[0], row.run] = i
            elif row.kind == "joint":
                self.joint[row.run] = i
            else:
                self.merges.append(i)

    @property
    def provenance(self) -> dict[str, Any]:
        """How the panel's results came about; of columns in which they differ, all values."""
        columns = [row.provenance for row in (*self.rows, *self.incomplete) if row.provenance]
        return {name: joined(values[name] for values in columns) for name in columns[0]} if columns else {}

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

    def parents(self, merge: int) -> list[int] | None:
        """Rows of the experts that a merge is of; None where one of them has no score."""
        row = self.rows[merge]
        found = [self.experts[name, row.run] for name in row.experts if (name, row.run) in self.experts]
        return found if len(found) == len(row.experts) else None

    def cells(self, merges: Iterable[int] | None = None) -> dict[tuple[str, int], list[int]]:
        """Rows of the merges (default: all) by method and number of experts."""
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for m in self.merges if merges is None else merges:
            groups[self.rows[m].method or "?", len(self.rows[m].experts)].append(m)
        return groups

    def interval(self, estimate: float, replicates: NDArray, differing: int | None = None) -> Interval:
        """Percentile interval at the report's confidence; with a p-value when it is a difference."""
        p = None if differing is None else difference_p(estimate, replicates, differing)
        return percentile_interval(estimate, replicates, self.statistics.confidence, p=p)

    def differing(self, rows: list[int], others: list[int], panel: Panel | None = None) -> int:
        """Documents on which any of the rows differs from its counterpart, in this panel or another."""
        theirs = (panel or self).samples.documents
        return sum(int((m[rows] != theirs[t][others]).any(axis=0).sum()) for t, m in self.samples.documents.items())

    def subsets(self, rows: list[int]) -> list[frozenset[str]]:
        """The experts that each row is of, whatever their order."""
        return [frozenset(self.rows[row].experts) for row in rows]

    def alike(self, rows: list[int]) -> NDArray:
        """Weights `[rows]` that average the rows: every subset alike, however many orders and draws it has."""
        found = self.subsets(rows)
        return np.array([1 / (found.count(subset) * len({*found})) for subset in found])

    def cluster(self, rows: list[int]) -> NDArray:
        """Weights `[rows, B]` that average the rows, resampling the draw of their expert subsets.

        Rows of the same subset (other seeds, other orders) are one cluster; subsets that are all there are of their
        size are not resampled, as there was no draw. The same subsets get the same weights whatever the method.
        """
        groups: dict[frozenset[str], list[int]] = defaultdict(list)
        for place, subset in enumerate(self.subsets(rows)):
            groups[subset].append(place)
        subsets = sorted(groups, key=sorted)
        sizes = {len(s) for s in subsets}
        population = math.comb(self.pool_size, sizes.pop()) if len(sizes) == 1 else None
        seed = self.statistics.seed + zlib.crc32(repr([sorted(s) for s in subsets]).encode())
        drawn = cluster_weights(len(subsets), population, resamples=self.statistics.resamples, seed=seed)
        weights = np.empty((len(rows), self.statistics.resamples))
        for subset, row_weights in zip(subsets, drawn):
            weights[groups[subset]] = row_weights / len(groups[subset])
        return weights


def build_panels(
    rows: Sequence[TrialRow], statistics: Statistics, frame: pd.DataFrame | None = None, candidates: bool = False
) -> list[Panel]:  # fmt: skip
    """Group the trials (whose tidy ``frame`` may be at hand) by study, pool, suite and attack, and draw replicates.

    Those that are reported, or the ``candidates`` of selections, which are scored on another split; every setting of a
    grid is a method of its own.
    """
    frame = trial_frame(rows) if frame is None else frame
    frame = frame[frame["split"].notna() == candidates] if "split" in frame else frame.iloc[: 0 if candidates else None]
    rows = [replace(row, method=row.columns.get("setting") or row.method) for row in rows]
    groups = {PanelKey(*map(str, key)): lines for key, lines in frame.groupby(list(PanelKey._fields), sort=False)}
    panels = []
    for (key, lines), title in zip(groups.items(), panel_titles(list(groups))):
        tasks, whole = list(lines.dropna(subset="value")["task"].unique()), whole_trials(lines)
        complete, incomplete = ([rows[trial] for trial in whole.index[mask].tolist()] for mask in (whole, ~whole))
        panels.append(Panel(key, title, complete, incomplete, gather(complete, tasks), statistics))
        panels[-1].trials = whole.index[whole].tolist()
        _replicate(panels[-1])
    return panels


def whole_trials(lines: pd.DataFrame) -> pd.Series:
    """Which trials of a group have a score in every task that any of them has one in."""
    scored = lines.groupby("trial")["value"].count()
    tasks = lines.dropna(subset="value")["task"].nunique()
    return (scored == tasks) & bool(tasks)


def scored_candidates(rows: Sequence[TrialRow], frame: pd.DataFrame) -> list[TrialRow]:
    """The candidates of selections that have a result."""
    if "split" not in frame:
        return []
    found: list[TrialRow] = []
    for _, lines in frame[frame["split"].notna()].groupby(list(PanelKey._fields), sort=False):
        whole = whole_trials(lines)
        found += [rows[trial] for trial in whole.index[whole].tolist()]
    return found


def _replicate(panel: Panel) -> None:
    """Draw every task's replicates once, for the suite score and for what merges keep of their experts' own skill.

    What a merge keeps is Σ(merge − base) / Σ(expert − base) over its experts' own tasks; it is said of those merges
    whose experts' gains together are beyond noise. Task by task, as the draws of all tasks at once would not fit.
    """
    samples, draw, count = panel.samples, panel.statistics, len(panel.rows)
    total, won_draws, gain_draws = np.zeros((3, count, draw.resamples))
    won, gain, ratios, counted = np.zeros((4, count))
    for task in samples.tasks:
        point = samples.scores[task]
        if task in samples.documents:
            drawn = task_replicates(samples.documents[task], resamples=draw.resamples, seed=draw.seed, task=task)
        else:
            drawn = np.repeat(point[:, None], draw.resamples, axis=1)
        total += drawn
        for skill in _skills(panel, task, drawn):
            panel.skills.append(skill)
            run = panel.rows[skill.expert].run
            members = [m for m in panel.merges if task in panel.rows[m].experts and panel.rows[m].run == run]
            won[members] += point[members] - point[panel.base]
            gain[members] += skill.gain.estimate
            won_draws[members] += drawn[members] - drawn[panel.base]
            gain_draws[members] += drawn[skill.expert] - drawn[panel.base]
            if skill.gain.low > 0:
                ratios[members] += (point[members] - point[panel.base]) / skill.gain.estimate
                counted[members] += 1
    tasks = max(1, len(samples.tasks))
    panel.scores = sum(samples.scores.values(), np.zeros(count)) / tasks
    panel.replicates = total / tasks if samples.documents else np.full_like(total, np.nan)
    low = np.quantile(gain_draws, (1 - draw.confidence) / 2, axis=1) if count else np.zeros(0)
    sure = np.where(low > 0, 1.0, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        panel.kept, panel.kept_each = won / gain * sure, ratios / counted
        panel.kept_replicates = won_draws / gain_draws * sure[:, None]


def _skills(panel: Panel, task: str, drawn: NDArray) -> list[Skill]:
    """The experts of this task's name, one a training run, against the base on it; none where not both were scored."""
    experts = [row for (name, _), row in panel.experts.items() if name == task]
    base, found = panel.base, []
    if base is None or task not in panel.samples.documents:
        return []
    point, matrix = panel.samples.scores[task], panel.samples.documents[task]
    for expert in experts:
        differing = int((matrix[expert] != matrix[base]).sum())
        gain = panel.interval(point[expert] - point[base], drawn[expert] - drawn[base], differing)
        own, plain = (panel.interval(point[row], drawn[row]) for row in (expert, base))
        seed = panel.rows[expert].provenance.get("training_seed")
        name = task if len(experts) == 1 else f"{task} (seed {seed})"
        found.append(Skill(name, expert, own, plain, gain))
    return found
