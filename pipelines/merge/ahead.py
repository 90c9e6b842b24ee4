"""Several tensors at once, a thread each, yielded in order: all cores work, and no bit depends on their number."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from mergeopt_core.spectral.decompositions import one_blas_thread

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[tuple[Item, Result]]:
    """Each item with ``function(item)``, in the items' order; at most one more than ``threads`` are held at once.

    Every thread computes alone (torch and LAPACK on one thread each), as a single one would. An error is raised in its
    item's turn; what has not been begun by then is dropped.
    """
    before = torch.get_num_threads()
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(threads, "merge", torch.set_num_threads, (1,))
    try:
        with one_blas_thread():
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > threads:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _next(waiting: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    item, future = waiting.popleft()
    return item, future.result()
