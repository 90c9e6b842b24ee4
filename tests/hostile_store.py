"""Damaged stores: each kind damages a copy of a store that a small study filled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.store.integrity import ENTRY, FORMAT, ZEROS
from tests import hostile

Damage = Callable[[Path], Any]

DOCUMENTS, SAMPLES, WEIGHTS = "documents.parquet", "samples.parquet", "model.safetensors"
KINDS = ("bases", "experts", "results", "merges", "statistics")
SUITE = (
    "suite=skills", "suite.limit=4", "suite.samples=all", "~suite.tasks",
    "+suite.tasks={add: {skill: add}, dist: {skill: dist}}",
)  # fmt: skip
POOL = (
    "+pools.p.base={name: tiny, hidden: 16, layers: 1, steps: 1}", "+pools.p.training.steps=1",
    "+pools.p.tasks={add: {skill: add}, dist: {skill: dist}}", "store=store", "runs=outputs", "executor.device=cpu",
)  # fmt: skip
STUDY = (
    *POOL, *SUITE, "name=stored", "keep=all", "+methods={linear: {method: linear}, regmean: {method: regmean}}",
)  # fmt: skip
SEARCH = (*POOL, *SUITE, "method=linear", "search=random", "search.trials=2", "search.force=true", "search.split=test")


def scored(**fields: Any) -> dict[str, Any]:
    """What the entry of a base's result says of itself, but for some fields."""
    score = {"metric": "acc", "value": 0.5, "stderr": 0.1, "n": 4, "error": None}
    settings = {"tasks": {"add": {"num_fewshot": 0, "limit": None}}, "chat_template": False, "max_length": None}
    return {
        "trial": "base", "model": {}, "names": ["tiny"], "experts": [], "recipe": None,
        "base": {"path": "base", "fingerprint": "f"}, "suite": "s", "tasks": {"add": score}, "training": [],
        "settings": {**settings, "dtype": "float32", "share_prefix": True, "seed": 1}, "seconds": {"merge": 1.0},
        **fields,
    }  # fmt: skip


def first(kind: str, *damages: Damage) -> Damage:
    """Damages to the first entry of a kind (of results: to a merge's)."""

    def damage(store: Path) -> None:
        for one in damages:
            one(place(store, kind))

    return damage


def place(store: Path, kind: str) -> Path:
    """The folder of the entry of a kind that is damaged."""
    entries = sorted((store / kind).iterdir())
    if kind == "results":
        (study,) = (store / "studies").glob("stored*.json")
        told = {entry: json.loads((entry / ENTRY).read_text()) for entry in entries if entry.name in study.read_text()}
        return next(entry for entry, about in told.items() if about["recipe"])
    return entries[0]


def edit(**fields: Any) -> Damage:
    """Fields of ``entry.json`` changed by hand; the seal is left as it was."""
    return hostile.fields(ENTRY, **fields)


def sealed(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """``entry.json`` changed and sealed again: a checksum that fits proves nothing of what it seals."""

    def damage(folder: Path) -> None:
        about = json.loads((folder / ENTRY).read_text())
        about = change(about) or about
        text = json.dumps({**about, "checksum": ZEROS}, indent=1, sort_keys=True) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        (folder / ENTRY).write_text(text.replace(ZEROS, digest, 1))

    return damage


def resealed(*damages: Damage) -> Damage:
    """Files damaged, and sizes and hashes of them recorded as they are then."""

    def change(folder: Path, about: dict[str, Any]) -> None:
        for name in about["files"]:
            data = (folder / name).read_bytes()
            about["files"][name] = [len(data), hashlib.sha256(data).hexdigest()]

    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)
        sealed(lambda about: change(folder, about))(folder)

    return damage


def old(**fields: Any) -> Damage:
    """An entry of the first format, without a seal, some of whose fields are others (``...``: not there)."""

    def damage(folder: Path) -> None:
        about = {**json.loads((folder / ENTRY).read_text()), **fields}
        gone = ("format", "files", "checksum", *(name for name, value in fields.items() if value is ...))
        (folder / ENTRY).write_text(json.dumps({k: v for k, v in about.items() if k not in gone}))

    return damage


def cut(name: str, size: int) -> Damage:
    """A file cut to so many bytes (below 0: by so many)."""
    return lambda folder: os.truncate(folder / name, size if size >= 0 else (folder / name).stat().st_size + size)


def gone(name: str) -> Damage:
    """A file that is not there."""
    return lambda folder: (folder / name).unlink()


