"""What an expert is trained on: rows of a built-in skill, of files, or of a hub data set."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Task
from pipelines.checkpoints.hashes import read_hash
from pipelines.checkpoints.rows import read_lines, read_parquet, room
from pipelines.checkpoints.untrusted import check_file
from pipelines.images.data import Pictures, find_local, fingerprint, open_split, problem
from pipelines.tiny import skills

Row = dict[str, Any]

WHOLE = 256 << 20
"""Bytes of a file at most that is parsed as one; .jsonl is read line by line."""


def task_fingerprint(task: Task, datasets: str | None = None, online: bool = True) -> str:
    """A short text that changes when the data do: skill version, hash of the files, or hub id and commit.

    Raises:
        UserError: No such skill, file or data set, or a field that is not used.
    """
    _check_used(task)
    if task.images is not None:
        return _pictures_fingerprint(task, datasets, online)
    if task.skill:
        return f"skill:{_skill(task)}:{skills.VERSION}"
    files = _find_files(task, datasets)
    if files is None:
        return f"hub:{task.path}:{task.subset or ''}:{_hub_commit(task, online)}"
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(read_hash(file)))
    return f"files:{digest.hexdigest()[:32]}"


def read_rows(task: Task, seed: int, datasets: str | None = None, online: bool = True) -> list[Row]:
    """The rows that the task names, as dictionaries: prompt and completion, or messages.

    Raises:
        UserError: Missing or malformed data, missing columns, or no rows.
    """
    if task.images is not None:
        raise UserError(f"task {task.name} is of pictures", where="task.images", do="give a task of text")
    if task.skill:
        items: Any = skills.training_rows(_skill(task), task.split, task.limit, seed)  # type: ignore[arg-type]
        return [dict(row) for row in items]
    files = _find_files(task, datasets)
    if files is None:
        found = ((f"{task.path} row {i}", row) for i, row in enumerate(_hub_rows(task, online)))
    else:
        found = ((f"{file}:{i}", row) for file in files for i, row in _read_file(file))
    rows = [_columns(row, task, where) for where, row in found]
    if not rows:
        raise UserError(f"no training examples for {task.name}", where=str(task.path), do="give a file with rows in it")
    if task.limit is not None and task.limit < len(rows):
        random.Random(seed).shuffle(rows)
        rows = rows[: task.limit]
    return rows


def read_pictures(task: Task, datasets: str | None = None, online: bool = True) -> Pictures:
    """The labelled pictures that the task names.

    Raises:
        UserError: Missing or malformed data, or an unknown column.
    """
    assert task.images is not None
    return open_split(task.images, task.split, datasets, online)


def _pictures_fingerprint(task: Task, datasets: str | None, online: bool) -> str:
    images = task.images
    assert images is not None
    if text := problem(images):
        raise UserError(text, where=f"task {task.name}")
    hub = images.skill is None and find_local(images, datasets) is None
    commit = _hub_commit(replace(task, path=images.path, revision=images.revision), online) if hub else None
    return f"pictures:{json.dumps(fingerprint(images, task.split, datasets, commit), sort_keys=True)}"


def _check_used(task: Task) -> None:
    """UserError for a field that another one leaves without a meaning."""
    columns = ("prompt", "completion", "separator")
    text = ("skill", "path", "subset", "revision", "messages", "chat_template", *columns)
    for kind, idle in (
        ("images", text),
        ("skill", ("path", "subset", "revision", "messages", *columns)),
        ("messages", columns),
    ):
        for name in idle if getattr(task, kind) else ():
            if getattr(task, name) != getattr(Task, name):
                beside = kind if kind == "images" else f"{kind}={getattr(task, kind)}"
                what = f"task.{name}={getattr(task, name)} is not used beside task.{beside}"
                raise UserError(what, where=f"task.{name}", do="leave one of them out")


def _skill(task: Task) -> str:
    if task.skill not in skills.SKILLS:
        raise UserError(f"unknown skill {task.skill!r}", where="task.skill", do=nearest(str(task.skill), skills.SKILLS))
    return str(task.skill)


def _find_files(task: Task, datasets: str | None) -> list[Path] | None:
    """The local files of a task, or None where its path is a hub id that no mirror holds."""
    if not task.path:
        what = f"task {task.name} names no data" if task.name else "no task is named"
        do = "give task.path=… (file, folder or hub id), or a built-in skill: task=skills/add"
        raise UserError(what, where="task.path", do=do)
    places = [Path(task.path).expanduser()]
    if datasets:
        mirror = Path(datasets).expanduser() / task.path
        places += [mirror / (task.subset or ""), mirror]
    for place in places:
        if place.exists() and place == places[0] and (task.subset or task.revision):
            name = "subset" if task.subset else "revision"
            raise UserError(f"local files have no {name}", where=f"task.{name}", do="leave it out")
        if place.exists() and not place.is_dir():
            if place.suffix not in READERS:
                do = f"give a file of one of these kinds: {', '.join(READERS)}"
                raise UserError(f"cannot read {place.name}", where=str(place), do=do)
            if task.split != Task.split:
                do = f"leave it out, or give a folder that holds {task.split}{place.suffix}"
                raise UserError(f"the one file {place.name} has no splits", where=f"task.split={task.split}", do=do)
            return _checked([place])
        if place.is_dir():
            return _checked(_split_files(place, task.split))
    if Path(task.path).suffix in READERS or task.path.startswith((".", "/", "~")):
        raise UserError(f"no such file: {task.path}", where=f"task {task.name}", do="check task.path")
    return None


def _split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split: ``train.jsonl``, or ``train-00000.parquet`` and so on."""
    files = sorted(f for f in folder.iterdir() if f.suffix in READERS)
    chosen = [f for f in files if f.stem.split("-")[0] == split]
    if not chosen:
        do = nearest(split, [f.stem.split("-")[0] for f in files])
        raise UserError(f"no file of split {split!r} in {folder}", where="task.split", do=do)
    return chosen


