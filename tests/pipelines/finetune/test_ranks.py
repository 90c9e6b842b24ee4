"""Two processes on one CPU, joined by gloo: each takes the same offset, and together they step as one process."""

import hashlib
import json
import os
import socket

import pytest
import torch
from torch import multiprocessing

from conf.schema import Optimizer, Task, Training
from mergeopt_core.finetuning import Perturbation
from pipelines.finetune import finetune

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
METHODS = {
    "mergopt": {"method": "mergopt", "scale": 0.05},
    "sam": {"method": "sam", "rho": 0.2},
    "ascent": {"method": "mergopt", "scale": 0.05, "inner": "ascent"},
}
STEPS = 3


def digest(tensors):
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def train_all(base, folder, **training):
    """Train with every method on the twelve rows; returns the bits of all moved weights."""
    task = Task(name="rows", path=str(folder.parent / "rows.jsonl"))
    places, move, found = [], Perturbation.move, {}

    def watched(self, fill):
        move(self, fill)
        places.append(digest(m.weight for m in self.moved))

    Perturbation.move = watched
    try:
        for name, method in METHODS.items():
            finetune(
                base, task, method, Optimizer(name="sgd", lr=0.1), Training(steps=STEPS, **training), 0, folder / name
            )
            found[name], places[:] = list(places), []
    finally:
        Perturbation.move = move
    return found


def one_of_two(rank, port, base, folder):
    """A process of two; each takes half of every step's rows, in two micro-batches."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    found = train_all(base, folder, batch_size=3, accumulation=2)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def ran(base, tmp_path_factory):
    """The folders of a two-process and of a one-process run."""
    folder = tmp_path_factory.mktemp("ranks")
    rows = [{"prompt": f"add {i} 1 =", "completion": f" {i + 1}"} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    for name in ("1", "2"):
        (folder / name).mkdir()
    multiprocessing.spawn(one_of_two, (port, base, folder / "2"), nprocs=2)
    train_all(base, folder / "1", batch_size=12)
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_replicas_take_the_same_offset(ran, name):
    a, b = (json.loads((ran / "2" / f"rank{rank}.json").read_text())[name] for rank in (0, 1))
    assert a == b
    assert len(set(a)) >= STEPS


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_step_as_one(ran, name, weights):
    two, one = weights(ran / "2" / name), weights(ran / "1" / name)
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-5)
    rows = [[json.loads(s) for s in (ran / w / name / "metrics.jsonl").read_text().splitlines()] for w in "12"]
    assert [r["loss"] for r in rows[0]] == pytest.approx([r["loss"] for r in rows[1]], rel=1e-3)
