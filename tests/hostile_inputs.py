"""Hostile input that is no checkpoint, store or override: task files, data, pictures, recipes, other tools' results."""

# ruff: noqa: E501
from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile import MARKUP, NESTED

Make = Callable[[Path], Any]
"""Puts something hostile into a folder that holds ``tests.cli.world`` and what ``more`` adds to it."""

TASK = ("evaluate", "model=a", "suite=custom", "suite.include_path=bad", "+suite.tasks.sums.limit=4",
        "suite.batch_size=4")  # fmt: skip
PICTURES = (
    "evaluate", "base.path=clip", "suite=custom",
    "+suite.tasks.p.images={path: bad, classes: [red, blue]}", "suite.tasks.p.limit=4", "suite.batch_size=4",
)  # fmt: skip
TOWER = ("finetune", "base.path=clip", "+task.images={path: bad, classes: [red, blue]}", "training.steps=1")
COMPARE = ("compare", "good", "bad", "statistics.resamples=10")
RECIPE = ("merge", "--mergekit-config", "bad.yaml", "out=out")


def more(world: Path) -> None:
    """Add to a world: a classifier of pictures, adapters, pictures, another tool's results, and data to damage."""
    from conf.schema import Base
    from pipelines.tiny.clip import make_base
    from tests.hostile import adapter

    make_base(Base(name="tiny_clip", hidden=16, layers=1, steps=1), world / "clip")
    for name in ("lora_a", "lora_b"):
        shutil.copytree(world / "a", world / name)
        adapter()(world / name)
    pictures(world / "pictures")
    samples(world / "good")


def pictures(folder: Path, data: bytes | None = None) -> None:
    """Four pictures of two classes, by split and class; ``data`` in place of the first one's file."""
    from PIL import Image

    for split in ("train", "test"):
        for colour in ("red", "blue"):
            (folder / split / colour).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (9, 9), colour).save(folder / split / colour / f"{number}.png")
        if data is not None:
            (folder / split / "red" / "0.png").write_bytes(data)


def samples(folder: Path, text: Any = None, **fields: Any) -> None:
    """What ``lm_eval --log_samples`` leaves, some fields of whose lines are others, or another text."""
    line = {"doc_id": 0, "doc_hash": "x", "filter": "none", "metrics": ["acc"], "acc": 1.0, **fields}
    lines = "".join(json.dumps({**line, "doc_id": fields.get("doc_id", i), "acc": fields.get("acc", i % 2)}) + "\n"
                    for i in range(8))  # fmt: skip
    (folder / "model").mkdir(parents=True)
    place = folder / "model" / "samples_sums_2025-01-01T00-00-00.0.jsonl"
    place.write_bytes(text if isinstance(text, bytes) else lines.encode())


def task_file(*changes: tuple[str, str], **others: bytes) -> Make:
    """The world's task file with some text replaced (or added at the end), beside other YAML files."""

    def make(place: Path) -> None:
        shutil.copytree(place / "tasks", place / "bad")
        text = (place / "bad" / "sums.yaml").read_text()
        for old, new in changes:
            assert not old or old in text, old
            text = text.replace(old, new) if old else text + new
        (place / "bad" / "sums.yaml").write_text(text)
        for name, data in others.items():
            (place / "bad" / f"{name}.yaml").write_bytes(data)

    return make


def prompt(text: str) -> Make:
    """The world's task with another template for its prompts."""
    return task_file(('"{{prompt}}"', json.dumps(text)))


def at(name: str, data: bytes | Callable[[Path], Any], size: int = 0) -> Make:
    """A file of these bytes (sparsely ``size`` long), or whatever a function puts at its path."""

    def make(place: Path) -> None:
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if callable(data):
            return data(file)
        file.write_bytes(data)
        if size:
            os.truncate(file, size)

    return make


def table(name: str, **columns: Any) -> Make:
    """A Parquet file with these columns."""

    def make(file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), file)

    return at(name, make)


def png(width: int, height: int, data: bytes = b"", chunk: bytes = b"") -> bytes:
    """A PNG that says it has this size."""

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk + part(b"IDAT", zlib.compress(data)) + part(b"IEND", b"")


def picture(form: str, **options: Any) -> bytes:
    """A sound picture in another form."""
    from PIL import Image

    out = io.BytesIO()
    Image.new(options.pop("mode", "RGB"), options.pop("size", (9, 9))).save(out, form, **options)
    return out.getvalue()


def _bomb() -> bytes:
    """Three gigabytes of pixels in three megabytes."""
    return png(30_000, 30_000, b"\0" * 10_000_000)


def _text_bomb() -> bytes:
    body = b"a\0\0" + zlib.compress(b"x" * 100_000_000)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return png(9, 9, b"\0" * 28 * 9, chunk)


