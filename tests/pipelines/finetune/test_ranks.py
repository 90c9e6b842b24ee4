"""Two processes on one CPU, joined by gloo: each takes the same offset, and together they step as one process.

Replicas, and shards of one model (FSDP).
"""

import hashlib
import json
import os
import socket

import pytest
import torch
from torch import multiprocessing, nn

from conf.compose import compose
from conf.errors import UserError
from conf.schema import Optimizer, Task, Training
from mergeopt_core.finetuning import SAM, MergOPT, Perturbation
from pipelines.finetune import finetune
from pipelines.ranks import agreed, tells
from pipelines.store.store import Store
from pipelines.study.single import finetune_expert

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
METHODS = {
    "mergopt": {"method": "mergopt", "scale": 0.05},
    "sam": {"method": "sam", "rho": 0.2},
    "ascent": {"method": "mergopt", "scale": 0.05, "inner": "ascent"},
}
SHARDED = {
    "mergopt": METHODS["mergopt"],
    "sam": METHODS["sam"],
    "exact": {**METHODS["mergopt"], "own_vector": "exact"},
}
STEPS = 3


def digest(tensors):
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()


SGD = Optimizer(name="sgd", lr=0.1)


def rows_in(folder):
    return Task(name="rows", path=str(folder.parent / "rows.jsonl"))


def overrides(base, folder):
    """An expert into a store, as ``mergebench finetune`` makes it."""
    given = ["base.path", base], ["task.path", folder.parent / "rows.jsonl"], ["store", folder / "store"]
    return [f"{key}={value}" for key, value in given] + ["training.steps=1", "executor.device=cpu"]


def layers(seed=0):
    """Rows of 7, 3 and 1, which two ranks do not share evenly."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1))


def moved_shards():
    """Whether gathered shards are, moved and back, to the bit what a whole model of the same weights is."""
    from torch.distributed.fsdp import fully_shard

    whole, model, found = layers(), layers(), []
    for part in (*model[::2], model):
        fully_shard(part, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    for distribution in ("laplace", "gaussian"):
        a, b = (MergOPT(adamw(m.parameters()), scale=0.1, distribution=distribution) for m in (whole, model))
        before = [p.detach().clone() for p in whole.parameters()]
        with a.perturbed(), b.perturbed():
            found.append(same(whole, model) and not any(map(torch.equal, whole.parameters(), before)))
        found.append(same(whole, model) and all(map(torch.equal, whole.parameters(), before)))
    radius = SAM(adamw(model.parameters()), rho=0.1), SAM(adamw(whole.parameters()), rho=0.1)
    places = []
    for opt, m in zip(radius, (model, whole)):
        opt.zero_grad()
        m(x).square().mean().backward()
        opt.climb()
        places.append([p.full_tensor() if hasattr(p, "full_tensor") else p.detach().clone() for p in m.parameters()])
        opt.restore()
    found.append(all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*places)))
    return found


def same(whole, sharded):
    return all(torch.equal(a, b.full_tensor()) for a, b in zip(whole.parameters(), sharded.parameters()))


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def train_all(base, folder, **training):
    """Train with every method on the twelve rows; returns the bits of all moved weights."""
    places, move, found = [], Perturbation.move, {}

    def watched(self, fill):
        move(self, fill)
        places.append(digest(m.weight for m in self.moved))

    Perturbation.move = watched
    try:
        for name, method in METHODS.items():
            finetune(base, rows_in(folder), method, SGD, Training(steps=STEPS, **training), 0, folder / name)
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
    for name, method in SHARDED.items():
        training = Training(steps=STEPS, batch_size=3, accumulation=2, shard=True)
        finetune(base, rows_in(folder), method, SGD, training, 0, folder / f"shards_{name}")
    half = Training(steps=STEPS, batch_size=6, shard=True, precision="bf16_masters")
    finetune(base, rows_in(folder), SHARDED["mergopt"], SGD, half, 0, folder / "shards_masters")
    ((config, _),) = compose(overrides(base, folder))
    made = [finetune_expert(config) for _ in range(2)]
    found |= {"shards": moved_shards(), "made": [made[0].folder.name, made[1].new], "tells": tells()}
    found["agreed"] = agreed(rank, "cpu")
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
    exact, half = Training(steps=STEPS, batch_size=12), Training(steps=STEPS, batch_size=12, precision="bf16_masters")
    for name, method, training in (("exact", "exact", exact), ("masters", "mergopt", half)):
        finetune(base, rows_in(folder / "1"), SHARDED[method], SGD, training, 0, folder / "1" / name)
    return folder


def told(ran):
    return [json.loads((ran / "2" / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", METHODS)
def test_replicas_take_the_same_offset(ran, name):
    a, b = (found[name] for found in told(ran))
    assert a == b
    assert len(set(a)) >= STEPS


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_step_as_one(ran, name, weights):
    two, one = weights(ran / "2" / name), weights(ran / "1" / name)
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-5)
    rows = [[json.loads(s) for s in (ran / w / name / "metrics.jsonl").read_text().splitlines()] for w in "12"]
    assert [r["loss"] for r in rows[0]] == pytest.approx([r["loss"] for r in rows[1]], rel=1e-3)


def test_shards_move_as_the_whole_does(ran):
    for found in told(ran):
        assert found["shards"] == [True] * 5


@pytest.mark.parametrize("name", [*SHARDED, "masters"])
def test_sharded_training_steps_as_one_process(ran, base, name, weights):
    shards, one, start = weights(ran / "2" / f"shards_{name}"), weights(ran / "1" / name), weights(base)
    assert shards.keys() == one.keys()
    within = 0.05 if name == "masters" else 1e-3  # of the update: gradients in bf16, or in float32
    for key in one:
        assert (shards[key] - one[key]).norm() <= within * (one[key] - start[key]).norm() + 1e-6
    rows = [
        [json.loads(s) for s in (ran / at / "metrics.jsonl").read_text().splitlines()]
        for at in (f"2/shards_{name}", f"1/{name}")
    ]
    assert [r["loss"] for r in rows[0]] == pytest.approx([r["loss"] for r in rows[1]], rel=within)


def test_ranks_make_one_expert_of_the_store(ran, base):
    """Its key is another one than one process would give it; one error is told by one rank."""
    store = Store(ran / "2" / "store")
    (entry,) = store.entries("experts")
    assert entry.describe()["training"]["ranks"] == 2
    assert [found["made"] for found in told(ran)] == [[entry.key, False]] * 2
    assert list((store.root / "tmp").iterdir()) == []
    assert sorted(found["tells"] for found in told(ran)) == [False, True]
    assert [found["agreed"] for found in told(ran)] == [0, 0]
    ((config, _),) = compose([*overrides(base, ran / "2"), "training.ranks=2"])
    assert finetune_expert(config).folder == entry.folder
    config.seed = 1
    with pytest.raises(UserError, match="torchrun --nproc-per-node 2"):
        finetune_expert(config)
