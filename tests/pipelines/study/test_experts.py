"""How a study makes experts: keys of pools that are trained together, jobs, processes, and what is left behind."""

from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import UserError
from pipelines.store.store import Store
from pipelines.study.collect import make_pools
from pipelines.study.executors import local
from pipelines.study.experts import phases
from pipelines.study.sources import access_of, find_base, pool_recipes
from pipelines.study.subsets import narrowed
from tests.conftest import QUICK

TRAINED = "pools.tiny.finetuning.method=mergopt"
LIVE = (TRAINED, "+pools.tiny.finetuning.offsets=pool", "+pools.tiny.finetuning.rounds=2")


@pytest.fixture
def config(tiny_pool, tmp_path):
    """A configuration over the quick pool in a store of the given name, which holds the base."""

    def make(place, *more):
        (tmp_path / place / "bases").mkdir(parents=True, exist_ok=True)
        for entry in (Path(tiny_pool.store) / "bases").iterdir():
            if not (tmp_path / place / "bases" / entry.name).exists():
                (tmp_path / place / "bases" / entry.name).symlink_to(entry)
        ((composed, _),) = compose([*QUICK, f"store={tmp_path / place}", "executor.device=cpu", *more])
        return composed

    return make


def made(config):
    make_pools(config, access_of(config))
    store = Store(config.store)
    assert not list((store.root / "work").glob("*"))
    assert not list((store.root / "tmp").glob("*"))
    return {e.key: (e.folder / "model.safetensors").read_bytes() for e in store.entries("experts")}


def keys(config):
    access = access_of(config)
    pool = narrowed(config).pools["tiny"]
    return {n: r.key(find_base(pool.base, access), access) for n, r in pool_recipes(pool).items()}


def test_a_pool_in_one_process_and_in_stretches_is_the_same_experts(config):
    together, apart = config("a", *LIVE), config("b", *LIVE, "pools.tiny.training.save_steps=9")
    access = access_of(together)
    pool = together.pools["tiny"]
    base = find_base(pool.base, access)
    recipes = list(pool_recipes(pool).values())
    assert [len(phase) for phase in phases(recipes, base, access, True)] == [1]
    assert [len(phase) for phase in phases(recipes, base, access, False)] == [3, 3, 3]
    found = made(together)
    assert found.keys() == set(keys(together).values())
    assert found == made(apart)
    assert made(together) == found
    plain = made(config("c"))
    assert not set(found.values()) & set(plain.values())


def test_the_key_is_of_the_whole_pool_whatever_the_order_and_what_is_merged(config):
    whole, narrow = keys(config("a", *LIVE)), keys(config("a", *LIVE, "sampler.subsets=[[add,dist]]"))
    assert narrow == {name: whole[name] for name in ("add", "dist")}
    pool = config("a", *LIVE).pools["tiny"]
    access = access_of(config("a", *LIVE))
    pool.tasks = dict(reversed(pool.tasks.items()))
    base = find_base(pool.base, access)
    assert {n: r.key(base, access) for n, r in pool_recipes(pool).items()} == whole
    fewer = keys(config("a", *LIVE, "~pools.tiny.tasks.count"))
    longer = keys(config("a", *LIVE, "+pools.tiny.tasks.count.limit=9"))
    for other in (fewer, longer, keys(config("a", *LIVE[:2], "+pools.tiny.finetuning.rounds=1")), keys(config("a"))):
        assert not {other[name] for name in fewer} & set(whole.values())


def test_a_second_round_is_trained_against_a_plain_first_one(config):
    found = made(config("a", TRAINED, "+pools.tiny.finetuning.offsets=experts"))
    plain = made(config("c"))
    assert len(found) == 6, "the first round is in the store too"
    assert plain.items() <= found.items()


@pytest.mark.benchmark  # processes that import torch
def test_processes_give_the_same_experts(config, monkeypatch):
    alone, apart = config("a", "executor.workers=1"), config("b", "executor.workers=2")
    monkeypatch.setattr(local, "STARTING", 0.0)
    assert made(alone) == made(apart)


def test_all_that_fails_is_told_and_the_rest_is_kept(config, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    bad = [f"+pools.tiny.tasks.{name}.path={tmp_path}/bad.jsonl" for name in ("x", "y")]
    broken = config("a", *bad, "+pools.tiny.tasks.y.limit=1")
    with pytest.raises(UserError, match="completion") as error:
        made(broken)
    assert len(error.value.others) == 1
    assert len(Store(broken.store).entries("experts")) == 3


def test_a_pool_of_one_is_refused(config):
    alone = config("a", *LIVE, "~pools.tiny.tasks.count", "~pools.tiny.tasks.dist")
    with pytest.raises(UserError, match=r"add is alone in its pool.*two tasks or more"):
        pool_recipes(alone.pools["tiny"])
