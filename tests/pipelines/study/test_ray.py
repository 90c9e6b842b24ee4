"""The Ray executor: the same bits as local, and a lost worker costs its current trial only."""

import contextlib
import os
import signal
import threading
import time

import psutil
import pytest

from pipelines.store.store import Store
from pipelines.study.executors.ray import _Queue, _Slot
from pipelines.study.sweep import run_study
from tests.pipelines.study.test_experts import LIVE
from tests.pipelines.study.test_sweep import config_of, store, values  # noqa: F401

pytest.importorskip("ray", reason="the extra mergebench[ray] is not installed")


class Waiting:
    """A trial as the queue sees it."""

    def __init__(self, base: str, number: int, experts: str = ""):
        self.base = type("Base", (), {"path": base})()
        self.number = number
        self.reads = frozenset(experts)


def test_an_actor_keeps_to_the_base_that_it_holds():
    queue, slot, other = _Queue(), _Slot(None, 0, "b"), _Slot(None, 1, None)
    for number in range(3):
        queue.put(Waiting("a", number), 0)
        queue.put(Waiting("b", number), 0)
    assert queue.take(slot, [other])[0].base.path == "b"
    assert queue.take(other, [slot])[0].base.path == "a", "a base that nobody holds comes first"
    assert [queue.take(slot, [other])[0].base.path for _ in range(3)] == ["b", "b", "a"]
    assert queue.take(slot, [other])[0].number == 2
    assert queue.take(slot, [other]) is None


def test_an_actor_keeps_to_the_experts_that_it_has_read():
    queue, slots = _Queue(), [_Slot(None, number) for number in range(2)]
    for number, experts in enumerate(["xy", "xy", "xy", "yz", "uv", "uv"]):
        queue.put(Waiting("a", number, experts), 0)
    taken = [[], []]
    for turn in (0, 1, 0, 1, 0, 0):
        trial, _ = queue.take(slots[turn], [slots[1 - turn]])
        taken[turn].append(trial.number)
    assert taken == [[0, 1, 2, 5], [3, 4]]  # the last one is left by the other, which is still at work


def kill_a_worker_once(results, stop: threading.Event) -> None:
    """Kill the process of one of our own actors as soon as the first result is there."""
    while not stop.is_set():
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends while it is asked for its name
            own = psutil.Process().children(recursive=True)
            workers = [p for p in own if any("_Actor" in part for part in p.cmdline())]
            if workers and list(results.glob("*/entry.json")):
                os.kill(workers[0].pid, signal.SIGKILL)
                return
        time.sleep(0.02)


@pytest.mark.timeout(900)
def test_same_bits_as_local_though_a_worker_is_killed(tiny_pool, store, tmp_path):  # noqa: F811
    elsewhere = tmp_path / "local" / "store"
    run_study(config_of(tiny_pool, elsewhere))
    stop = threading.Event()
    killer = threading.Thread(target=kill_a_worker_once, args=(store / "results", stop))
    killer.start()
    try:
        done = run_study(config_of(tiny_pool, store, "executor=ray", "executor.workers=2", "executor.device=cpu"))
    finally:
        stop.set()
        killer.join()
    assert done.complete
    assert values(store) == values(elsewhere)
    weights = [{e.key: e.describe()["weights"] for e in Store(s).entries("results")} for s in (store, elsewhere)]
    assert weights[0] == weights[1]


def test_what_actors_chose_is_what_one_process_chooses(tiny_pool, store, tmp_path):  # noqa: F811
    more = ("~methods.ties", "~methods.dare", "~methods.linear", "sampler.sizes=[]", "sampler.subsets=[[add,dist]]")
    tuned = "+methods.ta={method:task_arithmetic,grid:{lambda:[0.2,1,3]},select:validation}"
    more = (*more, *LIVE)  # in stretches there, at once here
    apart = ("pools.tiny.training.save_steps=9", "executor=ray", "executor.workers=2", "executor.device=cpu")
    there = run_study(config_of(tiny_pool, store, *more, tuned, *apart))
    here = run_study(config_of(tiny_pool, tmp_path / "here" / "store", *more, tuned))
    assert there.complete
    assert (there.outcome.done, here.outcome.done) == (3 + 3 + 1, 3 + 3 + 1)
    assert there.plan.layout.choices == here.plan.layout.choices
    assert values(store) == values(tmp_path / "here" / "store")
