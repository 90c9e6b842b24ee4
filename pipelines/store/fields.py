"""What an entry, or the record of a study, holds by kind: the types of the fields that are relied on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

Shape = Any
"""A type; a tuple: one of them; [shape]: a list; {name: shape}: a table (``name?``: may be missing); {...: shape}: a
table of any names; a function: what it takes."""

LARGEST = 1 << 63
END_OF_TIME = 1e11
"""Seconds since 1970 that a date says at most (about the year 5000)."""


def _date(value: Any) -> bool:
    return _number(value) is None and 0 <= value < END_OF_TIME


def _word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w+", value) is not None


def _files(value: Any) -> bool:
    """Paths below the entry with size and hash."""
    if not isinstance(value, dict):
        return False
    inside = all(not PurePath(name).is_absolute() and ".." not in PurePath(name).parts for name in value)
    return inside and all(isinstance(of, list) and [type(part) for part in of] == [int, str] for of in value.values())


SOURCE = {"path": str, "fingerprint": str}
RECIPE = {
    "base": str, "experts": [str], "method": str, "parameters": dict, "seed?": int, "dtype?": str, "vocab?": str,
    "strict?": bool,
}  # fmt: skip
TASK = {"metric": str, "value": (float, None), "stderr": (float, None), "n": (int, None), "error": (str, None)}
ASKED = {"num_fewshot?": (int, None), "limit": (float, None), "gen_kwargs?": dict, "documents?": list}
SETTINGS = {
    "tasks": {...: ASKED}, "chat_template?": object, "max_length?": object, "dtype": str, "share_prefix?": object,
    "seed": int, "attack?": str, "options?": dict,
}  # fmt: skip
TRAINING = {
    "batch_size": int, "accumulation": int, "lora": {"rank": int}, "steps": (int, None), "epochs": (float, None),
}  # fmt: skip
MERGE = {"model": dict, "names": [str], "base": SOURCE, "experts": [SOURCE], "statistics?": [SOURCE]}
EVERY = {"key": str, "kind": str, "made": _date, "files?": _files, "incomplete?": bool}
ENTRIES: Mapping[str, dict[Any, Shape]] = {
    "results": {
        **MERGE, "trial": str, "recipe": (RECIPE, None), "suite": str, "settings": SETTINGS, "tasks": {...: TASK},
        "training?": [({"how": str, "seed": object}, None)], "seconds?": {...: float}, "weights?": (str, None),
        "device?": (str, None), "update_norm?": (float, None), "versions?": {"packages?": {...: object}},
        "linearised?": bool,
    },
    "bases": {"name": str, "fingerprint?": str, "spec?": dict},
    "experts": {
        "name": str, "base": SOURCE, "finetuning": {"method?": _word},
        "optimizer": {"name": str, "lr": float}, "training": TRAINING, "epochs?": (float, None), "seed": int,
        "fingerprint?": str, "summary?": {"steps?": int, **{f"{name}?": float for name in (
            "seconds", "tokens", "memory", "device_memory")}},
    },
    "merges": {**MERGE, "recipe": RECIPE, "weights": str, "name": str},
    "statistics": {"statistic": str, "name": str, "task": str, "expert": SOURCE, "sha256": str},
}  # fmt: skip

RECORD = {"name": str, "kind": str, "made": _date, "keys": {...: [str]}, "pools?": {...: [str]}}
FIELDS = {"studies": RECORD, **{kind: {**EVERY, **fields} for kind, fields in ENTRIES.items()}}


def misfit(kind: str, about: Mapping[str, Any]) -> str:
    """The dotted name of the first field that is not what entries of a kind hold; empty for none."""
    bad = _check_of(kind)(about)
    return "" if bad is None else bad.lstrip(".") or "it"


Check = Callable[[Any], str | None]
"""None for a value that fits; else the path below it of what does not."""


@cache
def _check_of(kind: str) -> Check:
    return _compiled(FIELDS[kind])


def _compiled(shape: Shape) -> Check:
    """The check of a shape, put together once: every read of an entry runs it."""
    if isinstance(shape, tuple):
        return _one_of([_compiled(one) for one in shape])
    if isinstance(shape, list):
        return _all_of(_compiled(shape[0]))
    if isinstance(shape, dict):
        return _all_of(_compiled(shape[...]), table=True) if ... in shape else _table(shape)
    if shape is None:
        return lambda value: None if value is None else ""
    if shape in (int, float):
        return _whole if shape is int else _number
    if isinstance(shape, type):
        return lambda value: None if isinstance(value, shape) else ""
    return lambda value: None if shape(value) else ""


def _one_of(checks: list[Check]) -> Check:
    def check(value: Any) -> str | None:
        found = ""
        for one in checks:
            if (bad := one(value)) is None:
                return None
            found = max(found, bad, key=len)
        return found

    return check


def _all_of(check_one: Check, table: bool = False) -> Check:
    def check(value: Any) -> str | None:
        if not isinstance(value, dict if table else list):
            return ""
        for name in value:
            if (bad := check_one(value[name] if table else name)) is not None:
                return f".{name}{bad}" if table else bad
        return None

    return check


def _table(shape: Mapping[str, Shape]) -> Check:
    fields = [(key.removesuffix("?"), not key.endswith("?"), _compiled(part)) for key, part in shape.items()]

    def check(value: Any) -> str | None:
        if not isinstance(value, dict):
            return ""
        for name, needed, check_one in fields:
            bad = check_one(value[name]) if name in value else "" if needed else None
            if bad is not None:
                return f".{name}{bad}"
        return None

    return check


def _whole(value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST else ""


def _number(value: Any) -> str | None:
    """A finite number; a whole one is of 64 bits at most."""
    return None if isinstance(value, float) and math.isfinite(value) else _whole(value)