def flipped(name: str) -> Damage:
    """A byte in the middle of a file is another."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 0xFF
        (folder / name).write_bytes(data)

    return damage


def closed(name: str = ".") -> Damage:
    """A file or folder that may not be read (by anyone but root)."""
    return lambda folder: (folder / name).chmod(0)


def replaced(content: bytes | str | None) -> Damage:
    """A file in place of the entry's folder, a link to somewhere (text), or an empty folder."""

    def damage(folder: Path) -> None:
        shutil.rmtree(folder)
        if content is None:
            folder.mkdir()
        elif isinstance(content, str):
            folder.symlink_to(content)
        else:
            folder.write_bytes(content)

    return damage


def fifo(name: str) -> Damage:
    """A pipe that no one writes to in place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def parquet(**columns: list[Any]) -> Damage:
    """A sound Parquet file with other columns."""

    def damage(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for name in (DOCUMENTS, SAMPLES):
            pq.write_table(pa.table(columns), folder / name)

    return damage


def record(content: Any) -> Damage:
    """The record of a study is something else (a function: changed by it)."""

    def damage(store: Path) -> None:
        (file,) = (store / "studies").glob("stored*.json")
        made = content(json.loads(file.read_text())) if callable(content) else content
        file.write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())

    return damage


def at(path: str, damage: Damage) -> Damage:
    """A damage to each folder that a pattern below the store names."""
    return lambda store: [damage(folder) for folder in sorted(store.glob(path))]


def _extra(folder: Path) -> None:
    (folder / "stranger").mkdir()
    (folder / "stranger" / "file").write_text("x")


def _swapped(store: Path) -> None:
    """Two results in each other's places."""
    a, b = sorted((store / "results").iterdir())[:2]
    a.rename(store / "x")
    b.rename(a)
    (store / "x").rename(b)


NAN = b'{"a": NaN, "made": Infinity}'
JSONS = {**hostile.BAD_JSON, "nan": NAN, "bom": b"\xef\xbb\xbf{}", "object": {}, "nul": b"\0" * 4096}
MARKUP = hostile.MARKUP

