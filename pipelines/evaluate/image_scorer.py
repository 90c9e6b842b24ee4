"""A suite of pictures built once and run on one image tower after another: only the weights change in between."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lm_eval.api import metrics
from torch import Tensor, nn

from conf.errors import UserError
from conf.schema import Suite, SuiteTask
from mergeopt_core.randomness import random_state_restored
from pipelines.evaluate.build import choose, reason
from pipelines.evaluate.evaluator import check_dtype
from pipelines.evaluate.image_suite import split_of
from pipelines.evaluate.samples import SCHEMA
from pipelines.evaluate.score import Evaluation, TaskScore, document_table, standard_error
from pipelines.images.clip import image_processor, text_head
from pipelines.images.data import Pictures, described, open_split
from pipelines.images.pixels import Pixels
from pipelines.process import at_rest, fitting_threads, offline, silence, threads
from pipelines.progress import SILENT, Progress


@dataclass
class ImageTask:
    """One task of the suite: its pictures, which of them are scored, and the head of its classes."""

    key: str
    spec: SuiteTask
    pictures: Pictures | None = None
    places: list[int] = field(default_factory=list)
    pixels: Pixels | None = None
    head: Tensor | None = None
    """[C, d]"""
    error: str | None = None


class ImageEvaluator:
    """Pictures and heads of one suite and one base, made once; ``evaluate`` is called with one tower after another.

    As ``Evaluator`` does for text. ``folder`` is the base's, whose text tower and image processor are used; heads are
    kept below ``cache``. Raises UserError for a base that is no classifier; a task whose data do not load is listed in
    ``problems`` and marks its own cell.
    """

    def __init__(
        self,
        suite: Suite,
        folder: Path,
        *,
        datasets: str | None = None,
        online: bool = False,
        threads: int | None = None,
        progress: Progress = SILENT,
        cache: Path | None = None,
    ):
        self.suite, self.folder, self.threads, self.cache = suite, Path(folder), threads, cache
        self.batch_size = suite.batch_size
        with random_state_restored(), silence(), offline(not online or datasets is not None):
            processor = image_processor(folder)
            with progress.step(f"building {suite.name}", len(suite.tasks)) as step:
                self.tasks = []
                for key, spec in suite.tasks.items():
                    self.tasks.append(self._build(key, spec, processor, datasets, online))
                    step.advance()

    @property
    def problems(self) -> dict[str, str]:
        """Tasks that could not be built, and why."""
        return {task.key: task.error for task in self.tasks if task.error is not None}

    def _build(self, key: str, spec: SuiteTask, processor: Any, datasets: str | None, online: bool) -> ImageTask:
        task = ImageTask(key, spec)
        assert spec.images is not None
        try:
            task.pictures = open_split(spec.images, split_of(spec, self.suite), datasets, online)
            task.places = choose(key, len(task.pictures), spec, self.suite)
            task.pixels = Pixels(task.pictures, processor, task.places, len(self.suite.tasks))
        except Exception as error:
            task.error = reason(error)
            return task
        templates = described(spec.images)[1]
        task.head = text_head(self.folder, task.pictures.classes, templates, self.cache)
        return task

    def evaluate(
        self,
        model: nn.Module,
        *,
        name: str | None = None,
        source: dict[str, Any] | None = None,
        progress: Progress = SILENT,
        make_room: Callable[[], bool] = bool,
    ) -> Evaluation:
        """Score an image tower as it stands now; ``source`` says where its weights come from.

        Raises UserError when its weights have another dtype than the suite says, or when its logits are NaN. Out of
        memory, where ``make_room`` frees none, halves the batch size, for this and all later models, and starts anew.
        """
        check_dtype(model, self.suite)
        start = time.perf_counter()
        who = name or getattr(model, "name_or_path", "") or type(model).__name__
        with random_state_restored(), silence(), threads(self.threads or fitting_threads(model)), at_rest(model):
            while True:
                try:
                    said = self._answers(model, who, progress)
                    break
                except torch.OutOfMemoryError:
                    if not make_room():
                        self._halve(who)
        scores = {task.key: self._score(task, said.get(task.key, [])) for task in self.tasks}
        seconds = time.perf_counter() - start
        versions = self._versions(model)
        return Evaluation(
            tasks=scores,
            documents=document_table([
                (task.key, str(place), "acc", float(right))
                for task in self.tasks
                for place, right in zip(task.places, _right(task, said.get(task.key, [])))
            ]),
            samples=self._samples(said),
            batch_size=self.batch_size,
            seconds=seconds,
            versions=versions,
            lm_eval=_layout(scores, self.suite, versions, source or {"model": f"{who} (in memory)"}, seconds),
        )  # fmt: skip

    def _halve(self, who: str) -> None:
        if self.batch_size == 1:
            raise UserError(f"out of memory at batch size 1 ({who})", do="use a larger device")
        self.batch_size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _answers(self, model: nn.Module, who: str, progress: Progress) -> dict[str, list[int]]:
        """The class that the model gives every scored picture, by task; a task that fails is marked."""
        said: dict[str, list[int]] = {}
        with progress.step("scoring", sum(len(task.places) for task in self.tasks)) as step, torch.no_grad():
            for task in self.tasks:
                if task.head is None:
                    continue
                found: list[int] = []
                try:
                    for i in range(0, len(task.places), self.batch_size):
                        places = task.places[i : i + self.batch_size]
                        found += _classes(model, task, places, f"{who}, task {task.key}")
                        step.advance(len(places))
                    said[task.key] = found
                except UserError as error:
                    if "logits" in error.what:
                        raise
                    task.error, task.head = str(error), None
        return said

    def _score(self, task: ImageTask, said: list[int]) -> TaskScore:
        right = _right(task, said)
        if task.error is not None or not right:
            return TaskScore("acc", math.nan, math.nan, 0, task.error or "no picture was scored")
        error = standard_error(metrics.mean, right, self.suite.seed)
        return TaskScore("acc", sum(right) / len(right), error, len(right))

    def _samples(self, said: dict[str, list[int]]) -> pa.Table:
        """What the model called the first ``suite.samples`` pictures of every task, in the form of lm-eval's lines."""
        kept = self.suite.samples
        most = None if kept == "all" else 0 if kept == "none" else int(kept)
        rows = []
        for task in self.tasks:
            answers = list(zip(task.places, said.get(task.key, []), _right(task, said.get(task.key, []))))
            for place, answer, right in answers[:most]:
                assert task.pictures is not None
                words, label = task.pictures.classes, task.pictures.labels[place]
                line = {
                    "doc_id": place,
                    "doc": {"picture": f"{task.pictures.name}, picture {place}", "label": words[label]},
                    "target": words[label],
                    "arguments": {"gen_args_0": {"arg_0": f"{task.pictures.name}, picture {place}"}},
                    "resps": [[words[answer]]],
                    "filtered_resps": [words[answer]],
                    "filter": "none",
                    "metrics": ["acc"],
                    "acc": right,
                }
                rows.append((task.key, str(place), task.key, json.dumps(line, ensure_ascii=False)))
        return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)

    def _versions(self, model: nn.Module) -> dict[str, Any]:
        weight = next(model.parameters())
        packages = ("transformers", "torch", "datasets", "pillow", "tokenizers")
        return {
            "packages": {name: importlib.metadata.version(name) for name in packages},
            "python": platform.python_version(),
            "seed": self.suite.seed,
            "tasks": {task.key: {"classes": len(task.head), "pictures": len(task.places)}
                      for task in self.tasks if task.head is not None},
            "device": str(weight.device),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
        }  # fmt: skip


