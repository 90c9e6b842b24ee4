"""Experiment trackers of a sweep: W&B, MLflow and trackio get what the report says, and every trial as it finishes."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from conf.errors import UserError, redacted
from conf.schema import Config
from pipelines.progress import Progress
from pipelines.report import Report

PROJECT = "mergebench"
"""Project (MLflow: experiment) of the runs; WANDB_PROJECT, TRACKIO_PROJECT, MLFLOW_EXPERIMENT_NAME name another."""


class Tracker(Protocol):
    """One run at one service."""

    def trial(self, title: str, numbers: Mapping[str, float]) -> None:
        """Log a trial's scalars."""

    def files(self, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        """Log tables (CSV) and figures (PNG) by name."""

    def close(self, complete: bool) -> None:
        """End the run."""


class Wandb:
    """A run of W&B, or of trackio, which has W&B's interface; a step a trial."""

    def __init__(self, package: str, name: str, settings: Mapping[str, Any]):
        self.package = import_module(package)
        project = os.environ.get(f"{package.upper()}_PROJECT", PROJECT)
        self.run = self.package.init(project=project, name=name, config=dict(settings))

    def trial(self, title: str, numbers: Mapping[str, float]) -> None:
        """Log a trial's scalars, with its title beside them."""
        self.run.log({"trial": title, **numbers})

    def files(self, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        """Log all tables and figures in one step."""
        frames = {name: pd.read_csv(file) for name, file in tables.items()}
        shown = {name: self.package.Table(dataframe=f, allow_mixed_types=True) for name, f in frames.items()}
        self.run.log(shown | {name: self.package.Image(str(file)) for name, file in figures.items()})

    def close(self, complete: bool) -> None:
        """End the run."""
        self.run.finish()


class Mlflow:
    """A run of MLflow; a trial is a run within it, as MLflow's own searches do it."""

    def __init__(self, package: str, name: str, settings: Mapping[str, Any]):
        self.package = import_module(package)
        self.package.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        self.package.start_run(run_name=name)
        self.package.log_dict(dict(settings), "config.json")

    def trial(self, title: str, numbers: Mapping[str, float]) -> None:
        """Log a trial's scalars as a run of its own below the study's."""
        with self.package.start_run(run_name=title, nested=True):
            self.package.log_metrics(dict(numbers))

    def files(self, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        """Log the files as artifacts, in folders ``tables`` and ``figures``."""
        for folder, found in (("tables", tables), ("figures", figures)):
            for file in found.values():
                self.package.log_artifact(str(file), folder)

    def close(self, complete: bool) -> None:
        """End the run."""
        self.package.end_run("FINISHED" if complete else "KILLED")


KINDS: dict[str, Callable[[str, str, Mapping[str, Any]], Tracker]] = {
    "wandb": Wandb, "mlflow": Mlflow, "trackio": Wandb
}  # fmt: skip


class Trackers:
    """The trackers of one study; one that fails is told once, and the study goes on without it."""

    def __init__(self, names: Sequence[str], progress: Progress):
        self.names, self.progress = names, progress
        self.open: dict[str, Tracker] = {}
        self.told: set[str] = set()

    def start(self, study: str, config: Config) -> None:
        """Open a run for each; UserError where a service does not take it, since nothing is spent yet."""
        for name in self.names:
            try:
                told = json.loads(redacted(json.dumps(asdict(config), default=str)))
                with redirect_stdout(sys.stderr):  # some print; standard output is the answer's
                    self.open[name] = KINDS[name](name, study, told)
            except Exception as error:
                do = "see to its settings (an account, an address), or leave it out of trackers"
                raise UserError(f"{name} opens no run: {_line(error)}", where="trackers", do=do) from None

    def trial(self, key: str, title: str, about: Mapping[str, Any]) -> None:
        """Tell a trial's scores, their mean, seconds and norm of the update, once."""
        if key in self.told or not self.open:
            return
        self.told.add(key)
        scores = {name: task["value"] for name, task in about["tasks"].items() if not task["error"]}
        numbers = {f"tasks/{name}": value for name, value in scores.items()}
        if len(scores) == len(about["tasks"]):
            numbers["mean"] = sum(scores.values()) / max(1, len(scores))
        numbers |= {f"seconds/{stage}": value for stage, value in about.get("seconds", {}).items()}
        numbers["update_norm"] = about.get("update_norm")
        known = {k: float(v) for k, v in numbers.items() if v is not None and math.isfinite(v)}
        self._each(lambda tracker: tracker.trial(title, known))

    def report(self, report: Report | None) -> None:
        """Tell the report's tables and figures."""
        files = report.paths if report else {}
        tables = {_name(n): p for n, p in files.items() if n.endswith(".csv") and not n.startswith("figures/")}
        figures = {_name(n): p for n, p in files.items() if n.endswith(".png")}
        self._each(lambda tracker: tracker.files(tables, figures))

    def close(self, complete: bool) -> None:
        """End all runs."""
        self._each(lambda tracker: tracker.close(complete))
        self.open.clear()

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            try:
                with redirect_stdout(sys.stderr):
                    tell(tracker)
            except Exception as error:
                del self.open[name]
                self.progress.note(f"{name} is told no more: {_line(error)}", "warning")


def check_trackers(names: Sequence[str]) -> None:
    """UserError for a tracker that there is not, or that is not installed."""
    for name in names:
        if name not in KINDS:
            raise UserError(f"unknown tracker {name!r}", where="trackers", do=f"valid names: {', '.join(KINDS)}")
        if find_spec(name) is None:
            raise UserError(f"{name} is not installed", where="trackers", do=f"pip install 'mergebench[{name}]'")


@contextmanager
def tracking(config: Config, progress: Progress) -> Iterator[Trackers]:
    """The trackers of a study, checked at once and, whatever happens, closed at the end."""
    check_trackers(config.trackers)
    trackers = Trackers(config.trackers, progress)
    try:
        yield trackers
    finally:
        trackers.close(False)


def _name(file: str) -> str:
    return file.rpartition(".")[0]


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
