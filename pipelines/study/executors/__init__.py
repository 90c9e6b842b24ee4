"""Executors: the same trials in this process or on many workers.

All take trials, tell of each as it ends, keep going past the ones that fail, and try these again at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from conf.errors import UserError, nearest
from conf.schema import Executor
from pipelines.progress import SILENT, Progress
from pipelines.study.experts import Job
from pipelines.study.sources import Access
from pipelines.study.trial import OnWork, Outcome, Trial


class Workers(Protocol):
    """Workers that stay for as long as there may be trials for them, with what they have loaded."""

    def run(self, trials: Sequence[Trial], on_trial: OnWork[Trial]) -> Outcome[Trial]:
        """Run trials; a failing one is tried ``executor.retries`` times more, then set aside."""

    def train(self, jobs: Sequence[Job], ended: Callable[[Job], None], progress: Progress) -> list[str]:
        """Make experts side by side where that pays; why jobs failed, where they did."""

    def shutdown(self) -> None:
        """End the workers."""


@contextmanager
def open_workers(executor: Executor, access: Access, progress: Progress = SILENT) -> Iterator[Workers]:
    """The workers of the executor that the configuration names, started with the first trial.

    ``progress`` hears of what goes on within a trial, where that is in this process.
    """
    workers: Workers
    if executor.name == "local":
        from pipelines.study.executors.local import LocalWorker

        workers = LocalWorker(executor, access, progress)
    elif executor.name == "ray":
        from pipelines.study.executors.ray import RayWorkers

        workers = RayWorkers(executor, access)
    else:
        do = nearest(executor.name, ["local", "ray"])
        raise UserError(f"no executor is called {executor.name!r}", where="executor.name", do=do)
    try:
        yield workers
    finally:
        workers.shutdown()


def run_trials(
    trials: Sequence[Trial], executor: Executor, access: Access, on_trial: OnWork[Trial], progress: Progress = SILENT
) -> Outcome[Trial]:
    """Run trials with the executor that the configuration names."""
    with open_workers(executor, access, progress) as workers:
        return workers.run(trials, on_trial)