DAMAGES: dict[str, Damage] = {
    "none": lambda store: None,
    **{f"result entry {name}": first("results", hostile.file(ENTRY, value)) for name, value in JSONS.items()},
    **{f"{kind} entry {name}": first(kind, hostile.file(ENTRY, JSONS[name]))
       for kind in KINDS if kind != "results" for name in ("empty", "list", "nested", "object")},
    **{f"{kind} folder {name}": first(kind, replaced(content)) for kind in KINDS
       for name, content in (("file", b"x"), ("empty", None), ("loop", "."), ("elsewhere", "/etc"))},
    **{f"{kind} fifo": first(kind, fifo(ENTRY)) for kind in ("results", "experts")},
    **{f"{kind} closed": first(kind, closed()) for kind in ("results", "experts")},
    "entry closed": first("results", closed(ENTRY)),
    "entry secret": first("results", hostile.link(ENTRY, "SECRET")),
    "entry zero": first("results", hostile.link(ENTRY, "/dev/zero")),
    "entry folder": first("results", hostile.folder_at(ENTRY)),
    "entry sparse": first("results", hostile.file(ENTRY, b"{", 3 * 10**9)),
    "entry twice": first("results", lambda f: (f / ENTRY).write_text('{"key": 1, ' + (f / ENTRY).read_text()[1:])),
    "entry newer": first("results", sealed(lambda a: a.update(format=FORMAT + 1))),
    "entry format text": first("results", sealed(lambda a: a.update(format="2"))),
    "entry format nan": first("results", sealed(lambda a: a.update(format=float("nan")))),
    "score edited": first("results", edit(tasks={})),
    **{f"sealed without {name}": first("results", sealed(lambda a, name=name: a.pop(name) and None))
       for name in ("files", "tasks", "settings", "trial", "names", "base", "recipe", "experts", "made", "key", "kind",
                    "suite", "model", "weights", "seconds", "device", "training", "versions", "batch_size")},
    **{f"sealed {name} {str(value)[:12]!r}": first("results", sealed(lambda a, n=name, v=value: a.update({n: v})))
       for name in ("files", "tasks", "settings", "recipe", "experts", "made", "base", "training", "seconds", "names")
       for value in ([], 7, None, "x", {"a": {}}, [7]) if (name, value) not in (("recipe", None),)},
    **{f"sealed files {name}": first("results", sealed(lambda a, v=value: a.update(files=v)))
       for name, value in (("up", {"../../../../etc/passwd": [1, "x"]}), ("types", {DOCUMENTS: 7}),
                           ("texts", {DOCUMENTS: ["1", 2]}), ("nul", {"a\0b": [1, "x"]}))},
    "sealed markup": first("results", sealed(lambda a: a.update(names=[MARKUP], suite=MARKUP))),
    "sealed huge": first("results", sealed(lambda a: a["tasks"]["add"].update(value=1e308, n=10**30))),
    "sealed texts": first("results", sealed(lambda a: a["tasks"]["add"].update(value="x", n=None))),
    "sealed score nan": first("results", sealed(lambda a: a["tasks"]["add"].update(value=float("nan")))),
    **{f"sealed {kind} without {name}": first(kind, sealed(lambda a, name=name: a.pop(name) and None))
       for kind, names in (("experts", ("finetuning", "training", "optimizer", "base", "fingerprint", "name", "made")),
                           ("bases", ("fingerprint", "name", "spec")), ("merges", ("weights", "recipe")),
                           ("statistics", ("sha256", "expert", "statistic"))) for name in names},
    **{f"sealed {kind} {name} 7": first(kind, sealed(lambda a, name=name: a.update({name: 7})))
       for kind, names in (("experts", ("finetuning", "training", "optimizer", "base", "fingerprint", "summary")),
                           ("bases", ("fingerprint", "spec")), ("merges", ("weights", "recipe", "base")),
                           ("statistics", ("sha256", "expert"))) for name in names},
    "old": first("results", old()),
    "old expert": first("experts", old()),
    **{f"old {name} {value!r}": first("results", old(**{name: value}))
       for name in ("tasks", "settings", "recipe", "made", "base", "seconds", "training", "versions")
       for value in ([], 7, ...)},
    "old recipe {}": first("results", old(recipe={})),
    "old recipe fields": first("results", old(recipe={"method": 7, "parameters": [], "nope": 1})),
    "old expert finetuning": first("experts", old(finetuning=7)),
    **{f"{name} {how}": first("results", damage(name)) for name in (DOCUMENTS, SAMPLES)
       for how, damage in (("gone", gone), ("flipped", flipped), ("closed", closed), ("fifo", fifo),
                           ("folder", hostile.folder_at), ("cut", lambda n: cut(n, 40)),
                           ("empty", lambda n: hostile.file(n, b"")), ("shorter", lambda n: cut(n, -1)),
                           ("zero", lambda n: hostile.link(n, "/dev/zero")),
                           ("large", lambda n: lambda f: os.truncate(f / n, 3 * 10**9)))},
    **{f"resealed {name} {how}": first("results", resealed(damage(name))) for name in (DOCUMENTS, SAMPLES)
       for how, damage in (("cut", lambda n: cut(n, 40)), ("empty", lambda n: hostile.file(n, b"")),
                           ("flipped", flipped), ("json", lambda n: hostile.file(n, {})))},
    "resealed other columns": first("results", resealed(parquet(a=[1, 2]))),
    "resealed texts": first("results", resealed(parquet(task=["add"], document=["0"], metric=["acc"], value=["x"],
                                                        sample=["{"], lm_eval_task=["add"]))),
    "resealed lists": first("results", resealed(parquet(task=[7], document=[7], metric=[7], value=[1.0],
                                                        sample=["[]"], lm_eval_task=["../../x"]))),
    "lm_eval gone": first("results", gone("lm_eval.json")),
    "stranger": first("results", _extra),
    "swapped": _swapped,
    **{f"{kind} {name} {how}": first(kind, damage(name)) for kind in ("bases", "experts", "merges")
       for name in (WEIGHTS, "config.json", "tokenizer.json")
       for how, damage in (("gone", gone), ("cut", lambda n: cut(n, 40)), ("flipped", flipped))},
    **{f"{kind} header": first(kind, resealed(hostile.raw(length=2**31))) for kind in ("bases", "experts", "merges")},
    **{f"statistics {how}": first("statistics", damage("statistics.safetensors"))
       for how, damage in (("gone", gone), ("cut", lambda n: cut(n, 40)), ("flipped", flipped),
                           ("resealed", lambda n: resealed(hostile.file(n, struct.pack("<Q", 2) + b"{}"))))},
    **{f"record {name}": record(value) for name, value in JSONS.items()},
    "record keys": record(lambda r: {**r, "keys": {"results": ["../../etc", 7]}}),
    "record pools": record(lambda r: {**r, "pools": {"p": [7]}}),
    "record kinds": record(lambda r: {**r, "keys": {"nope": []}}),
    "record markup": record(lambda r: {**r, "name": MARKUP}),
    "record made": record(lambda r: {**r, "made": 1e300}),
    "record more": record(lambda r: {**r, "nope": 1}),
    "record gone": lambda s: [f.unlink() for f in (s / "studies").glob("stored*")],
    "record folder": lambda s: [(f.unlink(), f.mkdir()) for f in (s / "studies").glob("stored*")],
    "record fifo": lambda s: [(f.unlink(), os.mkfifo(f)) for f in (s / "studies").glob("stored*")],
    "search journal cut": at("searches/*", lambda f: [os.truncate(x, 30) for x in f.iterdir() if x.is_file()]),
    "search journal garbage": at("searches/*", lambda f: [x.write_bytes(b"\xff{") for x in f.iterdir() if x.is_file()]),
    "search folder": at("searches/*", lambda f: replaced(b"x")(f)),
    **{f"{name} is a file": at(name, replaced(b"x")) for name in (*KINDS, "cache", "tmp", "locks", "studies")},
    **{f"{name} is gone": at(name, lambda f: shutil.rmtree(f)) for name in (*KINDS, "cache", "tmp", "studies")},
    "cache garbage": lambda s: [f.write_bytes(b"\xff\xfe\0") for f in (s / "cache").rglob("*") if f.is_file()],
    "cache emptied": lambda s: [f.write_bytes(b"") for f in (s / "cache").rglob("*") if f.is_file()],
    "stray file": lambda s: [(s / kind / "stray").write_text("x") for kind in KINDS],
    "stray folder": lambda s: [(s / kind / ("f" * 32)).mkdir() for kind in KINDS],
    "strange key": lambda s: [(s / kind / "[red]\x1b[31mEVIL\n").mkdir() for kind in KINDS],
    "damaged is a file": lambda s: [first("results", hostile.file(ENTRY, b""))(s), (s / "damaged").write_text("x")],
    "two at once": lambda s: [hostile.file(ENTRY, b"")(f) for f in sorted((s / "results").iterdir())[:2]],
    "all": lambda s: [hostile.file(ENTRY, b"")(f) for kind in KINDS for f in (s / kind).iterdir()],
}  # fmt: skip


