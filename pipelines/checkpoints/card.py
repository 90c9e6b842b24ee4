"""The model card of an expert, and the flag of one that was trained as a linear model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from conf.errors import markdown_text, redacted
from conf.schema import Optimizer, Task, Training
from pipelines.checkpoints.untrusted import check_types, read_json

FLAG = "tangent.json"
"""File beside the weights of an expert, or a merge of such, that was trained linearised: at which base."""
PACKAGES = ("mergebench", "torch", "transformers", "accelerate", "peft", "tokenizers", "datasets")
LABELS = {
    "plain": "plain fine-tuning",
    "mergopt": "MergOPT: gradients at θ + (Kα − 1) z",
    "released": "MergOPT as released: plain fine-tuning at a constant learning rate, no perturbation",
    "sam": "SAM: gradients at θ + ρ g / ‖g‖",
    "asam": "ASAM: gradients at θ + ρ T² g / ‖T g‖",
    "tangent": "training in the tangent space at the base",
}


def write_card(
    out: Path, name: str, base: str, task: Task, method: dict[str, Any], optimizer: Optimizer, training: Training,
    seed: int, summary: dict[str, Any],
) -> None:  # fmt: skip
    """Write ``README.md``: what the expert was trained on, how, with which seed and versions."""
    label = LABELS["released" if method.get("mode") == "released" else method["method"]]
    tables = [
        ("Method", {k: v for k, v in method.items() if k != "method"}),
        ("Optimizer", asdict(optimizer)),
        ("Training", {k: v for k, v in asdict(training).items() if v is not None}),
        ("Result", summary),
        ("Versions", _versions()),
    ]
    kind = "text-generation" if task.images is None else "zero-shot-image-classification"
    lines = [
        "---", "library_name: transformers", f"pipeline_tag: {kind}",
        "tags: [mergebench, model-merging, expert]", "---", "", f"# {markdown_text(name)}", "",
        f"An expert for merging: {markdown_text(base)} fine-tuned on {markdown_text(_data(task))}.", "",
        f"- task: {markdown_text(task.name)}", f"- base: {markdown_text(base)}",
        f"- method: {method['method']} ({label})", f"- seed: {seed}",
    ]  # fmt: skip
    for title, values in tables:
        if values:
            lines += ["", f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    (out / "README.md").write_text(redacted("\n".join(lines) + "\n"), encoding="utf-8")


def write_flag(out: Path, base: Path) -> None:
    """Say beside the weights where they were linearised."""
    (out / FLAG).write_text(json.dumps({"linearised_at": str(base.resolve())}, indent=1) + "\n")


def linearised_at(folder: str | Path) -> str | None:
    """The folder of the base at which the model in a folder was linearised as it was trained; None for others."""
    flag = read_json(Path(folder) / FLAG)
    check_types(flag, {"linearised_at": str}, Path(folder) / FLAG)
    return flag.get("linearised_at")


def _cell(value: Any) -> str:
    return markdown_text(json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value)


def _data(task: Task) -> str:
    if task.skill:
        return f"the generated skill {task.skill}"
    data: Any = task.images or task
    if data.skill:
        return f"the generated pictures {data.skill}"
    parts: Sequence[str | None] = (Path(data.path or "").name if data.path else None, data.subset, task.split)
    return " / ".join(p for p in parts if p)


def base_name(base: Path) -> str:
    """A hub id where the folder is a snapshot of the hub's cache, else the folder's name."""
    for part in base.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return base.name


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
