import os
import signal
import subprocess
import sys
import time

import pytest

from conf.errors import UserError
from pipelines.store.gc import collect_garbage
from pipelines.store.store import Store, content_key
from tests.hostile_store import scored


def put(store: Store, key: str, text: str = "x", **about) -> None:
    with store.commit("results", key, scored(**about)) as draft:
        (draft / "file.txt").write_text(text)


def test_key_depends_on_content_alone():
    assert content_key({"a": 1, "b": [1.5, "x"]}) == content_key({"b": [1.5, "x"], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    assert content_key({"a": 1}) != content_key({"a": 1.5})
    with pytest.raises(ValueError):
        content_key({"a": float("nan")})


def test_commit_then_read(tmp_path):
    store = Store(tmp_path)
    assert not store.has("results", "k1")
    put(store, "k1", about="me")
    assert store.has("results", "k1")
    entry = store.entry("results", "k1")
    assert entry.describe()["about"] == "me"
    assert (entry.folder / "file.txt").read_text() == "x"
    assert [e.key for e in store.entries("results")] == ["k1"]


def test_failed_commit_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def half() -> None:
        with store.commit("results", "k1", {}) as draft:
            (draft / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert not store.has("results", "k1")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_first_commit_wins_and_incomplete_ones_are_replaced(tmp_path):
    store = Store(tmp_path)
    put(store, "k1", "first")
    put(store, "k1", "second")
    assert (store.folder("results", "k1") / "file.txt").read_text() == "first"
    put(store, "k2", "broken", incomplete=True)
    assert store.has("results", "k2")
    assert not store.has("results", "k2", complete=True)
    put(store, "k2", "whole")
    assert (store.folder("results", "k2") / "file.txt").read_text() == "whole"


def test_find_by_first_digits(tmp_path):
    store = Store(tmp_path)
    put(store, "abcd1111")
    put(store, "abcd2222")
    assert store.find("abcd1").key == "abcd1111"
    assert store.find("results:abcd2").key == "abcd2222"
    for prefix in ("abcd", "zzzz", "ab"):
        with pytest.raises(UserError):
            store.find(prefix)


def test_a_claim_and_a_draft_exclude_others_and_die_with_their_process(tmp_path):
    script = (
        "import sys, time; from pipelines.store.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "with store.claim('results', 'k') as mine, store.draft('k'):\n"
        "    print(mine, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        with Store(tmp_path).claim("results", "k", wait=False) as mine:
            assert not mine
        put(Store(tmp_path), "k1")
        assert len(list((tmp_path / "tmp").iterdir())) == 1
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    put(Store(tmp_path), "k2")
    assert list((tmp_path / "tmp").iterdir()) == []
    with Store(tmp_path).claim("results", "k", wait=False) as mine:
        assert mine


def test_stale_drafts_are_swept(tmp_path):
    store = Store(tmp_path)
    old, young = tmp_path / "tmp" / "old", tmp_path / "tmp" / "young"
    old.mkdir()
    young.mkdir()
    os.utime(old, (time.time() - 1e6,) * 2)
    assert [waste.key for waste in collect_garbage(store, delete=True).waste] == ["old"]
    assert young.exists()
    assert not old.exists()


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="store"):
        Store(tmp_path / "file" / "store")