def _read_file(file: Path) -> Iterator[tuple[int, Row]]:
    """Rows with the line or row number that an error would name."""
    try:
        yield from READERS[file.suffix](file)
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name} is not UTF-8", where=f"byte {error.start}", do="save it as UTF-8") from None
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {file.name}: {reason}", where=str(file), do="check the file") from None


def _checked(files: list[Path]) -> list[Path]:
    for file in files:
        try:
            check_file(file, WHOLE if file.suffix == ".json" else room(), links=True)
        except (OSError, ValueError) as error:
            what = f"cannot read {file.name}: {getattr(error, 'strerror', None) or error}"
            raise UserError(what, where=str(file), do="name another file, or split it") from None
    return files


def _read_jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    for i, line in read_lines(file):
        row = _parse(line, f"line {i} of {file.name} is no JSON", f"{file}:{i}")
        if not isinstance(row, dict):
            raise UserError(f"line {i} of {file.name} is no JSON object", where=f"{file}:{i}", do="write {…} a line")
        yield i, row


def _read_json(file: Path) -> Iterator[tuple[int, Row]]:
    text = file.read_text(encoding="utf-8")
    if not text.strip():
        return
    rows = _parse(text, f"{file.name} is no JSON", None)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        do = "write [{…}, {…}], or one {…} a line as .jsonl"
        raise UserError(f"{file.name} is no list of objects", where=str(file), do=do)
    yield from enumerate(rows, 1)


def _parse(text: str, what: str, where: str | None) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return value
    except json.JSONDecodeError as error:
        raise UserError(what, where=where or f"line {error.lineno}", do=f"mend it: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(what, where=where or "", do=f"mend it: {error}") from None


def _read_csv(file: Path) -> Iterator[tuple[int, Row]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            yield reader.line_num, {str(k): v for k, v in row.items()}


def _read_parquet(file: Path) -> Iterator[tuple[int, Row]]:
    yield from enumerate(read_parquet(file).to_pylist(), 1)


READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def _columns(row: Row, task: Task, where: str) -> Row:
    """The columns that the task names, checked."""
    wanted = {"messages": task.messages} if task.messages else {"prompt": task.prompt, "completion": task.completion}
    for name, column in wanted.items():
        if column not in row:
            do = f"set task.{name}: {nearest(str(column), row)}"
            do = "for rows of chats, task.messages=messages" if "messages" in row else do
            raise UserError(f"no column {column!r}", where=where, do=do)
    out: Row = {name: row[str(column)] for name, column in wanted.items()}
    if task.messages:
        return {"messages": _messages(out["messages"], where)}
    for name, value in out.items():
        if not isinstance(value, str):
            raise UserError(f"the {name} is no text but {value!r}", where=where, do="give text in every row")
    out["prompt"] += task.separator
    if not out["completion"].strip():
        raise UserError("the completion is empty", where=where, do="leave the row out, or fill it in")
    return out


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    try:
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in value]
    except (TypeError, KeyError):
        messages = []
    if not messages or messages[-1]["role"] != "assistant":
        do = "give a list of {role, content} whose last role is assistant"
        raise UserError("the messages are no chat that ends with the assistant", where=where, do=do)
    return messages


def _hub_commit(task: Task, online: bool) -> str:
    """The commit that the data set's revision stands for: asked of the hub, else read from its local cache."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    revision = task.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    path = str(task.path)
    if online:
        try:
            return str(HfApi().dataset_info(path, revision=revision, timeout=20).sha)
        except (HfHubHTTPError, HFValidationError) as error:
            raise _unknown(task, str(error)) from None
        except Exception:  # no network: the cache may hold it
            pass
    cached = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "refs" / revision
    if cached.is_file():
        return cached.read_text().strip()
    raise _unknown(task, "the hub cannot be reached, and its cache does not hold it")


def _hub_rows(task: Task, online: bool) -> Iterable[Row]:
    import datasets

    datasets.disable_progress_bars()
    commit = _hub_commit(task, online)
    try:
        return datasets.load_dataset(task.path, task.subset, split=task.split, revision=commit)
    except Exception as error:
        raise _unknown(task, str(error)) from None


def _unknown(task: Task, reason: str) -> UserError:
    return UserError(
        f"cannot load the data set {task.path!r} of task {task.name}",
        where=next((line.strip() for line in reason.splitlines() if line.strip()), ""),
        do="check task.path, task.subset and task.split, or put its files into that folder below datasets=FOLDER",
    )