def _classes(model: nn.Module, task: ImageTask, places: list[int], where: str) -> list[int]:
    """The class of highest cosine for each picture; UserError where the model gives none."""
    assert task.pixels is not None
    assert task.head is not None
    weight = next(model.parameters())
    features = model(pixel_values=task.pixels.batch(places).to(weight.device, weight.dtype))[0].float()  # [B, d]
    logits = features / features.norm(dim=-1, keepdim=True) @ task.head.to(weight.device).T  # [B, C]
    if torch.isnan(logits).any():
        raise UserError("the model's logits are NaN", where=where, do="the weights are broken")
    return logits.argmax(-1).tolist()


def _right(task: ImageTask, said: list[int]) -> list[float]:
    """1 for each picture whose class was said, else 0."""
    labels = task.pictures.labels if task.pictures is not None else []
    return [float(labels[place] == answer) for place, answer in zip(task.places, said)]


def _layout(
    scores: dict[str, TaskScore], suite: Suite, versions: dict[str, Any], source: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The results in the layout of lm-eval's results file, as far as it has a place for them."""
    known = {name: score for name, score in scores.items() if score.error is None}
    return {
        "results": {name: {"alias": name, "sample_len": s.n, "acc,none": s.value, "acc_stderr,none": s.stderr}
                    for name, s in known.items()},
        "n-samples": {name: {"effective": s.n} for name, s in known.items()},
        "higher_is_better": {name: {"acc": True} for name in known},
        "config": {"model": "mergebench", "model_args": source, "batch_size": versions["batch_size"],
                   "device": versions["device"], "limit": suite.limit, "sample": suite.sample},
        "date": time.time() - seconds,
        "transformers_version": versions["packages"]["transformers"],
        "total_evaluation_time_seconds": str(seconds),
    }  # fmt: skip
