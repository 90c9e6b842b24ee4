"""The local executor: this process, one trial after another.

Several processes may run the same study on one store: a trial that another one holds is left for later and then found
done, so that they share the work instead of repeating it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache

import psutil

from conf.schema import Executor
from pipelines.progress import Progress
from pipelines.study.experts import STARTING, Job
from pipelines.study.sources import Access
from pipelines.study.trial import OnWork, Outcome, Trial
from pipelines.study.worker import Worker

COPIES = 6
"""Of a model's weights that a process holds which trains it: weights, gradients, two moments, moved weights, more."""
OF_ITS_OWN = 1 << 29
"""Bytes that a process holds beside."""


def _attempt(job: Job, access: Access, executor: Executor, parent: int) -> tuple[Job, str]:
    _end_with(parent)
    return job, job.attempt(access, executor)


@cache
def _end_with(parent: int) -> None:
    """Have this process end when its parent has, however that was, and leave Ctrl-C to it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


class LocalWorker:
    """One worker, in this process."""

    def __init__(self, executor: Executor, access: Access, progress: Progress):
        self.worker = Worker(access, executor, progress)

    def run(self, trials: Sequence[Trial], on_trial: OnWork[Trial]) -> Outcome[Trial]:
        """Run trials here; a failing one is tried ``executor.retries`` times more, then set aside."""
        store, retries, outcome = self.worker.access.store, self.worker.executor.retries, Outcome[Trial]()
        waiting, postponed = deque((trial, 0) for trial in trials), set()
        try:
            while waiting:
                trial, tries = waiting.popleft()
                with store.claim("results", trial.key, wait=trial.key in postponed) as mine:
                    if not mine:
                        postponed.add(trial.key)
                        waiting.append((trial, tries))
                        continue
                    on_trial(trial, "started", 0)
                    became, reason, seconds = self.worker.attempt(trial)
                if became == "failed" and tries < retries:
                    waiting.append((trial, tries + 1))
                else:
                    outcome.add(trial, became, reason, seconds)
                    on_trial(trial, became, 0)
        except KeyboardInterrupt:
            outcome.interrupted = True
        return outcome

    def train(self, jobs: Sequence[Job], ended: Callable[[Job], None], progress: Progress) -> list[str]:
        """Make experts here, or in as many processes as pay."""
        access, executor, reasons = self.worker.access, self.worker.executor, []
        count = self._processes(jobs)
        attempts: Iterable[tuple[Job, str]] = ((job, job.attempt(access, executor, progress)) for job in jobs)
        if count > 1:
            from joblib import Parallel, delayed

            executor = replace(executor, threads=executor.threads or max(1, (os.cpu_count() or 1) // count))
            side_by_side = Parallel(count, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
            attempts = side_by_side(delayed(_attempt)(job, access, executor, os.getpid()) for job in jobs)
        for job, reason in attempts:
            reasons += [reason] if reason else []
            ended(job)
        return reasons

    def _processes(self, jobs: Sequence[Job]) -> int:
        """As many as there are cores, and as fit into memory, where what they save is more than what they take."""
        if self.worker.device.type != "cpu":
            return 1
        header = self.worker.access.headers(jobs[0].base.path).header
        elements = sum(info.count for info in header.values())
        most = int(psutil.virtual_memory().available // (COPIES * 4 * elements + OF_ITS_OWN))
        count = min(len(jobs), self.worker.executor.workers or os.cpu_count() or 1, most)
        seconds = sum(job.seconds(elements) for job in jobs)
        return count if count > 1 and seconds * (1 - 1 / count) > STARTING else 1

    def shutdown(self) -> None:
        """Nothing to end: what the worker holds goes with it."""