CALL = "cycler.__init__.__globals__.os.system('touch canary')"
TEMPLATES = {
    "code": f"{{{{ {CALL} }}}}", "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "code of lipsum": "{{ lipsum.__globals__['os'].popen('touch canary').read() }}",
    "code by format": "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "endless joined": "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "power": "{{ 10 ** 10 ** 10 }}",
    "times": "{{ 'x' * 10000000000 }}", "doubles": "{% set a = 'xx' %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "include": "{% include '/etc/passwd' %}",
    "syntax": "{% for", "unknown": "{{ nope }}", "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "empty": "",
    "range": "{{ range(10**9)|list }}", "markup": MARKUP,
    "filter": "{{ prompt|center(10000000000) }}", "sort": "{{ range(99999)|map('string')|join|wordwrap(1) }}",
}  # fmt: skip
LAUGHS = b"a: &a [x, x]\n" + b"".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n".encode() for i in range(22)
)
TASKS: dict[str, Make] = {
    "harmless": task_file(), **{f"prompt {name}": prompt(text) for name, text in TEMPLATES.items()},
    **{f"choices {name}": task_file(('["4", "6", "8"]\ndoc', f"{text}\ndoc")) for name, text in {
        "code": json.dumps(f"{{{{ [{CALL}] }}}}"), "number": "7", "deep": json.dumps("[" * 3000), "none": "null",
        "many": json.dumps([str(i) for i in range(3000)]), "empty": "[]", "lists": "[[1], {a: 1}]",
        "dictionary": json.dumps("{" + "'a':{" * 90),
    }.items()},
    **{f"target {name}": task_file(("{{['4', '6', '8'].index(completion)}}", text)) for name, text in {
        "code": f"{{{{ {CALL} }}}}", "far": "99", "below": "-7", "text": "x",
        "huge": "9" * 5000, "empty": "", "literal": "[" * 500,
    }.items()},
    "include itself": task_file(("", "include: sums.yaml\n")), "include number": task_file(("", "include: 7\n")),
    "include loop": task_file(("", "include: other.yaml\n"), other=b"include: sums.yaml\n"),
    "include passwd": task_file(("", "include: /etc/passwd\n")), "include zero": task_file(("", "include: /dev/zero\n")),
    "include fifo": lambda p: (task_file(("", "include: x.yaml\n"))(p), os.mkfifo(p / "bad" / "x.yaml")),
    "include missing": task_file(("", "include: nope.yaml\n")),
    "include list": task_file(("", "include: [[other.yaml]]\n"), other=b"{}"),
    "include doubling": lambda p: (task_file(("", "include: [a0.yaml, a0.yaml]\n"))(p), [
        (p / "bad" / f"a{i}.yaml").write_text(f"include: [a{i + 1}.yaml, a{i + 1}.yaml]\n") for i in range(24)],
        (p / "bad" / "a24.yaml").write_text("num_fewshot: 0\n")),
    "group of itself": task_file(("task: sums", "group: sums\ntask: [sums]")),
    "group loop": task_file(("task: sums", "group: sums\ntask: [more]"), other=b"group: more\ntask: [sums]\n"),
    "group number": task_file(("task: sums", "group: sums\ntask: 7")),
    "group tables": task_file(("task: sums", "group: sums\ntask: [{task: [7]}, {a: 1}, null]")),
    "group unknown": task_file(("task: sums", "group: sums\ntask: [nope]")),
    "tag of itself": task_file(("task: sums", "tag: sums\ntask: sums")),
    "class": task_file(("", "class: !function os.system\n")), "class text": task_file(("", "class: 7\n")),
    "function": task_file(('"{{prompt}}"', "!function os.system")),
    "function path": task_file(('"{{prompt}}"', "!function ../../../etc/passwd.x")),
    "function none": task_file(('"{{prompt}}"', "!function nope")),
    "function list": task_file(('"{{prompt}}"', "!function [a]")),
    "python tag": task_file(("", "about: !!python/object/apply:os.system ['touch canary']\n")),
    **{f"yaml {name}": task_file(("", text)) for name, text in {
        "open": "x: [\n", "tab": "x:\n\t- y\n", "nul": "x: a\0b\n", "nested": "x: " + "[" * 5000, "tag": "x: !nope y\n",
        "flow": "x: " + "[" * 3000 + "]" * 3000, "key": "? [a]\n: b\n", "twice": "task: sums\ntask: other\n",
        "cycle": "metadata: &a [*a]\n", "laughs": "metadata: {" + LAUGHS.decode().replace("\n", ", ") + "}\n",
        "date": "metadata: 2020-01-01\n", "octal": "num_fewshot: 0o7777777777777777777777\n", "merge": "<<: 7\n",
    }.items()},
    "yaml utf16": at("bad/sums.yaml", "task: sums\n".encode("utf-16")), "yaml empty": at("bad/sums.yaml", b""),
    "yaml list": at("bad/sums.yaml", b"- task: sums\n"), "yaml binary": at("bad/sums.yaml", b"task: sums\n\xff\xfe"),
    "yaml sparse": at("bad/sums.yaml", b"task: sums\n", 3 * 10**9),
    "yaml fifo": lambda p: (task_file()(p), os.mkfifo(p / "bad" / "x.yaml")),
    "yaml zero": lambda p: (task_file()(p), (p / "bad" / "x.yaml").symlink_to("/dev/zero")),
    "yaml folder": lambda p: (task_file()(p), (p / "bad" / "x.yaml").mkdir()),
    "folder loop": lambda p: (task_file()(p), (p / "bad" / "x").symlink_to(".")),
    "many files": lambda p: (task_file()(p), [(p / "bad" / f"{i}.yaml").write_text(f"task: t{i}\n")
                                              for i in range(20_000)]),
    **{f"{key} {str(value)[:20]}": task_file(("", f"{key}: {json.dumps(value)}\n")) for key, values in {
        "num_fewshot": (-1, 10**9, "x", 1.5, []), "repeats": (0, -1, 10**9, "x", []), "output_type": (7, "x", None, []),
        "metric_list": (7, [], [7], [{}], "x", [{"metric": 7}], [{"metric": "nope"}], None, {"metric": "acc"}),
        "filter_list": (7, [7], [{}], [{"name": "none", "filter": [{"function": "nope"}]}], "x"),
        "fewshot_split": (7, "nope"), "test_split": (7, "nope", None, []), "validation_split": (7,),
        "dataset_path": (7, "/etc/passwd", "/proc/self", "/", "nope/nope", None, [], ""),
        "dataset_name": (7, "x", []), "dataset_kwargs": (7, [], {"data_files": 7}, {"data_files": "/dev/zero"},
                                                          {"data_files": []}, {"data_files": {"test": "/etc/**"}},
                                                          {"trust_remote_code": True}, {"nope": 1}),
        "generation_kwargs": (7, [], {"until": 7}), "metadata": (7, [], "x", {"requires": 7}, {"local": 7}),
        "doc_to_text": (7, None, [], {}), "doc_to_target": (7, None, [], {}), "target_delimiter": (7, None, []),
        "process_docs": ("x", 7), "should_decontaminate": (True, 7), "description": (7, []), "fewshot_config": (7, []),
        "unsafe_code": (True, "x"), "task": (7, [], None, ["a", "b"], "../x", MARKUP), "tag": (7, [[]]),
        "use_prompt": ("promptsource:x", 7), "nope": (1,), "weight_by_size": (7,),
    }.items() for value in values},
}  # fmt: skip

