"""The local executor: this process, one trial after another.

Several processes may run the same study on one store: a trial that another one holds is left for later and then found
done, so that they share the work instead of repeating it.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Sequence

from conf.schema import Executor
from pipelines.executors.base import Failure, OnTrial, Outcome
from pipelines.sources import Access
from pipelines.trial import Trial
from pipelines.worker import Worker


def run_local(
    trials: Sequence[Trial], executor: Executor, access: Access, on_trial: OnTrial, worker: Worker | None = None
) -> Outcome:
    """Run trials here; a failing one is tried ``executor.retries`` times more, then set aside."""
    worker, outcome = worker or Worker(access, executor), Outcome()
    waiting, postponed = deque((trial, 0) for trial in trials), set()
    try:
        while waiting:
            trial, tries = waiting.popleft()
            with access.store.claim("results", trial.key, wait=trial.key in postponed) as mine:
                if not mine:
                    postponed.add(trial.key)
                    waiting.append((trial, tries))
                    continue
                on_trial(trial, "started", 0)
                elsewhere = access.store.has("results", trial.key, complete=True)
                reason = None if elsewhere else attempt(worker, trial)
            if elsewhere:
                outcome.elsewhere += 1
                on_trial(trial, "elsewhere", 0)
            elif reason is None:
                outcome.done += 1
                on_trial(trial, "done", 0)
            elif tries < executor.retries:
                waiting.append((trial, tries + 1))
            else:
                outcome.failures.append(Failure(trial, reason))
                on_trial(trial, "failed", 0)
    except KeyboardInterrupt:
        outcome.interrupted = True
    return outcome


def attempt(worker: Worker, trial: Trial) -> str | None:
    """Run one trial; the reason when it failed."""
    try:
        worker.run(trial)
        tasks = worker.access.store.entry("results", trial.key).describe()["tasks"]
        errors = [f"{name}: {task['error']}" for name, task in tasks.items() if task["error"]]
        return "; ".join(errors) or None
    except KeyboardInterrupt:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error} [{traceback.extract_tb(error.__traceback__)[-1].name}]"
