"""The local executor: this process, one trial after another.

Several processes may run the same study on one store: a trial that another one holds is left for later and then found
done, so that they share the work instead of repeating it.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Sequence

from conf.errors import UserError
from conf.schema import Executor
from pipelines.study.executors.base import Failure, OnTrial, Outcome
from pipelines.study.sources import Access
from pipelines.study.trial import Trial
from pipelines.study.worker import Worker


class Local:
    """One worker, made with the first trial."""

    def __init__(self, executor: Executor, access: Access):
        self.executor, self.access = executor, access
        self.worker: Worker | None = None

    def run(self, trials: Sequence[Trial], on_trial: OnTrial) -> Outcome:
        """Run trials here; a failing one is tried ``executor.retries`` times more, then set aside."""
        worker = self.worker = self.worker or Worker(self.access, self.executor)
        store, outcome = self.access.store, Outcome()
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
                    elsewhere = store.has("results", trial.key, complete=True)
                    reason = None if elsewhere else attempt(worker, trial)
                if elsewhere:
                    outcome.elsewhere += 1
                    on_trial(trial, "elsewhere", 0)
                elif reason is None:
                    outcome.done += 1
                    on_trial(trial, "done", 0)
                elif tries < self.executor.retries:
                    waiting.append((trial, tries + 1))
                else:
                    outcome.failures.append(Failure(trial, reason))
                    on_trial(trial, "failed", 0)
        except KeyboardInterrupt:
            outcome.interrupted = True
        return outcome

    def leave(self) -> None:
        """Nothing to let go: what the worker holds goes with it."""


def attempt(worker: Worker, trial: Trial) -> str | None:
    """Run one trial; the reason when it failed."""
    try:
        worker.run(trial)
        tasks = worker.access.store.entry("results", trial.key).describe()["tasks"]
        errors = [f"{name}: {task['error']}" for name, task in tasks.items() if task["error"]]
        return "; ".join(errors) or None
    except KeyboardInterrupt:
        raise
    except UserError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error} [{traceback.extract_tb(error.__traceback__)[-1].name}]"