DATA: dict[str, Make] = {
    name: (lambda p, make=make: (task_file((str((p / "mine.jsonl").resolve()), str(p / "data.jsonl")))(p), make(p)))
    for name, make in {
        "fifo": at("data.jsonl", lambda f: os.mkfifo(f)), "zero": at("data.jsonl", lambda f: f.symlink_to("/dev/zero")),
        "empty": at("data.jsonl", b""), "garbage": at("data.jsonl", b"\0\xff\xfe{\n"), "nested": at("data.jsonl", NESTED),
        "deep": at("data.jsonl", b'{"a":' * 900 + b"1" + b"}" * 900), "list": at("data.jsonl", b"[1, 2]\n"),
        "types": at("data.jsonl", b'{"prompt": 7, "completion": []}\n{"prompt": {}, "completion": "x"}\n'),
        "missing": at("data.jsonl", b'{"a": 1}\n'), "nul": at("data.jsonl", b'{"prompt": "a\\u0000b", "completion": "4"}\n'),
        "surrogate": at("data.jsonl", b'{"prompt": "\\ud800", "completion": "4"}\n' * 4),
        "long": at("data.jsonl", b'{"prompt": "' + b"1" * 3_000_000 + b'", "completion": "4"}\n'),
        "sparse": at("data.jsonl", b"{", 3 * 10**9), "link": at("data.jsonl", lambda f: f.symlink_to("/etc/passwd")),
        "folder": at("data.jsonl", lambda f: f.mkdir()), "loop": at("data.jsonl", lambda f: f.symlink_to(f)),
        "numbers": at("data.jsonl", b'{"prompt": "1", "completion": "4", "x": 1e999}\n' * 4),
    }.items()
}  # fmt: skip


