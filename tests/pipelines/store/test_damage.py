"""A damaged entry is named, set aside and made again; verify finds what no reading can."""

import json
import logging
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.entries import listed
from conf.errors import UserError
from conf.schema import Config, Executor
from pipelines.store.gc import collect_garbage
from pipelines.store.integrity import ENTRY, FORMAT, ZEROS
from pipelines.store.records import studies, write_record
from pipelines.store.results import result_rows
from pipelines.store.samples import DOCUMENTS, read_table
from pipelines.store.store import Store
from pipelines.study.sources import access_of
from pipelines.upkeep.verify import chosen_entries, verify
from tests import hostile
from tests.hostile_store import cut, edit, fifo, gone, old, replaced, scored, sealed

KEY, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def store(tiny_pool, tmp_path) -> Store:
    """A store with a base and two results of it, one of them in a study's record."""
    made = Store(tmp_path / "store")
    (source,) = (Path(tiny_pool.store) / "bases").iterdir()
    shutil.copytree(source, made.root / "bases" / source.name)
    fingerprint = json.loads((source / ENTRY).read_text())["fingerprint"]
    for key in (KEY, OTHER):
        base = {"path": str(made.folder("bases", source.name)), "fingerprint": fingerprint}
        with made.commit("results", key, scored(base=base, model={"weights": fingerprint})) as draft:
            texts = {"task": ["add"], "document": ["0"], "metric": ["acc"]}
            pq.write_table(pa.table({**texts, "value": [1.0]}), draft / DOCUMENTS)
    write_record(made, "study", "sweep", "12345678", {"results": [KEY, OTHER]}, {"p": [KEY]})
    return made


DAMAGES = {
    **{f"entry {name}": hostile.file(ENTRY, content) for name, content in hostile.BAD_JSON.items()},
    "entry cut": lambda f: os.truncate(f / ENTRY, 200), "entry gone": lambda f: (f / ENTRY).unlink(),
    "entry folder": hostile.folder_at(ENTRY), "entry elsewhere": hostile.link(ENTRY, "SECRET"),
    "entry loop": hostile.link(ENTRY, ENTRY), "entry sparse": hostile.file(ENTRY, b"{", 3 * 10**9),
    "score edited": edit(tasks={"add": {"metric": "acc", "value": 0.9, "stderr": None, "n": 4, "error": None}}),
    "no checksum": edit(checksum=None), "zero checksum": edit(checksum=ZEROS), "short checksum": edit(checksum="a"),
    "format text": edit(format="x"), "format null": edit(format=None), "files list": edit(files=[]),
    "files null": edit(files=None), "key": edit(key=7), "made": edit(made="x"), "incomplete": edit(incomplete="x"),
    **{f"old {name} {value!r}": old(**{name: value}) for name in ("tasks", "settings", "base", "names", "suite", "made")
       for value in (None, [], 7) if (name, value) not in (("names", []), ("made", 7))},
    "old task": old(tasks={"add": 7}), "old task fields": old(tasks={"add": {}}),
    "old settings": old(settings={"tasks": 7}),
    "documents gone": gone(DOCUMENTS), "documents cut": cut(DOCUMENTS, 40), "documents fifo": fifo(DOCUMENTS),
    "entry fifo": fifo(ENTRY), "entry huge number": edit(made=10**400), "a file": replaced(b"x"),
    "old date": old(made=1e300),
    **{f"sealed without {name}": sealed(lambda about, name=name: about.pop(name) and None)
       for name in ("files", "tasks", "settings", "trial", "names", "base", "experts", "made", "key", "kind")},
    **{f"sealed {name}": sealed(lambda about, name=name, value=value: about.update({name: value}))
       for name, value in (("recipe", {}), ("tasks", {"add": {}}), ("names", [7]), ("key", OTHER), ("seconds", [])) },
    "documents empty": hostile.file(DOCUMENTS, b""), "all gone": lambda f: [p.unlink() for p in f.iterdir()],
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_result_is_named_and_set_aside_and_the_rest_is_read(store, name, caplog):
    place = store.folder("results", KEY)
    DAMAGES[name](place)
    with caplog.at_level(logging.WARNING, logger="mergebench.store"):
        checks = verify(chosen_entries([], access := access_of(Config(store=str(store.root)))), access, Executor())
        assert [check.key for check in checks if check.bad] == [KEY]
        assert [row["key"] for row in result_rows(store)] == [OTHER]
        assert {entry.key for entry, _ in listed(store)} >= {OTHER}
        assert collect_garbage(store).kept >= 1
    assert not store.has("results", KEY)
    assert len([r for r in caplog.records if "results" in r.getMessage()]) == 1
    assert len(list((store.root / "damaged").iterdir())) == 1
    with store.commit("results", KEY, scored()):
        pass
    assert store.has("results", KEY)


def test_an_entry_of_before_is_read_and_one_of_a_newer_format_is_refused_in_words(store):
    old()(store.folder("results", KEY))
    assert [row["key"] for row in result_rows(store)] == [KEY, OTHER]
    edit(format=FORMAT + 1)(store.folder("results", OTHER))
    with pytest.raises(UserError, match="newer mergebench"):
        result_rows(Store(store.root))
    assert store.folder("results", OTHER).is_dir()


def test_changed_documents_of_the_same_size_are_found_by_verify_and_never_used(store):
    file = store.folder("results", KEY) / DOCUMENTS
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    access = access_of(Config(store=str(store.root)))
    assert {c.key: c.state for c in verify(chosen_entries([], access), access, Executor())}[KEY] == "differs"
    with pytest.raises(UserError, match="damaged"):
        read_table(store, store.entry("results", KEY))
    assert not store.has("results", KEY)


@pytest.mark.parametrize("damage", [
    lambda f: os.truncate(f / "model.safetensors", 1000), lambda f: (f / "model.safetensors").unlink(),
    hostile.raw(length=2**31), hostile.file("config.json", []), hostile.tensor(lambda t: t + 1, "norm.weight"),
    hostile.file("tokenizer.json", b""),
])  # fmt: skip
def test_a_damaged_base_is_set_aside(store, damage):
    (entry,) = store.entries("bases")
    damage(entry.folder)
    access = access_of(Config(store=str(store.root)))
    assert access.stored("bases", entry.key) is None
    assert not entry.folder.exists()
    assert [path.name[:5] for path in (store.root / "damaged").iterdir()] == ["bases"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"name": 7}', b'{"name": "a", "kind": "b"}']
)
def test_a_damaged_record_is_set_aside_and_holds_garbage_collection_back(store, content):
    (record,) = studies(store)
    record.file.write_bytes(content)
    assert studies(store) == []
    with pytest.raises(UserError, match="damaged record"):
        collect_garbage(store, delete=True)
    assert len(store.entries("results")) == 2
