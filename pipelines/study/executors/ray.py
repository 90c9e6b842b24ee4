"""The Ray executor: one actor a GPU, or several on CPU cores, on this machine or a cluster.

Each actor keeps a ``Worker`` for the whole study, so a base stays loaded where it was loaded: an idle actor is given
trials of the base that it holds before any other. Results go straight from the actors into the shared store. An actor
that dies costs its current trial only: the trial goes back into the queue and a new actor takes the dead one's place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from conf.errors import UserError
from conf.schema import Executor
from pipelines.study.executors.base import Failure, OnTrial, Outcome
from pipelines.study.sources import Access
from pipelines.study.trial import Trial


@dataclass
class _Seat:
    """A place for an actor: who sits there and which base it has loaded."""

    actor: Any
    number: int = 0
    base: str | None = None


@dataclass
class _Queue:
    """Trials waiting, by base; each with the number of times it was tried."""

    waiting: dict[str, list[tuple[Trial, int]]] = field(default_factory=dict)

    def put(self, trial: Trial, tries: int) -> None:
        self.waiting.setdefault(trial.base.path, []).append((trial, tries))

    def take(self, seat: _Seat, held: set[str | None]) -> tuple[Trial, int] | None:
        """A trial of the base that the seat holds; else of one that nobody holds; else of the longest queue."""
        left = {base: trials for base, trials in self.waiting.items() if trials}
        if not left:
            return None
        free = {base: trials for base, trials in left.items() if base not in held} or left
        base = seat.base if seat.base in left else max(free, key=lambda b: len(free[b]))
        return left[base].pop(0)


class Actors:
    """A cluster's actors, or this machine's; connected to and hired when there are trials."""

    def __init__(self, executor: Executor, access: Access):
        self.executor, self.access = executor, access
        self.ray = _import_ray()
        self.here = not self.ray.is_initialized()
        self.seats: list[_Seat] = []

    def run(self, trials: Sequence[Trial], on_trial: OnTrial) -> Outcome:
        """Run trials on actors; a failing one is tried ``executor.retries`` times more, then set aside."""
        if not self.ray.is_initialized():
            _connect(self.ray, self.executor)
        wanted = max(1, min(len(trials), self.executor.workers or _default_workers(self.ray)))
        while len(self.seats) < wanted:
            self.seats.append(_Seat(self.hire(), len(self.seats)))
        return _Round(self, trials, on_trial).run()

    def hire(self) -> Any:
        """A new actor, with a GPU of its own where there is one."""
        gpus = 1 if self.ray.cluster_resources().get("GPU", 0) >= 1 and self.executor.device != "cpu" else 0
        threads = self.executor.threads or (None if gpus else 1)
        seen = replace(self.executor, threads=threads)
        kind = self.ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus)(_Actor)
        return kind.remote(self.access, seen)

    def leave(self) -> None:
        """End the actors, and this machine's Ray where it was started here."""
        for seat in self.seats:
            self.ray.kill(seat.actor)
        self.seats.clear()
        if self.here and self.ray.is_initialized():
            self.ray.shutdown()


class _Round:
    """Hands out trials and takes in what became of them."""

    def __init__(self, actors: Actors, trials: Sequence[Trial], on_trial: OnTrial):
        self.actors, self.ray, self.on_trial = actors, actors.ray, on_trial
        self.outcome, self.queue = Outcome(), _Queue()
        for trial in trials:
            self.queue.put(trial, 0)

    def run(self) -> Outcome:
        seats = self.actors.seats
        running: dict[Any, tuple[_Seat, Trial, int]] = {}
        try:
            while True:
                for seat in seats:
                    if all(seat is not taken for taken, _, _ in running.values()):
                        self._hand_out(seat, {s.base for s in seats}, running)
                if not running:
                    return self.outcome
                (ready, *_), _ = self.ray.wait(list(running), num_returns=1)
                self._take_in(ready, *running.pop(ready))
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            return self.outcome

    def _hand_out(self, seat: _Seat, held: set[str | None], running: dict[Any, tuple[_Seat, Trial, int]]) -> None:
        taken = self.queue.take(seat, held)
        if taken is not None:
            seat.base = taken[0].base.path
            self.on_trial(taken[0], "started", seat.number)
            running[seat.actor.run.remote(taken[0])] = (seat, *taken)

    def _take_in(self, ready: Any, seat: _Seat, trial: Trial, tries: int) -> None:
        try:
            became, reason = self.ray.get(ready)
        except self.ray.exceptions.RayError as error:  # the actor died, or could not be made
            became, reason = "failed", f"the worker was lost: {str(error).splitlines()[0]}"
            seat.actor, seat.base = self.actors.hire(), None
        if became == "failed" and tries < self.actors.executor.retries:
            self.queue.put(trial, tries + 1)
            return
        if became == "failed":
            self.outcome.failures.append(Failure(trial, reason))
        elif became == "elsewhere":
            self.outcome.elsewhere += 1
        else:
            self.outcome.done += 1
        self.on_trial(trial, became, seat.number)


class _Actor:
    """A worker in a process of its own."""

    def __init__(self, access: Access, executor: Executor):
        if executor.threads:
            os.environ["OMP_NUM_THREADS"] = str(executor.threads)
        from pipelines.study.worker import Worker

        self.worker = Worker(access, executor)

    def run(self, trial: Trial) -> tuple[str, str]:
        from pipelines.study.executors.local import attempt

        if self.worker.access.store.has("results", trial.key, complete=True):
            return "elsewhere", ""
        reason = attempt(self.worker, trial)
        return ("done", "") if reason is None else ("failed", reason)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(
            "Ray is not installed", where="executor=ray", do="pip install 'mergebench[ray]', or use executor=local"
        ) from None
    return ray


def _connect(ray: Any, executor: Executor) -> None:
    settings: dict[str, Any] = {"address": executor.address} if executor.address else {"include_dashboard": False}
    if "mergebench" in sys.modules:  # installed: a worker finds our packages once it has imported mergebench
        settings["runtime_env"] = {"worker_process_setup_hook": "mergebench.set_up_worker"}
    try:
        ray.init(log_to_driver=False, configure_logging=False, **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers: {str(error).splitlines()[0]}", where=f"executor.address={executor.address}"
        ) from None


def _default_workers(ray: Any) -> int:
    resources = ray.cluster_resources()
    return int(resources.get("GPU", 0)) or max(1, int(resources.get("CPU", 2)) // 2)