def _rows(count: int) -> bytes:
    """Parquet of two columns whose footer says that it holds so many rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a"] * 99, "completion": ["b"] * 99}), out)
    data = bytearray(out.getvalue())
    varint, number = bytearray(), count * 2
    while number > 127:
        varint.append(number & 127 | 128)
        number >>= 7
    varint.append(number)
    (length,) = struct.unpack("<I", data[-8:-4])
    footer = bytes(data[-8 - length : -8]).replace(b"\x16\xc6\x01", b"\x16" + bytes(varint))  # i64 99 by i64 count
    return bytes(data[: -8 - length]) + footer + struct.pack("<I", len(footer)) + b"PAR1"


LINE = b'{"prompt": "1", "completion": "2"}\n'
ROWS: dict[str, tuple[str, Make]] = {
    name: (end, make if callable(make) else at(f"bad.{end}", make)) for name, (end, make) in {
        "fifo": ("jsonl", at("bad.jsonl", lambda f: os.mkfifo(f))), "folder": ("jsonl", at("bad.jsonl", lambda f: f.mkdir())),
        "zero": ("jsonl", at("bad.jsonl", lambda f: f.symlink_to("/dev/zero"))), "nested": ("jsonl", NESTED),
        "one long line": ("jsonl", at("bad.jsonl", b"{", 10**9)), "bom": ("jsonl", b"\xef\xbb\xbf" + LINE),
        "twice": ("jsonl", b'{"prompt": "1", "prompt": "3", "completion": "2"}\n' * 4), "nan": ("jsonl", b"NaN\n"),
        "huge number": ("jsonl", b'{"prompt": "1", "completion": "2", "x": ' + b"9" * 9000 + b"}\n"),
        "deep": ("jsonl", b'{"prompt": "1", "completion": "2", "x": ' + b"[" * 900 + b"]" * 900 + b"}\n"),
        "surrogate": ("jsonl", b'{"prompt": "\\ud800", "completion": "2"}\n'), "latin": ("jsonl", LINE + b"\xe9\n"),
        "markup": ("jsonl", json.dumps({"prompt": MARKUP, "completion": MARKUP}).encode() + b"\n"),
        "long": ("jsonl", b'{"prompt": "' + b"1" * 5_000_000 + b'", "completion": "2"}\n'),
        "nul": ("jsonl", b"\0" * 5000), "json bomb": ("json", b"[" + b"{}," * 3_000_000 + b"{}]"),
        "json nested": ("json", NESTED), "json sparse": ("json", at("bad.json", b"[", 10**9)),
        "csv quote": ("csv", b'prompt,completion\n"1,2\n' + b"x" * 1_000_000), "csv nul": ("csv", b"prompt,completion\n\0,1\n"),
        "csv wide": ("csv", b"prompt,completion" + b",x" * 100_000 + b"\n1,2\n"), "csv short": ("csv", b"prompt,completion\n1\n"),
        "csv more": ("csv", b"prompt,completion\n1,2,3,4\n"), "csv sparse": ("csv", at("bad.csv", b"prompt,completion\n", 10**9)),
        "parquet empty": ("parquet", b""), "parquet magic": ("parquet", b"PAR1PAR1"), "parquet text": ("parquet", LINE),
        "parquet footer": ("parquet", b"PAR1" + b"\xff" * 64 + struct.pack("<I", 64) + b"PAR1"),
        "parquet long footer": ("parquet", b"PAR1" + struct.pack("<I", 2**31 - 1) + b"PAR1"),
        "parquet 2^31 rows": ("parquet", at("bad.parquet", lambda f: f.write_bytes(_rows(2**31)))),
        "parquet 2^62 rows": ("parquet", at("bad.parquet", lambda f: f.write_bytes(_rows(2**62)))),
        "parquet few rows": ("parquet", at("bad.parquet", lambda f: f.write_bytes(_rows(9_000_000)))),
        "parquet numbers": ("parquet", table("bad.parquet", prompt=[1, 2], completion=[[1], [2]])),
        "parquet bytes": ("parquet", table("bad.parquet", prompt=[b"\xff", b"a"], completion=["a", None])),
        "parquet others": ("parquet", table("bad.parquet", a=[1])), "parquet none": ("parquet", table("bad.parquet")),
        "parquet nulls": ("parquet", table("bad.parquet", prompt=[None, None], completion=[None, None])),
    }.items()
}  # fmt: skip
TRAIN = ("finetune", "base.path=base", "training.steps=1", "training.batch_size=2")

IMAGES: dict[str, Make] = {
    "harmless": lambda p: pictures(p / "bad"),
    **{f"file {name}": (lambda p, make=make: pictures(p / "bad", make())) for name, make in {
        "empty": lambda: b"", "text": lambda: b"hello", "cut": lambda: picture("PNG")[:40], "header": lambda: png(9, 9),
        "sizes": lambda: png(2**31 - 1, 2**31 - 1), "bomb": _bomb, "text bomb": _text_bomb, "zero": lambda: png(0, 0),
        "jpeg": lambda: picture("JPEG"), "gif": lambda: picture("GIF"), "svg": lambda: b"<svg><script>1</script></svg>",
        "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch canary) run\n%%EOF\n",
        "bmp": lambda: picture("BMP")[:-100], "tiff": lambda: picture("TIFF"), "tiff cut": lambda: picture("TIFF")[:60],
        "ico": lambda: picture("ICO"), "palette": lambda: picture("PNG", mode="P"), "one bit": lambda: picture("PNG", mode="1"),
        "16 bit": lambda: picture("PNG", mode="I;16"), "float": lambda: picture("TIFF", mode="F"),
        "cmyk": lambda: picture("JPEG", mode="CMYK"), "alpha": lambda: picture("PNG", mode="LA"),
        "thin": lambda: picture("PNG", size=(1, 8000)), "pixel": lambda: picture("PNG", size=(1, 1)),
        "polyglot": lambda: picture("PNG") + b"PK\x03\x04" + b"\0" * 100, "pickle": lambda: b"\x80\x04cos\nsystem\n.",
        "large": lambda: picture("PNG", size=(9000, 9000)), "frames": lambda: picture(
            "GIF", save_all=True, append_images=[]) * 2,
    }.items()},
    **{f"folder {name}": (lambda p, change=change: (pictures(p / "bad"), change(p / "bad"))) for name, change in {
        "fifo": lambda f: (os.mkfifo(f / "test" / "red" / "9.png"), os.mkfifo(f / "train" / "red" / "9.png")),
        "loop": lambda f: (f / "test" / "red" / "up").symlink_to("../.."),
        "passwd": lambda f: [(f / s / "red" / "9.png").symlink_to("/etc/passwd") for s in ("test", "train")],
        "zero": lambda f: [(f / s / "red" / "9.png").symlink_to("/dev/zero") for s in ("test", "train")],
        "closed": lambda f: (f / "test" / "red" / "0.png").chmod(0),
        "script": lambda f: (f / "bad.py").write_text("open('canary', 'w')"),
        "readme": lambda f: (f / "README.md").write_text("---\nconfigs: [{config_name: 7, data_files: [[[]]]}]\n---\n"),
        "readme bomb": lambda f: (f / "README.md").write_bytes(b"---\n" + LAUGHS + b"---\n"),
        "metadata": lambda f: (f / "test" / "metadata.csv").write_text("file_name,x\n../../../../etc/passwd,1\n"),
        "metadata jsonl": lambda f: (f / "test" / "metadata.jsonl").write_bytes(NESTED),
        "names": lambda f: (f / "test" / "red" / "0.png").rename(f / "test" / "red" / ("x" * 251 + ".png")),
        "markup": lambda f: (f / "test" / "red").rename(f / "test" / "[red]\x1b[31mEVIL"),
        "one class": lambda f: shutil.rmtree(f / "test" / "blue"),
        "no pictures": lambda f: [shutil.rmtree(f / s) for s in ("test", "train")],
        "sparse": lambda f: os.truncate(f / "test" / "red" / "0.png", 3 * 10**9),
        "zip": lambda f: (f / "test" / "x.zip").write_bytes(b"PK\x03\x04" + b"\0" * 100),
        "dataset_info": lambda f: (f / "dataset_infos.json").write_bytes(NESTED),
    }.items()},
    **{f"table {name}": (lambda p, columns=columns: ((p / "bad").mkdir(), [
        table(f"bad/{split}.parquet", **columns())(p) for split in ("test", "train")])) for name, columns in {
        "labels": lambda: {"image": [{"bytes": picture("PNG"), "path": None}] * 2, "label": [0, 99]},
        "texts": lambda: {"image": ["/etc/passwd", "x"], "label": [0, 1]},
        "paths": lambda: {"image": [{"bytes": None, "path": "/etc/passwd"}] * 2, "label": [0, 1]},
        "urls": lambda: {"image": [{"bytes": None, "path": "http://localhost:9/x.png"}] * 2, "label": [0, 1]},
        "zero": lambda: {"image": [{"bytes": None, "path": "/dev/zero"}] * 2, "label": [0, 1]},
        "numbers": lambda: {"image": [1, 2], "label": [0, 1]}, "floats": lambda: {"image": [b"x"] * 2, "label": [0.5, 1e30]},
        "nothing": lambda: {"image": [None, None], "label": [0, 1]}, "lists": lambda: {"image": [[1]] * 2, "label": [[0]] * 2},
        "bomb": lambda: {"image": [{"bytes": _bomb(), "path": None}] * 2, "label": [0, 1]},
        "negative": lambda: {"image": [{"bytes": picture("PNG"), "path": None}] * 2, "label": [-1, 2**62]},
    }.items()},
    "table garbage": lambda p: ((p / "bad").mkdir(), (p / "bad" / "test.parquet").write_bytes(b"PAR1" + b"\xff" * 50)),
}  # fmt: skip

FOREIGN: dict[str, Make] = {
    "harmless": lambda p: samples(p / "bad"),
    **{f"field {key} {str(value)[:20]}": (lambda p, key=key, value=value: samples(p / "bad", **{key: value}))
       for key, values in {
           "doc_id": (None, [], {}, "x", 1e300), "doc_hash": (7, None, [], {}), "filter": (7, None, [], MARKUP),
           "metrics": (7, None, "acc", [7], ["nope"], [["acc"]], {"acc": 1}),
           "acc": (None, "x", float("nan"), 1e308, float("inf"), [], {}, 10**400, True),
       }.items() for value in values},
    **{f"text {name}": (lambda p, text=text: samples(p / "bad", text)) for name, text in {
        "empty": b"", "garbage": b"\0\xff\xfe{\n", "list": b"[]\n", "null": b"null\n", "number": b"7\n", "nested": NESTED,
        "deep": b'{"a":' * 900 + b"1" + b"}" * 900, "utf16": "{}".encode("utf-16"), "no fields": b"{}\n" * 4,
        "number of digits": b'{"doc_id": ' + b"9" * 9000 + b"}\n", "cut": b'{"doc_id": 0, "fil',
        "surrogate": b'{"doc_id": "\\ud800", "filter": "none", "metrics": ["acc"], "acc": 1}\n' * 4,
    }.items()},
    **{f"place {name}": (lambda p, change=change: (samples(p / "bad"), change(
        p / "bad" / "model" / "samples_sums_2025-01-01T00-00-00.0.jsonl"))) for name, change in {
        "fifo": lambda f: (f.unlink(), os.mkfifo(f)), "zero": lambda f: (f.unlink(), f.symlink_to("/dev/zero")),
        "folder": lambda f: (f.unlink(), f.mkdir()), "loop": lambda f: (f.unlink(), f.symlink_to(f)),
        "sparse": lambda f: os.truncate(f, 3 * 10**9), "up": lambda f: (f.parent / "up").symlink_to(".."),
        "passwd": lambda f: (f.unlink(), f.symlink_to("/etc/passwd")), "closed": lambda f: f.chmod(0),
        "name": lambda f: f.rename(f.parent / "samples_[red]\x1b[31mEVIL_2025-01-01T00-00-00.0.jsonl"),
        "two models": lambda f: shutil.copytree(f.parent, f.parent.parent / "other"),
    }.items()},
    **{f"details {name}": (lambda p, make=make: ((p / "bad").mkdir(), make(p))) for name, make in {
        "numbers": table("bad/details_sums_2025-01-01T00-00-00.0.parquet", metric=[1, 2]),
        "texts": table("bad/details_sums_2025-01-01T00-00-00.0.parquet", metric=["x"], doc=[7]),
        "others": table("bad/details_sums_2025-01-01T00-00-00.0.parquet", a=[1]),
        "lists": table("bad/details_sums_2025-01-01T00-00-00.0.parquet", metrics=[{"acc": [1]}], doc=[{"query": 7}]),
        "garbage": at("bad/details_sums_2025-01-01T00-00-00.0.parquet", b"PAR1" + b"\xff" * 50),
        "fifo": at("bad/details_sums_2025-01-01T00-00-00.0.parquet", lambda f: os.mkfifo(f)),
    }.items()},
    **{f"entry {name}": (lambda p, data=data: ((p / "bad").mkdir(), (p / "bad" / "entry.json").write_bytes(data), table(
        "bad/documents.parquet", task=["sums"], document=["0"], metric=["acc"], value=[1.0])(p)))
       for name, data in {
           "list": b"[]", "null": b"null", "empty": b"", "nested": NESTED, "no tasks": b"{}", "tasks 7": b'{"tasks": 7}',
           "metric 7": b'{"tasks": {"sums": 7}}', "metric list": b'{"tasks": {"sums": {"metric": []}}}',
           "harmless": b'{"tasks": {"sums": {"metric": "acc"}}}',
       }.items()},
    **{f"documents {name}": (lambda p, columns=columns: (
        (p / "bad").mkdir(), (p / "bad" / "entry.json").write_text('{"tasks": {"sums": {"metric": "acc"}}}'),
        table("bad/documents.parquet", **columns)(p))) for name, columns in {
            "others": {"a": [1]}, "numbers": {"task": [1], "document": [2], "metric": [3], "value": [4]},
            "texts": {"task": ["sums"], "document": ["0"], "metric": ["acc"], "value": ["x"]},
            "lists": {"task": [["sums"]], "document": [["0"]], "metric": [["acc"]], "value": [[1.0]]},
            "nulls": {"task": [None], "document": [None], "metric": [None], "value": [None]},
            "infinite": {"task": ["sums"] * 2, "document": ["0", "1"], "metric": ["acc"] * 2, "value": [float("inf")] * 2},
        }.items()},
    "entry fifo": lambda p: ((p / "bad").mkdir(), os.mkfifo(p / "bad" / "entry.json"), table(
        "bad/documents.parquet", task=["sums"])(p)),
    "nothing": lambda p: (p / "bad").mkdir(), "deep": lambda p: (p / "bad" / "/".join(["x"] * 800)).mkdir(parents=True),
    "closed": lambda p: (samples(p / "bad"), (p / "bad" / "model").chmod(0)),
}  # fmt: skip

PLAIN = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
RECIPES: dict[str, Make] = {
    name: at("bad.yaml", data if isinstance(data, bytes) or callable(data) else data.encode()) for name, data in {
        "harmless": PLAIN + "dtype: float32\n", "empty": "", "list": "- a\n", "number": "7\n", "utf16": PLAIN.encode("utf-16"),
        "latin": PLAIN.encode() + b"name: \xe9\n", "nested": b"models: " + b"[" * 5000, "flow": "name: " + "[" * 3000 + "]" * 3000,
        "laughs": PLAIN.encode() + b"parameters: {" + LAUGHS.replace(b"\n", b", ") + b"}\n",
        "laughs of models": LAUGHS.replace(b"[x, x]", b"[{model: a}, {model: b}]") + b"models: *w\nmerge_method: linear\n",
        "cycle": "merge_method: linear\nmodels: &a [*a]\n", "cycle of parameters": PLAIN + "parameters: &a {weight: *a}\n",
        "python": PLAIN + "name: !!python/object/apply:os.system ['touch canary']\n", "tag": PLAIN + "name: !nope x\n",
        "two": PLAIN + "---\n" + PLAIN, "nul": PLAIN.encode() + b"name: a\0b\n", "zero": lambda f: f.symlink_to("/dev/zero"),
        "fifo": lambda f: os.mkfifo(f), "folder": lambda f: f.mkdir(), "loop": lambda f: f.symlink_to(f),
        "sparse": lambda f: (f.write_bytes(b"a"), os.truncate(f, 3 * 10**9)), "passwd": lambda f: f.symlink_to("/etc/passwd"),
        "large": PLAIN.encode() + b"name: '" + b"x" * 30_000_000 + b"'\n",
        **{f"{key} {str(value)[:24]}": PLAIN + f"{key}: {json.dumps(value)}\n" for key, values in {
            "models": (7, [], [7], [{}], [{"model": 7}], [{"model": None}], {"model": "a"}, [{"model": ["a"]}], [[[]]],
                       [{"model": "a+b+c"}], [{"model": "/dev/zero"}], [{"model": "a", "parameters": []}], [{"model": "\0"}],
                       [{"model": "x" * 5000}], [{"model": {"model": {"path": "a"}}}], [{"model": "a@b@c"}], None),
            "merge_method": (7, [], None, "nope", {}), "base_model": (7, [], {}, "", "nope", "/etc/passwd", "a+"),
            "dtype": (7, [], "float3", "nope", "int8"), "out_dtype": ([], 7), "parameters": (
                7, [], {"weight": []}, {"weight": {}}, {"weight": "x"}, {"weight": float("nan")}, {"weight": 10**400},
                {"weight": [{"value": [[1]]}]}, {"weight": [{"filter": 7, "value": 1}]}, {"weight": None}, {"normalize": "x"}),
            "tokenizer": (7, [], {"source": 7}, {"source": "nope"}, {"tokens": 7}, {"tokens": {"a": {"source": 7}}},
                          {"source": "union", "pad_to_multiple_of": 10**9}, {"pad_to_multiple_of": -1}),
            "tokenizer_source": (7, [], "nope", "/dev/zero"), "chat_template": (7, [], "{% for", "nope"),
            "slices": (7, [], [7], [{}], [{"sources": 7}], [{"sources": [{"model": "a", "layer_range": [0, 10**9]}]}],
                       [{"sources": [{"model": "a", "layer_range": [-5, "x"]}]}], [{"sources": [{"model": "a"}]}]),
            "modules": (7, [], {"default": 7}, {"nope": {"slices": []}}), "mergebench": (
                7, [], {"seed": "x"}, {"seed": 2**70}, {"base": 7}, {"strict": "x"}, {"dtype": 7}, {"reference": []},
                {"base": "base", "dtype": "nope"}, {"nope": 1}), "name": (7, MARKUP), "nope": (1,),
        }.items() for value in values},
    }.items()
}  # fmt: skip
"""A field that stands twice holds its second value, as YAML's readers take it."""