SOUND = ("none",)
"""Damages after which nothing is missing that was committed."""


def commands(store: Path) -> dict[str, tuple[str, ...]]:
    """Every command that reads a store, by name, of keys that are damaged."""
    keys = {kind: place(store, kind).name for kind in KINDS}
    other = sorted(entry.name for entry in (store / "results").iterdir() if entry.name != keys["results"])[0]
    at = "store=store"
    tiny = ("base=tiny", "base.hidden=16", "base.layers=1", "base.steps=1")
    experts = sorted(entry.name for entry in (store / "experts").iterdir())
    return {
        "ls": ("ls", at, "--json"), "ls table": ("ls", at),
        **{f"show {kind}": ("show", f"{kind}:{keys[kind]}", at) for kind in KINDS},
        "results": ("results", "--format", "csv", at), "samples": ("results", "--samples", "out", at),
        "verify": ("verify", "--all", at), "plan": ("plan", *STUDY), "gc": ("gc", at),
        "gc all": ("gc", at, "--forget", "stored", "--delete"),
        **{f"export {kind}": ("export", f"{kind}:{keys[kind]}", "out=out", at) for kind in KINDS[:4]},
        "compare": ("compare", keys["results"], other, at),
        "push": ("push", f"results:{keys['results']}", "me/x", "out=out", at),
        "push expert": ("push", f"experts:{keys['experts']}", "me/x", "out=out", at),
        "evaluate": ("evaluate", *tiny, f"experts=[{','.join(experts)}]", "method=linear", *SUITE, at),
        "merge": ("merge", *tiny, f"experts=[{','.join(experts)}]", "out=out", at),
        "geometry": ("geometry", *STUDY, "out=out"),
        "landscape": ("landscape", *STUDY, "out=out", "landscape.points=2", "landscape.examples=4"),
        "search": ("search", *SEARCH), "report": ("report", *STUDY), "sweep": ("sweep", *STUDY),
    }  # fmt: skip
