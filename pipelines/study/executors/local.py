"""The local executor: this process, one trial after another.

Several processes may run the same study on one store: a trial that another one holds is left for later and then found
done, so that they share the work instead of repeating it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from conf.schema import Executor
from pipelines.progress import Progress
from pipelines.study.sources import Access
from pipelines.study.trial import OnTrial, Outcome, Trial
from pipelines.study.worker import Worker


class LocalWorker:
    """One worker, in this process."""

    def __init__(self, executor: Executor, access: Access, progress: Progress):
        self.worker = Worker(access, executor, progress)

    def run(self, trials: Sequence[Trial], on_trial: OnTrial) -> Outcome:
        """Run trials here; a failing one is tried ``executor.retries`` times more, then set aside."""
        store, retries, outcome = self.worker.access.store, self.worker.executor.retries, Outcome()
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

    def shutdown(self) -> None:
        """Nothing to end: what the worker holds goes with it."""
