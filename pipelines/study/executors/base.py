"""What every executor does: take trials, tell of each as it ends, keep going past the ones that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from conf.errors import UserError, nearest
from conf.schema import Executor
from pipelines.study.sources import Access
from pipelines.study.trial import Trial


@dataclass(frozen=True)
class Failure:
    """A trial that was set aside."""

    trial: Trial
    reason: str


@dataclass
class Outcome:
    """How a set of trials ended."""

    done: int = 0
    elsewhere: int = 0
    """Finished by another process while this one ran."""
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False


OnTrial = Callable[[Trial, str, int], None]
"""Called with a trial, what became of it (started, done, elsewhere or failed) and the worker that has it."""


class Crew(Protocol):
    """Workers that stay for as long as there may be trials for them, with what they have loaded."""

    def run(self, trials: Sequence[Trial], on_trial: OnTrial) -> Outcome:
        """Run trials; a failing one is tried ``executor.retries`` times more, then set aside."""

    def leave(self) -> None:
        """Let the workers go."""


@contextmanager
def crew(executor: Executor, access: Access) -> Iterator[Crew]:
    """The workers of the executor that the configuration names; none is hired before the first trial."""
    hired: Crew
    if executor.name == "local":
        from pipelines.study.executors.local import Local

        hired = Local(executor, access)
    elif executor.name == "ray":
        from pipelines.study.executors.ray import Actors

        hired = Actors(executor, access)
    else:
        do = nearest(executor.name, ["local", "ray"])
        raise UserError(f"no executor is called {executor.name!r}", where="executor.name", do=do)
    try:
        yield hired
    finally:
        hired.leave()


def run_trials(trials: Sequence[Trial], executor: Executor, access: Access, on_trial: OnTrial) -> Outcome:
    """Run trials with the executor that the configuration names."""
    with crew(executor, access) as workers:
        return workers.run(trials, on_trial)
