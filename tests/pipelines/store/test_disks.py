"""Full disks, late visibility, no locks, clocks that jump: nothing half-written is read, and room is given back."""

import errno
import os
import shutil
import sys
import time

import pytest
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file

import pipelines.merge.cache
import pipelines.store.store
from cli import app
from conf.errors import UserError
from pipelines.merge.cache import MergeCache
from pipelines.store.gc import collect_garbage
from pipelines.store.store import Store
from tests.hostile_store import scored

KEY = "a" * 32


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", "/disk/file")


def full_as_safetensors_says_it(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def command(monkeypatch, capsys, *args: str) -> tuple[int, str]:
    """Exit code and standard error of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["mergebench", *args])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("target", [
    "pyarrow.parquet.write_table", "pipelines.store.store.write_entry", "pipelines.store.store._sync",
])  # fmt: skip
def test_a_full_disk_at_each_write_of_a_result_is_one_line_and_nothing_is_left(
    tiny_pool, tmp_path, monkeypatch, capsys, target
):
    store = tmp_path / "a store · ü [red]" / "store"
    args = (
        "evaluate", f"model={tiny_pool.base}", f"store='{store}'", "suite=skills", "suite.limit=4", "~suite.tasks",
        "+suite.tasks={add: {skill: add}}", "executor.device=cpu",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        code, told = command(patch, capsys, *args)
    errors = [line for line in told.splitlines() if line.startswith("error")]
    assert (code, len(errors)) == (1, 1), told
    assert "the disk is full" in errors[0]
    assert "Traceback" not in told
    assert list((store / "tmp").iterdir()) == []
    assert Store(store).entries("results") == []
    code, told = command(monkeypatch, capsys, *args)
    assert code == 0, told
    assert len(Store(store).entries("results")) == 1


@pytest.mark.parametrize("fault", [full, full_as_safetensors_says_it])
def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch, fault):
    import torch

    key, factors = ("factors", "expert", "w"), {"u": torch.ones(2, 2)}
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.merge.cache, "save_file", fault)
        MergeCache(tmp_path / "c")[key] = factors
    assert MergeCache(tmp_path / "c").get(key) is None
    assert list((tmp_path / "c").iterdir()) == []
    MergeCache(tmp_path / "c")[key] = factors
    assert torch.equal(MergeCache(tmp_path / "c").get(key)["u"], factors["u"])
    assert load_file(next((tmp_path / "c").iterdir())).keys() == factors.keys()


def test_an_entry_that_another_process_commits_first_is_found_though_it_shows_late(tmp_path, monkeypatch):
    store, other, rename = Store(tmp_path / "store"), Store(tmp_path / "other"), os.rename
    with other.commit("results", KEY, scored(suite="theirs")):
        pass
    looks = []

    def late(source, place):
        if str(place).startswith(str(tmp_path / "store" / "results")):
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        rename(source, place)

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            shutil.copytree(other.folder("results", KEY), store.folder("results", KEY))

    monkeypatch.setattr(pipelines.store.store.os, "rename", late)
    monkeypatch.setattr(pipelines.store.store.time, "sleep", sleep)
    with store.commit("results", KEY, scored(suite="ours")):
        pass
    assert len(looks) == 2
    assert store.entry("results", KEY).describe()["suite"] == "theirs"
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")])
def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with Store(tmp_path).claim("results", KEY) as mine:
        assert mine


def test_a_clock_that_jumps_neither_loses_nor_keeps_what_it_should_not(tmp_path, monkeypatch):
    store, now = Store(tmp_path), time.time()
    for key, clock in (("a" * 32, now + 1e9), ("b" * 32, now - 1e9), ("c" * 32, 0.0)):
        with monkeypatch.context() as patch, store.commit("results", key, scored()):
            patch.setattr(time, "time", lambda clock=clock: clock)
    assert [e.key[0] for e, _ in store.read_all("results")] == ["a", "b", "c"]
    assert [w.key[0] for w in collect_garbage(store, days=1.0).waste] == ["b", "c"]


def test_a_store_that_cannot_be_written_to_is_read(tmp_path, monkeypatch):
    store = Store(tmp_path)
    with store.commit("results", KEY, scored()):
        pass
    monkeypatch.setattr(os, "rename", full)
    (tmp_path / "results" / KEY / "entry.json").write_text("")
    assert Store(tmp_path).read_all("results") is not None
    assert list(Store(tmp_path).read_all("results")) == []
    with pytest.raises(UserError, match="holds no results entry"):
        Store(tmp_path).entry("results", KEY)
