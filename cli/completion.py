"""Completion of overrides, in bash too, which splits them at their equals signs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

CONF = Path(__file__).resolve().parents[1] / "conf"
ADDED = ("experiment", "scale")
"""Groups that are added with a plus sign, because no default stands for them."""
BREAKS = "=@:"
"""Characters at which bash ends a word."""


def complete_override(incomplete: str) -> list[str]:
    """Completions of a half-typed override, such as ``meth`` → ``method=`` and ``method=ti`` → ``method=ties``."""
    name, equals, start = incomplete.lstrip("+").partition("=")
    name = name.partition("@")[0]
    if not equals:
        groups = sorted(p.name for p in CONF.iterdir() if p.is_dir() and not p.name.startswith("_"))
        return [("+" if g in ADDED else "") + g + "=" for g in groups if g.startswith(name)]
    folder, prefix = CONF / name, incomplete[: len(incomplete) - len(start)]
    choices = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
    return [prefix + choice for choice in choices if choice.startswith(start)]


def answer_bash(app: Callable[[], object]) -> None:
    """Print the application's completions of whole words, without the part that bash keeps by itself.

    bash hands ``method=ti`` over as the words ``method``, ``=`` and ``ti``, and replaces only the last by an answer.
    """
    words, place = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
    whole, kept = words[:1], ""
    for last, word in pairwise(words[: place + 1]):
        if _breaks(word) or _breaks(last):
            kept = whole[-1] + word * _breaks(word)
            whole[-1] += word
        else:
            kept = ""
            whole.append(word)
    os.environ |= {"COMP_WORDS": "\n".join(whole), "COMP_CWORD": str(len(whole) - 1)}
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            app()
    finally:
        sys.stdout.write("".join(line.removeprefix(kept) for line in printed.getvalue().splitlines(keepends=True)))


def _breaks(word: str) -> bool:
    return bool(word) and not word.strip(BREAKS)
