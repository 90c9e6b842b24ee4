"""Experts of a pool that exchange task vectors: in one process, in stretches, killed, and against given experts."""

from functools import partial
from itertools import product

import pytest

from conf.schema import Optimizer, Task, Training
from pipelines.finetune import finetune
from pipelines.finetune.exchange import Exchange
from pipelines.finetune.train import finetune_pool

SKILLS = ("odd", "add", "at")
POOL = {"method": "mergopt", "offsets": "pool", "rounds": 2, "alphas": [0.5]}


@pytest.fixture
def members(base, tmp_path):
    """Arguments of three experts, written below a folder of the given name."""

    def make(place, method=POOL, **more):
        training = Training(**{"steps": 7, "batch_size": 4, "warmup_steps": 2, **more})
        return [
            {
                "base": base, "task": Task(name=skill, skill=skill, limit=40), "finetuning": method,
                "optimizer": Optimizer(lr=5e-3), "training": training, "seed": 0, "out": tmp_path / place / skill,
            }
            for skill in SKILLS
        ]  # fmt: skip

    return make


def in_one_process(members, tmp_path, rounds=2):
    finetune_pool(members, tmp_path / "exchange", rounds)
    assert not (tmp_path / "exchange").exists()
    return [member["out"] for member in members]


def in_stretches(members, folder, rounds=2, stop=None):
    """Every stretch of every expert as a call of its own, as workers take them; ``stop`` may break one off."""
    for until, (place, arguments) in product(range(1, rounds + 2), enumerate(members)):
        exchange = Exchange(folder, str(place), ("0", "1", "2"), rounds, until if until <= rounds else None)
        if not (until <= rounds and exchange.file(until, str(place)).exists()) and not list(
            arguments["out"].glob("*.safetensors")
        ):
            call = partial(finetune, **arguments, exchange=exchange, checkpoints=folder / f"work-{place}")
            if stop:
                stop(until, place)
            assert bool(call()) == (until > rounds)
    return [member["out"] for member in members]


def test_one_process_and_stretches_give_the_same_bits(members, tmp_path, same):
    together = in_one_process(members("together"), tmp_path)
    apart = in_stretches(members("apart"), tmp_path / "files")
    assert all(same(a, b) for a, b in zip(together, apart, strict=True))
    assert (together[0] / "metrics.jsonl").read_text().count("\n") == 7
    plain = [finetune(**one) and one["out"] for one in members("plain", {"method": "plain"})]
    assert not any(same(a, b) for a, b in zip(together, plain, strict=True))
    none = in_one_process(members("none", {**POOL, "rounds": 0}), tmp_path, rounds=0)
    assert all(same(a, b) for a, b in zip(none, plain, strict=True)), "without an exchange it is plain training"
