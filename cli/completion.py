"""Shell completion of overrides: groups, then their choices, read from the folder of configurations alone."""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).resolve().parents[1] / "conf"
ADDED = ("experiment", "scale")
"""Groups that are added with a plus sign, because no default stands for them."""


def complete_override(incomplete: str) -> list[str]:
    """Completions of a half-typed override, such as ``meth`` → ``method=`` and ``method=ti`` → ``method=ties``."""
    name, equals, start = incomplete.lstrip("+").partition("=")
    name = name.partition("@")[0]
    if not equals:
        groups = sorted(p.name for p in CONF.iterdir() if p.is_dir() and not p.name.startswith("_"))
        return [("+" if g in ADDED else "") + g + "=" for g in groups if g.startswith(name)]
    folder, prefix = CONF / name, incomplete[: len(incomplete) - len(start)]
    choices = (
        sorted(f.relative_to(folder).with_suffix("").as_posix() for f in folder.rglob("*.yaml"))
        if folder.is_dir()
        else []
    )
    return [prefix + choice for choice in choices if choice.startswith(start)]
