"""The Ray executor: one actor per GPU, or several on CPU cores, on this machine or a cluster.

Each actor keeps a ``Worker`` for the whole study, so a base stays loaded where it was loaded: an idle actor is given
trials of the base that it holds before any other. Results go straight from the actors into the shared store. An actor
that dies costs its current trial only: the trial goes back into the queue and a new actor takes the dead one's place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic

from conf.errors import UserError, printable
from conf.schema import Executor
from pipelines.progress import Progress, Within
from pipelines.study.experts import Job
from pipelines.study.order import Subset
from pipelines.study.sources import Access
from pipelines.study.trial import OnWork, Outcome, Trial, W


@dataclass
class _Slot:
    """A place for an actor: the actor, its number, and the base and experts that it read last."""

    actor: Any
    number: int = 0
    base: str | None = None
    experts: Subset = frozenset()


@dataclass
class _Queue(Generic[W]):
    """Trials or jobs waiting, by base; each with the number of times it was tried."""

    waiting: dict[str, list[tuple[W, int]]] = field(default_factory=dict)

    def put(self, trial: W, tries: int) -> None:
        self.waiting.setdefault(trial.base.path, []).append((trial, tries))

    def take(self, slot: _Slot, others: Sequence[_Slot]) -> tuple[W, int] | None:
        """A trial of the slot's base; else of one that no other has loaded; else of the longest queue.

        Of these one of the subset that the slot is at, else of one that no other is at, with as few new experts as may
        be: all methods of a subset go to one actor until there is nothing else to do.
        """
        left = {base: trials for base, trials in self.waiting.items() if trials}
        if not left:
            return None
        free = {base: trials for base, trials in left.items() if base not in {o.base for o in others}} or left
        base = slot.base if slot.base in left else max(free, key=lambda b: len(free[b]))
        read, taken = [trial.reads for trial, _ in left[base]], {other.experts for other in others}

        def cost(i: int) -> tuple[bool, bool, int]:
            return read[i] != slot.experts, read[i] in taken, len(read[i] - slot.experts)

        place = min(range(len(read)), key=cost)
        slot.base, slot.experts = base, read[place]
        return left[base].pop(place)


class RayWorkers:
    """Actors of a cluster or of this machine, started when there are trials."""

    def __init__(self, executor: Executor, access: Access):
        self.executor, self.access = executor, access
        self.ray = _import_ray()
        self.own = not self.ray.is_initialized()
        self.slots: list[_Slot] = []

    def run(self, trials: Sequence[W], on_trial: OnWork[W]) -> Outcome[W]:
        """Run trials or jobs on actors; a failing one is tried ``executor.retries`` times more, then set aside."""
        if not self.ray.is_initialized():
            _connect(self.ray, self.executor)
        wanted = max(1, min(len(trials), self.executor.workers or _default_workers(self.ray)))
        while len(self.slots) < wanted:
            self.slots.append(_Slot(self._start_actor(), len(self.slots)))
        queue, outcome, running = _Queue[W](), Outcome[W](), dict[Any, tuple[_Slot, W, int]]()
        for trial in trials:
            queue.put(trial, 0)
        try:
            while True:
                busy = [slot.number for slot, _, _ in running.values()]
                for slot in self.slots:
                    others = [other for other in self.slots if other is not slot]
                    if slot.number not in busy and (taken := queue.take(slot, others)):
                        on_trial(taken[0], "started", slot.number)
                        running[slot.actor.attempt.remote(taken[0])] = (slot, *taken)
                if not running:
                    return outcome
                (ready, *_), _ = self.ray.wait(list(running), num_returns=1)
                slot, trial, tries = running.pop(ready)
                became, reason, seconds = self._get(ready, slot)
                if became == "failed" and tries < self.executor.retries:
                    queue.put(trial, tries + 1)
                else:
                    outcome.add(trial, became, reason, seconds)
                    on_trial(trial, became, slot.number)
        except KeyboardInterrupt:
            outcome.interrupted = True
            return outcome

    def train(self, jobs: Sequence[Job], ended: Callable[[Job], None], progress: Progress) -> list[str]:
        """Make experts on actors; a failing job is tried again as a trial is."""

        def on_job(job: Job, became: str, worker: int) -> None:
            if became != "started":
                ended(job)

        outcome = self.run(jobs, on_job)
        if outcome.interrupted:
            raise KeyboardInterrupt
        return [failure.reason for failure in outcome.failures]

    def _get(self, ready: Any, slot: _Slot) -> tuple[str, str, dict[str, float]]:
        """What became of a trial; an actor that died, or could not be made, is replaced."""
        try:
            return self.ray.get(ready)
        except self.ray.exceptions.RayError as error:
            slot.actor, slot.base, slot.experts = self._start_actor(), None, Subset()
            return "failed", f"the worker was lost: {str(error).splitlines()[0]}", {}

    def _start_actor(self) -> Any:
        """A new actor, with a GPU of its own where there is one."""
        gpus = 1 if self.ray.cluster_resources().get("GPU", 0) >= 1 and self.executor.device != "cpu" else 0
        executor = replace(self.executor, threads=self.executor.threads or (None if gpus else 1))
        actor = self.ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus)(_Actor)
        return actor.remote(self.access, executor)

    def shutdown(self) -> None:
        """End the actors, and this machine's Ray where it was started here."""
        for slot in self.slots:
            self.ray.kill(slot.actor)
        self.slots.clear()
        if self.own and self.ray.is_initialized():
            self.ray.shutdown()


class _Actor:
    """A worker in a process of its own."""

    def __init__(self, access: Access, executor: Executor):
        if executor.threads:
            os.environ["OMP_NUM_THREADS"] = str(executor.threads)  # before torch and BLAS read it
        from pipelines.study.worker import Worker

        self.title = ""
        self.worker = Worker(access, executor, Within(self._log, every=30.0))

    def _log(self, part: str) -> None:
        """One line in the log that Ray keeps of this process, however long the trial takes."""
        print(printable(f"{self.title}: {part}"), flush=True)

    def attempt(self, trial: Trial | Job) -> tuple[str, str, dict[str, float]]:
        self.title = trial.title
        if isinstance(trial, Trial):
            return self.worker.attempt(trial)
        reason = trial.attempt(self.worker.access, self.worker.executor, self.worker.progress)
        return "failed" if reason else "done", reason, {}


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        do = "pip install 'mergebench[ray]', or use executor=local"
        raise UserError("Ray is not installed", where="executor=ray", do=do) from None
    return ray


def _connect(ray: Any, executor: Executor) -> None:
    settings: dict[str, Any] = {"address": executor.address} if executor.address else {"include_dashboard": False}
    if "mergebench" in sys.modules:  # installed: a worker finds our packages once it has imported mergebench
        settings["runtime_env"] = {"worker_process_setup_hook": "mergebench.set_up_worker"}
    try:
        ray.init(log_to_driver=False, configure_logging=False, **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"no Ray cluster answers: {str(error).splitlines()[0]}"
        raise UserError(what, where=f"executor.address={executor.address}") from None


def _default_workers(ray: Any) -> int:
    resources = ray.cluster_resources()
    return int(resources.get("GPU", 0)) or max(1, int(resources.get("CPU", 2)) // 2)
