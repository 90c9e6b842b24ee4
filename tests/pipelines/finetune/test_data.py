"""Data of every kind, and what is said about data that cannot be used."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import UserError
from conf.schema import Task
from pipelines.finetune import task_fingerprint
from pipelines.finetune.data import read_rows

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]


def write(folder, kind, rows=ROWS, name="data"):
    file = folder / f"{name}.{kind}"
    if kind == "jsonl":
        file.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    elif kind == "json":
        file.write_text(json.dumps(rows))
    elif kind == "csv":
        with file.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def task(path, **more):
    return Task(name="t", path=str(path), **more)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file(tmp_path, kind):
    assert read_rows(task(write(tmp_path, kind)), 0) == ROWS


def test_numbers_in_csv_stay_text(tmp_path):
    rows = [{"prompt": "1+1", "completion": "2"}, {"prompt": "NA", "completion": "03"}]
    assert read_rows(task(write(tmp_path, "csv", rows)), 0) == rows


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_chat_columns(tmp_path, kind):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file = write(tmp_path, kind, [{"chat": chat}])
    assert read_rows(task(file, messages="chat"), 0) == [{"messages": chat}]


def test_a_folder_holds_splits(tmp_path):
    write(tmp_path, "jsonl", ROWS[:2], "train")
    write(tmp_path, "jsonl", ROWS[2:], "test")
    assert read_rows(task(tmp_path), 0) == ROWS[:2]
    assert read_rows(task(tmp_path, split="test"), 0) == ROWS[2:]
    with pytest.raises(UserError, match=r"no file of split 'tests'.*did you mean test"):
        read_rows(task(tmp_path, split="tests"), 0)


def test_a_mirror_stands_for_the_hub(tmp_path):
    (tmp_path / "org/name").mkdir(parents=True)
    write(tmp_path / "org/name", "json", name="train")
    assert read_rows(task("org/name"), 0, datasets=str(tmp_path)) == ROWS


def test_separator_and_columns(tmp_path):
    file = write(tmp_path, "jsonl", [{"q": "a", "a": "b", "more": 1}])
    assert read_rows(task(file, prompt="q", completion="a", separator="\n"), 0) == [
        {"prompt": "a\n", "completion": "b"}
    ]


def test_limit_takes_a_seeded_choice(tmp_path):
    file = write(tmp_path, "jsonl")
    first, again, other = (read_rows(task(file, limit=3), seed) for seed in (0, 0, 3))
    assert first == again != other
    assert len(first) == 3
    assert read_rows(task(file, limit=99), 0) == ROWS


def test_skills():
    rows = read_rows(Task(name="t", skill="odd", limit=7), 0)
    assert len(rows) == 7
    assert rows[0].keys() == {"prompt", "completion"}


def test_fingerprint_follows_the_content(tmp_path):
    file = write(tmp_path, "jsonl")
    before = task_fingerprint(task(file))
    moved = write(tmp_path, "jsonl", name="elsewhere")
    assert task_fingerprint(task(moved)) == before
    write(tmp_path, "jsonl", ROWS[:3])
    assert task_fingerprint(task(file)) != before
    assert task_fingerprint(Task(name="t", skill="odd")).startswith("skill:odd:")
    commit = "0" * 40
    assert task_fingerprint(task("org/name", revision=commit)) == f"hub:org/name::{commit}"


BAD = {
    "empty": ("", "no training examples"),
    "no json": ('{"prompt": "a", "completion": "b"}\n{"prompt": ', r"line 2 of bad.jsonl is no JSON \(.*:2\)"),
    "no object": ("[1, 2]\n", "line 1 of bad.jsonl is no JSON object"),
    "no column": (
        '{"promt": "a", "completion": "b"}\n',
        r"no column 'prompt' \(.*:1\): set task.prompt: did you mean promt",
    ),
    "no text": ('{"prompt": 3, "completion": "b"}\n', "the prompt is no text but 3"),
    "empty completion": ('{"prompt": "a", "completion": " "}\n', "the completion is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines(tmp_path, case):
    text, message = BAD[case]
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_rows(task(file), 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "no training examples"),
        ("a.csv", b"prompt,completion\nonly one\n", "the completion is no text but None"),
        ("a.json", b"{", "a.json is no JSON"),
        ("a.json", b'{"prompt": "a"}', "no list of objects"),
        ("a.jsonl", b'{"prompt": "\xff"}', "not UTF-8"),
        ("a.parquet", b"PAR?", "cannot read a.parquet"),
        ("a.txt", b"hello", "give a file of one of these kinds: .jsonl"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_rows(task(file), 0)


@pytest.mark.parametrize("chat", [[], "text", [{"role": "user", "content": "a"}], [{"who": "user"}], None])
def test_bad_chats(tmp_path, chat):
    file = write(tmp_path, "jsonl", [{"chat": chat}])
    with pytest.raises(UserError, match="no chat that ends with the assistant"):
        read_rows(task(file, messages="chat"), 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Task(name="t"), "names no data"),
        (Task(name="t", skill="ad"), "unknown skill 'ad'.*did you mean add"),
        (Task(name="t", path="missing.jsonl"), "no such file: missing.jsonl"),
        (Task(name="t", path="org/missing"), "cannot load the data set 'org/missing'"),
    ],
)
def test_what_does_not_exist(wrong, message, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for ask in (lambda: read_rows(wrong, 0, online=False), lambda: task_fingerprint(wrong, online=False)):
        with pytest.raises(UserError, match=message):
            ask()


def test_hub_rows_come_through_datasets(monkeypatch):
    """The call that is made of the datasets library, and how its rows and failures are taken."""
    import datasets

    asked = []

    def load_dataset(path, subset, split, revision):
        asked.append((path, subset, split, revision))
        if split != "train":
            raise ValueError("Unknown split \"nope\". Should be one of ['train'].")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = task("org/name", subset="main", revision="a" * 40)
    assert read_rows(hub, 0, online=False) == ROWS
    assert asked == [("org/name", "main", "train", "a" * 40)]
    hub.split = "nope"
    with pytest.raises(UserError, match="Unknown split"):
        read_rows(hub, 0, online=False)
