"""Checkpoints on the hub: a plan knows all from headers, weights come when a study runs, keys stay the same."""

import contextlib
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))  # for fake_hub

from fake_hub import FakeHub

from cli.tables import plan_parts
from conf.compose import compose
from conf.errors import UserError
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.checkpoints.hub import HubLookup, RemoteCheckpoint, open_headers
from pipelines.store.store import Store
from pipelines.study.plan import make_plan, memory
from pipelines.study.sources import access_of
from pipelines.study.sweep import run_study

NAMES = ("org/one", "org/two")


class Heard:
    """A listener that remembers steps and what was counted."""

    def __init__(self):
        self.totals, self.counted = {}, {}

    @contextlib.contextmanager
    def step(self, label, total=None):
        self.totals[label] = total
        counted = self.counted.setdefault(label, [])

        class Step:
            def advance(self, n=1, **fields):
                counted.append((n, fields))

        yield Step()

    def note(self, text, level="info"):
        pass


@pytest.fixture
def hub(tiny_pool, tmp_path, monkeypatch) -> FakeHub:
    hub = FakeHub(tmp_path / "hub")
    hub.repos = {"org/base": Path(tiny_pool.base), **dict(zip(NAMES, map(Path, tiny_pool.experts)))}
    hub.install(monkeypatch)
    return hub


def config_of(tmp_path, *more, experts=NAMES):
    ((config, _),) = compose(
        [
            "+pools.wild.base.path=org/base",
            *(f"+pools.wild.experts.e{k}.path={name}" for k, name in enumerate(experts)),
            "suite=custom",
            "+suite.tasks.add.skill=add",
            "suite.limit=6",
            "executor.device=cpu",
            "+method@methods.linear=linear",
            f"store={tmp_path / 'store'}",
            f"runs={tmp_path / 'runs'}",
            "name=wild",
            *more,
        ]
    )
    return config


def weight_bytes(*folders) -> int:
    return sum(file.stat().st_size for folder in folders for file in Path(folder).glob("*.safetensors"))


def changed(source: Path, out: Path, change) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    save_file(change(tensors), out / "model.safetensors", metadata={"format": "pt"})
    return out


