"""What can be said of a suite of pictures before any model is loaded: what fixes its numbers, and what is wrong."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from conf.errors import UserError
from conf.schema import Suite, SuiteTask
from pipelines.images.data import EXTRA, find_local, fingerprint, problem
from pipelines.tiny.skills import SPLITS

VERSION = 1
"""Raised when the same suite of pictures would give other numbers."""

TEXT_ALONE = (
    "attack", "chat_template", "system_instruction", "enable_thinking", "gen_kwargs", "repeats", "predict_only",
    "max_length", "include_path", "quantization", "trust_remote_code",
)  # fmt: skip
"""Settings of suites that mean nothing for pictures."""
TEXT_TASK = ("task", "skill", "filter", "num_fewshot", "gen_kwargs", "repeats")


def of_images(suite: Suite) -> bool:
    """Whether a suite has tasks of pictures (then all of them have to be)."""
    return any(spec.images is not None for spec in suite.tasks.values())


def split_of(spec: SuiteTask, suite: Suite) -> str:
    """The split that a task of pictures is scored on, before its data set's own name for it."""
    return spec.split or suite.split or "test"


def image_fingerprint(suite: Suite, datasets: str | None = None) -> dict[str, Any]:
    """What fixes the numbers of a suite of pictures, as plain JSON: part of every trial's key.

    Data by content, columns, classes, templates, split and limit; transformers and Pillow, which read the pictures;
    precision, batch size and seed. The base, which makes the heads, and its image processor go into a trial's own part.
    """
    tasks = {key: _task(spec, suite, datasets) for key, spec in suite.tasks.items()}
    return {
        "images": VERSION,
        "transformers": importlib.metadata.version("transformers").split(".")[0],
        "pillow": _pillow(),
        "tasks": tasks,
        "batch_size": suite.batch_size,
        "dtype": suite.dtype,
        "attn_implementation": suite.attn_implementation,
        "seed": suite.seed,
    }


def _pillow() -> str:
    try:
        return importlib.metadata.version("pillow").split(".")[0]
    except importlib.metadata.PackageNotFoundError:
        raise UserError("pictures need the package pillow", where="suite", do=EXTRA) from None


def _task(spec: SuiteTask, suite: Suite, datasets: str | None) -> dict[str, Any]:
    assert spec.images is not None
    limit = spec.limit if spec.limit is not None else suite.limit
    return {
        "metric": spec.metric,
        "limit": limit,
        **({"sample": suite.sample} if limit is not None and suite.sample != Suite.sample else {}),
        **({"documents": sorted(set(spec.documents))} if spec.documents is not None else {}),
        **fingerprint(spec.images, split_of(spec, suite), datasets),
    }


def check_images(suite: Suite, datasets: str | None) -> list[str]:
    """Problems of a suite of pictures, one line each; the settings that it shares with others are checked elsewhere."""
    problems = [
        f"{name}={getattr(suite, name)} is for text, the suite is of pictures; leave it out"
        for name in TEXT_ALONE
        if getattr(suite, name) != getattr(Suite(), name)
    ]
    for key, spec in suite.tasks.items():
        problems += (f"task {key}: {text}" for text in _check_task(spec, suite, datasets))
    return problems


def _check_task(spec: SuiteTask, suite: Suite, datasets: str | None) -> list[str]:
    if spec.images is None:
        return ["is of text, other tasks of the suite are of pictures; give each kind a suite of its own"]
    found = [
        f"{name} is for text; leave it out" for name in TEXT_TASK if getattr(spec, name) != getattr(SuiteTask(), name)
    ]
    if spec.metric != "acc":
        found.append(f"pictures have no metric {spec.metric!r}; give acc")
    if text := problem(spec.images):
        return [*found, text]
    split = split_of(spec, suite)
    if spec.images.skill is not None and split not in SPLITS:
        return [*found, f"a built-in task has no split {split!r}; valid: {', '.join(SPLITS)}"]
    try:
        if spec.images.skill is None:
            find_local(spec.images, datasets)
    except UserError as error:
        found.append(str(error))
    return found
