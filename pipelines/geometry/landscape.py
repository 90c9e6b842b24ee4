"""The joint loss of two tasks over merging coefficients: L(θ; D1) + L(θ; D2) at θ = θ0 + α1 Δ1 + α2 Δ2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from conf.errors import UserError
from conf.schema import Landscape as Settings
from conf.schema import Task, Training
from pipelines.checkpoints.checkpoint import OpenCheckpoint
from pipelines.finetune.data import read_rows
from pipelines.finetune.models import Loaded, load
from pipelines.finetune.tokens import IGNORED, Collator, encode
from pipelines.geometry.write import write_files
from pipelines.merge.live import merge_into
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge
from pipelines.process import fitting_threads, silence, threads
from pipelines.progress import SILENT, Progress
from pipelines.report.plot import View

Batches = list[tuple[dict[str, Any], int]]
"""Batches of a task, each with the number of tokens that its loss is a mean over."""


@dataclass(frozen=True)
class Panel:
    """Two experts of one base, each with its task: one landscape."""

    name: str
    base: OpenCheckpoint
    experts: tuple[OpenCheckpoint, OpenCheckpoint]
    names: tuple[str, str]
    tasks: tuple[Task, Task]
    training: Training = field(default_factory=Training)
    """Its max_length holds here too."""


@dataclass
class Landscape:
    """The joint losses of all panels."""

    frame: pd.DataFrame
    """Columns panel, task_1, task_2, alpha_1, alpha_2, loss_1, loss_2, loss (their sum)."""
    summary: pd.DataFrame
    """A row per panel: the base's loss, the least one and where it is, the mean, and the share within 10 % of it."""
    out: Path
    paths: list[Path]


def write_landscape(
    panels: Sequence[Panel], out: Path, settings: Settings, *, seed: int = 0, datasets: str | None = None,
    online: bool = True, device: str = "auto", progress: Progress = SILENT, **match: Any,
) -> Landscape:  # fmt: skip
    """Compute every panel's losses over the grid and write tables and the contour map; one model a base is loaded.

    A task's loss is training's: the mean negative log-likelihood of the completion tokens, here over all of its
    examples. ``match`` are a recipe's ``vocab`` and ``strict``.
    Raises ``UserError`` for wrong settings, experts that are not the base's, and a loss that is no number.
    """
    alphas, frames, loaded = grid(settings), [], None
    merges = [_merge(panel, match) for panel in panels]
    for merge in merges:
        merge((0.0, 0.0)).check()
    with silence(), progress.step("landscape", len(panels) * len(alphas) ** 2) as step:
        for panel, merge in zip(panels, merges):
            if loaded is None or loaded.folder != panel.base.folder:
                loaded = load(panel.base.folder, Training(), "plain", device)
                loaded.model.to(loaded.device).eval()
            source = (settings, panel.training, seed, datasets, online)
            data = [task_batches(task, loaded, *source) for task in panel.tasks]
            rows = []
            with threads(fitting_threads(loaded.model)):
                for first in alphas:
                    for second in alphas:
                        merge_into(loaded.model, merge((first, second)))
                        losses = [mean_loss(loaded.model, batches) for batches in data]
                        _check(panel, first, second, losses)
                        rows.append((first, second, *losses, sum(losses)))
                        step.advance(1)
            frame = pd.DataFrame(rows, columns=["alpha_1", "alpha_2", "loss_1", "loss_2", "loss"])
            about = {"panel": panel.name, "task_1": panel.names[0], "task_2": panel.names[1]}
            frames.append(frame.assign(**about)[[*about, *frame.columns]])
    made = pd.concat(frames, ignore_index=True)
    summary = summarise(made)
    paths = write_files(out, {"losses": made, "summary": summary}, {"landscape": drawing(made)})
    return Landscape(made, summary, out, paths)


