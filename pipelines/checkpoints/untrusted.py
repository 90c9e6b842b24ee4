"""The door for files that others made: size, depth, text and kind are checked here before anything relies on them."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from conf.errors import UserError

MOST = 64 << 20
"""Bytes of a file beside the weights at most (the largest tokenizers in use take about 35 MB)."""
DEPTH = 64
"""Lists and tables within one another at most."""
AGAIN = "fetch it again"

READ = (
    "*config.json", "*.index.json", "*.jinja", "tokenizer*", "vocab*", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template*", "*.model", "*.tiktoken", "*.py",
)  # fmt: skip
"""Files of a checkpoint's folder that are read or copied, beside the weights."""


def read_json(file: Path, kind: type = dict, do: str = AGAIN) -> Any:
    """What a JSON file holds; an empty ``kind`` where there is no file.

    Raises ``UserError`` for a file that is too large, no UTF-8 or no JSON, and for another type at its top.
    """
    try:
        check_file(file)
        return parse_json(file.read_bytes(), kind)
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{file.name} cannot be read: {reason}", where=str(file.parent), do=do) from error


def parse_json(data: bytes, kind: type = dict, strict: bool = False) -> Any:
    """What JSON text holds; ``strict``: with no name twice and no NaN or Infinity.

    Raises ``ValueError``, in words, for anything that is not a sound value of ``kind``.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _without_doubles, "parse_constant": _no_number} if strict else {}
    try:
        value = json.loads(data.decode("utf-8"), **hooks)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except UnicodeError:
        raise ValueError("it is no UTF-8 text") from None
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no valid JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"it holds no {'table of fields' if kind is dict else kind.__name__}")
    level: list[Any] = [value]
    for _ in range(DEPTH):
        below = (part for node in level for part in (node.values() if isinstance(node, dict) else node))
        level = [part for part in below if isinstance(part, (dict, list))]
        if not level:
            return value
    raise ValueError(f"it is nested more than {DEPTH} deep")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("it holds a name twice")
    return table


def _no_number(text: str) -> None:
    raise ValueError(f"it holds {text}")


def check_folder(folder: Path) -> None:
    """UserError for the first file that would be read, or copied into a merge, and is none or too large."""
    try:
        more = folder / "additional_chat_templates"
        for file in (*folder.iterdir(), *(more.iterdir() if more.is_dir() else ())):
            if not file.is_dir() and any(fnmatch(file.name, pattern) for pattern in READ):
                check_file(file)
    except OSError as error:
        raise UserError("the folder cannot be read", where=str(folder), do=error.strerror or "") from None
    except ValueError as error:
        raise UserError(f"{file.name} cannot be read: {error}", where=str(folder), do=AGAIN) from None


def check_file(file: Path, most: int = MOST, links: bool = False) -> None:
    """ValueError for what is no ordinary file, is too large, or (but for ``links``) lets another file's content out.

    A link leads to a file of its own name, to another one in its folder, or into the hub's cache. Weights may lie
    anywhere (data managers link them): what is no safetensors file is refused, and tensors are all that is read of one.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    if found.st_size > most:
        raise ValueError(f"it is {found.st_size / 1e6:.0f} MB large, at most {most / 1e6:.0f} are read")
    if not links and file.is_symlink() and file.suffix != ".safetensors":
        target = file.resolve()
        if target.name != file.name and target.parent not in (file.parent.resolve(), *_blobs(file)):
            raise ValueError(f"it is a link to {target}")


def _blobs(file: Path) -> list[Path]:
    """The folder in which the hub's cache keeps the files of a snapshot."""
    parents = file.parent.resolve().parents
    return [parents[1] / "blobs"] if len(parents) > 1 and parents[0].name == "snapshots" else []


def check_types(fields: dict[str, Any], types: dict[str, type | tuple[type, ...]], file: Path) -> None:
    """UserError for the first field that is there, is not null and has another type."""
    for name, kind in types.items():
        value = fields.get(name)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and not _takes_bool(kind))
        if value is not None and (wrong or (isinstance(value, float) and not math.isfinite(value))):
            what = f"{name} is {str(value)[:40]!r}, which is no {_words(kind)}"
            raise UserError(what, where=str(file), do="mend the file, or fetch it again")


def _takes_bool(kind: type | tuple[type, ...]) -> bool:
    return kind is bool or (isinstance(kind, tuple) and bool in kind)


def _words(kind: type | tuple[type, ...]) -> str:
    names = {dict: "table", list: "list", str: "text", bool: "true or false", int: "whole number", float: "number"}
    kinds: Collection[type] = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(dict.fromkeys(names[k] for k in kinds))
