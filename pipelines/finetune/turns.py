"""Several works in one process, one at a time: each goes on where it stopped, with random states of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.process import random_states, restore


class AbandonedError(Exception):
    """Another work failed."""


class Turns:
    """Runs works side by side in this process, one at a time, each with global random states of its own."""

    def __init__(self, count: int):
        self.failed = False
        self._gates = [threading.Semaphore(0) for _ in range(count)]
        self._live = list(range(count))

    def run(self, works: Sequence[Callable[[], Any]]) -> list[Any]:
        """What the works return; the error of the first that fails is raised once all have stopped."""
        with ThreadPoolExecutor(len(works)) as pool:
            futures = [pool.submit(self._work, k, work) for k, work in enumerate(works)]
            try:
                self._gates[0].release()
                errors = [error for future in futures if (error := future.exception()) is not None]
            except BaseException:
                self.failed = True
                raise
        for error in sorted(errors, key=lambda error: isinstance(error, AbandonedError)):
            raise error
        return [future.result() for future in futures]

    def _work(self, k: int, work: Callable[[], Any]) -> Any:
        self._gates[k].acquire()
        try:
            if self.failed:
                raise AbandonedError
            return work()
        except BaseException:
            self.failed = True
            raise
        finally:
            following = self._after(k)
            self._live.remove(k)
            if following != k:
                self._gates[following].release()

    def _after(self, k: int) -> int:
        place = self._live.index(k)
        return self._live[(place + 1) % len(self._live)]

    def next(self, k: int) -> None:
        """Called by work k: let the others go on up to their next call of this."""
        states = random_states()
        self._gates[self._after(k)].release()
        self._gates[k].acquire()
        restore(states)
        if self.failed:
            raise AbandonedError