def grid(settings: Settings) -> list[float]:
    """Values of α1 and of α2; UserError for a grid of less than two."""
    if settings.points < 2 or not settings.low < settings.high:
        what = f"{settings.points} points from {settings.low} to {settings.high} are no grid"
        raise UserError(what, where="landscape", do="give low < high, and 2 points or more")
    if settings.examples < 1 or settings.batch_size < 1:
        what = f"a loss over {settings.examples} examples in batches of {settings.batch_size}"
        raise UserError(f"{what} is none", where="landscape", do="give 1 or more of each")
    return [round(float(value), 12) for value in np.linspace(settings.low, settings.high, settings.points)]


def _merge(panel: Panel, match: dict[str, Any]) -> Any:
    """The merge at (α1, α2), in float32: θ0 + Σ αk Δk, nothing normalised."""
    ids = [f"1 {panel.names[0]}", f"2 {panel.names[1]}"]

    def at(alphas: tuple[float, float]) -> Merge:
        parameters = {"weight": list(alphas), "normalize": False, "lambda": 1.0}
        paths = (panel.experts[0].path, panel.experts[1].path)
        recipe = Recipe(panel.base.path, paths, "task_arithmetic", parameters, dtype="float32", **match)
        return Merge(recipe, panel.base, panel.experts, ids, base_id=panel.base.path)

    return at


def task_batches(
    task: Task, loaded: Loaded, settings: Settings, training: Training, seed: int, datasets: str | None, online: bool
) -> Batches:
    """A seeded choice of the task's examples, encoded and batched as for training; long prompts are cut."""
    limit = settings.examples if task.limit is None else min(task.limit, settings.examples)
    rows = read_rows(replace(task, limit=limit), seed, datasets, online)
    examples = encode(rows, loaded.tokenizer, task, replace(training, truncate=True), loaded.context)
    examples.sort(key=lambda example: len(example.ids))  # batches of like lengths
    collate, size = Collator(loaded.pad), settings.batch_size
    batches = [collate(examples[i : i + size]) for i in range(0, len(examples), size)]
    kept = [{name: batch[name].to(loaded.device) for name in ("input_ids", "labels")} for batch in batches]
    return [(batch, int(batch["labels"][:, 1:].ne(IGNORED).sum())) for batch in kept]


@torch.no_grad()
def mean_loss(model: Any, batches: Batches) -> float:
    """Mean negative log-likelihood of all completion tokens, in nats: the Trainer's loss of one step over them all."""
    total = sum(float(model(**batch).loss) * count for batch, count in batches if count)
    return total / sum(count for _, count in batches)


def _check(panel: Panel, first: float, second: float, losses: list[float]) -> None:
    if not np.isfinite(losses).all():
        what = f"{panel.name}: the loss is {losses} at α = ({first}, {second})"
        raise UserError(what, where="landscape", do="choose a narrower range with landscape.low and landscape.high")


def drawing(frame: pd.DataFrame) -> tuple[View, pd.DataFrame]:
    """Contour maps of the joint loss, a panel each, on one colour scale."""
    named = frame.rename(columns={"alpha_1": "x", "alpha_2": "y", "loss": "z"})
    return View("Joint loss of two tasks at θ0 + α1 Δ1 + α2 Δ2", "contour", "α1", "α2"), (
        named[["panel", "x", "y", "z"]].assign(line="")
    )


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """What a landscape comes to, one row per panel."""
    rows = []
    for name, own in frame.groupby("panel", sort=False):
        least = own.nsmallest(1, "loss").iloc[0]
        base = own[(own["alpha_1"] == 0) & (own["alpha_2"] == 0)]["loss"]
        rows.append({
            "panel": name, "base": float(base.iloc[0]) if len(base) else None, "least": float(least["loss"]),
            "alpha_1": float(least["alpha_1"]), "alpha_2": float(least["alpha_2"]), "mean": float(own["loss"].mean()),
            "near_least": float((own["loss"] <= 1.1 * least["loss"]).mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)
