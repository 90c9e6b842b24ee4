"""What every executor does: take trials, tell of each as it ends, keep going past the ones that fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conf.errors import UserError, nearest
from conf.schema import Executor
from pipelines.sources import Access
from pipelines.trial import Trial

if TYPE_CHECKING:
    from pipelines.worker import Worker


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


def run_trials(
    trials: Sequence[Trial], executor: Executor, access: Access, on_trial: OnTrial, worker: Worker | None = None
) -> Outcome:
    """Run trials with the executor that the configuration names.

    A caller that runs a few trials at a time gives the local executor its ``worker``, so that what they share is made
    once.
    """
    if executor.name == "local":
        from pipelines.executors.local import run_local

        return run_local(trials, executor, access, on_trial, worker)
    if executor.name == "ray":
        from pipelines.executors.ray import run_ray

        return run_ray(trials, executor, access, on_trial)
    raise UserError(
        f"no executor is called {executor.name!r}", where="executor.name", do=nearest(executor.name, ["local", "ray"])
    )