PROCESSORS: dict[str, Make] = {
    name: lambda p, data=data: (shutil.copytree(p / "clip", p / "badclip"), data(p / "badclip"))
    for name, data in {
        **{f"{file} {how}": (lambda f, file=file, data=data: (f / file).write_bytes(data))
           for file in ("preprocessor_config.json", "config.json", "tokenizer.json") for how, data in {
               "empty": b"", "list": b"[]", "nested": NESTED, "object": b"{}", "utf16": "{}".encode("utf-16")}.items()},
        **{f"{key} {str(value)[:20]}": (lambda f, key=key, value=value: (f / "preprocessor_config.json").write_text(
            json.dumps({**json.loads((f / "preprocessor_config.json").read_text()), key: value})))
           for key, values in {
               "size": (7, "x", [], {"shortest_edge": 10**6}, {"shortest_edge": -1}, {"height": 0, "width": 0}, None),
               "crop_size": (10**6, "x", {"height": 10**6, "width": 10**6}, {"height": 7, "width": 7}, None),
               "image_mean": (7, "x", [], [0.5], [float("nan")] * 3, None), "image_std": ([0, 0, 0], "x", None),
               "image_processor_type": (7, "Nope", "os.system", None), "do_resize": ("x", False), "resample": (99, "x"),
               "rescale_factor": ("x", 1e308), "auto_map": (7, {"AutoImageProcessor": "evil.Processor"}),
           }.items() for value in values},
        "preprocessor_config.json fifo": lambda f: ((f / "preprocessor_config.json").unlink(), os.mkfifo(
            f / "preprocessor_config.json")),
        "preprocessor_config.json sparse": lambda f: os.truncate(f / "preprocessor_config.json", 3 * 10**9),
        "preprocessor_config.json zero": lambda f: ((f / "preprocessor_config.json").unlink(), (
            f / "preprocessor_config.json").symlink_to("/dev/zero")),
        **{f"tower {key} {str(value)[:20]}": (lambda f, key=key, value=value: (f / "config.json").write_text(json.dumps(
            (lambda c: {**c, "vision_config": {**c["vision_config"], key: value}})(json.loads(
                (f / "config.json").read_text()))))) for key, values in {
                    "image_size": (0, -1, 10**9, "x", 7), "patch_size": (0, -1, 10**9, "x"), "num_channels": (0, 1, 10**6),
                    "hidden_size": (0, 10**7, "x"), "num_hidden_layers": (0, 10**9), "projection_dim": (0, 7, "x"),
                }.items() for value in values},
        "projection_dim": lambda f: (f / "config.json").write_text(json.dumps(
            {**json.loads((f / "config.json").read_text()), "projection_dim": 7})),
        "no text tower": lambda f: (f / "config.json").write_text(json.dumps(
            {k: v for k, v in json.loads((f / "config.json").read_text()).items() if k != "text_config"})),
    }.items()
}  # fmt: skip
CLIP = {
    "evaluate": ("evaluate", "base.path=badclip", "suite=custom", "+suite.tasks.p.images={skill: shapes}",
                 "suite.tasks.p.limit=4", "suite.batch_size=4"),
    "finetune": ("finetune", "base.path=badclip", "+task.images={skill: shapes}", "training.steps=1",
                 "training.batch_size=2"),
    "merge": ("merge", "base.path=badclip", "experts=[clip]", "method=linear", "out=out"),
    "as expert": ("merge", "base.path=clip", "experts=[badclip,clip]", "method=linear", "out=out"),
}  # fmt: skip


def cases() -> Iterator[tuple[str, tuple[str, ...], Make]]:
    """A name, a command line and what makes its input, for every case."""
    for kind, (command, made) in {
        "task": (TASK, TASKS), "data": (TASK, DATA), "pictures": (PICTURES, IMAGES), "compare": (COMPARE, FOREIGN),
        "recipe": (RECIPE, RECIPES),
    }.items():  # fmt: skip
        yield from ((f"{kind} {name}", command, make) for name, make in made.items())
    yield from ((f"training pictures {name}", TOWER, make) for name, make in IMAGES.items())
    for name, (ending, make) in ROWS.items():
        yield f"rows {name}", (*TRAIN, f"task.path=bad.{ending}"), make
    for name, make in PROCESSORS.items():
        yield from ((f"clip {name} · {doing}", command, make) for doing, command in CLIP.items())