class TestRemoteCheckpoint:
    """What is known of a checkpoint whose weights are elsewhere."""

    def test_it_is_what_the_fetched_one_will_be(self, hub, tiny_pool):
        remote = open_headers("org/one")
        assert isinstance(remote, RemoteCheckpoint)
        assert hub.weights == []
        before = remote.fingerprint()
        local = open_checkpoint(tiny_pool.experts[0])
        assert (remote.header, remote.tied, remote.config) == (local.header, local.tied, local.config)
        assert before == local.fingerprint()
        assert (remote.to_fetch, remote.size_bytes) == (weight_bytes(tiny_pool.experts[0]), local.size_bytes)
        with pytest.raises(UserError, match="weights of org/one are not fetched"):
            remote.tensor(next(iter(remote.header)))
        fetched = remote.fetch()
        assert fetched.folder == remote.folder
        assert fetched.fingerprint() == before
        assert open_headers("org/one").fingerprint() == before
        assert type(open_headers("org/one")) is type(fetched)

    def test_shards(self, hub, tiny_pool, tmp_path):
        whole = load_file(Path(tiny_pool.base) / "model.safetensors")
        folder = tmp_path / "sharded"
        shutil.copytree(tiny_pool.base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        names = sorted(whole)
        parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
        for file, members in parts.items():
            save_file({n: whole[n] for n in members}, folder / file)
        index = {"weight_map": {n: file for file, members in parts.items() for n in members}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        hub.repos["org/sharded"] = folder
        remote = open_headers("org/sharded")
        assert remote.header == open_checkpoint(str(folder)).header
        assert remote.fingerprint() == open_checkpoint(str(folder)).fingerprint()
        assert remote.to_fetch == weight_bytes(folder)
        assert hub.heads == [f"org/sharded/{file}" for file in parts]
        assert hub.weights == []

    def test_an_adapter(self, hub, tmp_path):
        (tmp_path / "lora").mkdir()
        (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        save_file({key: torch.ones(2, 96)}, tmp_path / "lora" / "adapter_model.safetensors")
        hub.repos["org/lora"] = tmp_path / "lora"
        remote = open_headers("org/lora")
        assert remote.header[key].shape == (2, 96)
        assert remote.adapter["r"] == 2
        assert remote.fingerprint() == open_checkpoint(str(tmp_path / "lora")).fingerprint()
        assert hub.weights == []

    def test_pickled_weights(self, hub, tiny_pool, tmp_path):
        folder = tmp_path / "pickled"
        shutil.copytree(tiny_pool.base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        torch.save(load_file(Path(tiny_pool.base) / "model.safetensors"), folder / "pytorch_model.bin")
        hub.repos["org/pickled"] = folder
        with pytest.raises(UserError, match=r"org/pickled: weights are pickled"):
            open_headers("org/pickled")
        assert hub.weights == []
        allowed = open_headers("org/pickled", allow_pickle=True)
        assert allowed.header == open_checkpoint(tiny_pool.base).header

    def test_what_is_no_model(self, hub, tmp_path):
        (tmp_path / "cards").mkdir()
        (tmp_path / "cards" / "README.md").write_text("hello")
        hub.repos["org/cards"] = tmp_path / "cards"
        with pytest.raises(UserError, match=r"org/cards: .*no model weights \(it holds README.md\)"):
            open_headers("org/cards")
        with pytest.raises(UserError, match=r"org/nowhere is neither a folder here nor a model on the hub"):
            open_headers("org/nowhere")
        hub.reachable = False
        with pytest.raises(UserError, match=r"cannot fetch org/one from the hub.*check the network"):
            open_headers("org/one")

    def test_a_dtype_that_is_not_known_is_told_when_it_is_looked_at(self, hub, tiny_pool, tmp_path):
        hub.repos["org/odd"] = folder = tmp_path / "odd"
        shutil.copytree(tiny_pool.base, folder)
        header = b'{"q": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}'
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
        with pytest.raises(UserError, match="q has dtype F4"):
            HubLookup().get(("org/odd", None), lambda: open_headers("org/odd"))


def test_a_plan_fetches_no_weights_and_a_run_fetches_them_once(hub, tiny_pool, tmp_path):
    config = config_of(tmp_path)
    plan = make_plan(config, access_of(config))
    assert hub.weights == []
    assert (plan.new, plan.cached, plan.blocked, plan.problems) == (4, 0, 0, [])
    folders = (tiny_pool.base, *tiny_pool.experts[:2])
    told = {entry["name"]: entry["bytes"] for entry in plan.to_dict()["to_fetch"]}
    assert told == {name: weight_bytes(folder) for name, folder in zip(("org/base", *NAMES), folders)}
    assert plan.resources["disk_needed"] >= weight_bytes(*folders)
    heard = Heard()
    sweep = run_study(config, heard)
    assert sweep.complete
    assert sorted(hub.weights) == sorted(f"{name}/model.safetensors" for name in told)
    assert heard.totals["fetch"] == weight_bytes(*folders)
    assert sum(n for n, _ in heard.counted["fetch"]) == weight_bytes(*folders)
    keys = {p.trial.key for p in plan.layout.planned}
    assert {e.key for e in Store(config.store).entries("results")} == keys
    again = make_plan(config, access_of(config))
    assert (again.new, again.cached, again.resources["to_fetch"]) == (0, 4, [])
    offline = config_of(tmp_path, "online=false")
    hub.reachable = False
    assert make_plan(offline, access_of(offline)).cached == 4


def test_what_is_scored_already_is_not_fetched_again(hub, tmp_path):
    config = config_of(tmp_path)
    run_study(config)
    shutil.rmtree(hub.cache)
    hub.downloads.clear()
    plan = make_plan(config, access_of(config))
    assert (plan.cached, plan.resources["to_fetch"]) == (4, [])
    assert run_study(config).outcome.done == 0
    assert hub.weights == []


def test_a_mismatch_is_told_from_remote_headers(hub, tiny_pool, tmp_path):
    def narrower(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        return {**tensors, name: tensors[name][:, :-1].contiguous()}

    hub.repos["org/narrow"] = changed(Path(tiny_pool.experts[1]), tmp_path / "narrow", narrower)
    config = config_of(tmp_path, experts=("org/one", "org/narrow"))
    plan = make_plan(config, access_of(config))
    assert [p.where for p in plan.problems] == ["wild: narrow model.layers.0.mlp.up_proj.weight"]
    assert "the base's is" in plan.problems[0].what
    assert (plan.blocked, plan.new) == (1, 3)
    with pytest.raises(UserError, match="up_proj"):
        run_study(config)
    assert hub.weights == []


def test_all_that_cannot_be_had_is_told_at_once(hub, tmp_path):
    experts = (str(tmp_path / "gone"), "org/one", "org/two")
    config = config_of(tmp_path, "online=false", "sampler.sizes=[2]", experts=experts)
    plan = make_plan(config, access_of(config))
    whole = [f"{p.where}: {p.what}; {p.do}" for p in plan.problems]
    assert [p.where for p in plan.problems] == ["wild: base, e1, e2", "e0 of wild"]  # most blocked models first
    assert "3 checkpoints cannot be had; base: org/base is neither a folder here nor in the local hub" in whole[0]
    assert "no such folder" in whole[1]
    assert str(tmp_path / "gone") in whole[1]
    assert (plan.new, plan.blocked) == (0, 1 + 3 + 3)
    assert len(list(plan_parts(plan))) == 2
    with pytest.raises(UserError, match=r"org/base.*and 1 more"):
        run_study(config)
    assert Store(config.store).entries("results") == []
    assert hub.downloads == []


def test_one_expert_that_is_gone_blocks_what_it_is_part_of(hub, tmp_path):
    config = config_of(tmp_path, "sampler.sizes=[2]", experts=("org/one", "org/two", "org/nowhere"))
    plan = make_plan(config, access_of(config))
    assert [p.where for p in plan.problems] == ["e2 of wild"]
    assert (plan.new, plan.blocked) == (1 + 2 + 1, 1 + 2)
    assert hub.weights == []


def test_a_disk_that_is_too_small_is_a_problem(hub, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    config = config_of(tmp_path)
    plan = make_plan(config, access_of(config))
    assert [p.where for p in plan.problems] == ["the store"]
    with pytest.raises(UserError, match="GB of disk"):
        run_study(config)
    assert hub.weights == []


def test_memory_is_the_model_and_the_largest_tensors_copies(hub, tiny_pool, tmp_path):
    config = config_of(tmp_path, "suite.dtype=bfloat16")
    access = access_of(config)
    (merge,) = [p.trial for p in make_plan(config, access).layout.planned if p.kind == "merge"]
    counts = [t.numel() for t in load_file(Path(tiny_pool.base) / "model.safetensors").values()]
    assert memory(merge, access) == 2 * sum(counts) + 4 * max(counts) * (2 + 2)


def test_opening_to_read_fetches_that_checkpoint_alone(hub, tmp_path):
    access = access_of(config_of(tmp_path))
    folder = str(access.headers("org/one").folder)
    access.headers("org/two")
    assert hub.weights == []
    assert access.open(folder).tensor("model.norm.weight").shape == (96,)
    assert hub.weights == ["org/one/model.safetensors"]
    assert access.headers("org/one").name == "one"
    assert pickle.loads(pickle.dumps(access)).hub.unfetched(str(access.headers("org/two").folder)) is None
