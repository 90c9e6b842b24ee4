"""From the stream to disk: an ordinary transformers checkpoint, there whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from conf.errors import UserError
from pipelines.merge.card import model_card
from pipelines.merge.companions import write_companions
from pipelines.merge.shards import ShardWriter, plan_shards
from pipelines.progress import SILENT, Progress

if TYPE_CHECKING:
    from pipelines.merge.stream import Merge

RECIPE = "mergebench_recipe.json"
"""The file by which a folder is known as a merge made here."""
SLACK = 64 << 20
"""Bytes of room asked for beside the weights."""


def write_merge(
    merge: Merge, out: Path, progress: Progress = SILENT, *, shard_bytes: int = 5 * 10**9, device: str = "cpu"
) -> Path:
    """Write a merge as a model folder: weights in shards, index, configs, tokenizer, card and recipe.

    The folder is written beside its place and renamed. Raises ``UserError`` for a folder that holds something else,
    too little room on the disk, and whatever ``Merge.check`` finds.
    """
    out = Path(out).expanduser()
    merge.check()
    _check_place(out)
    size = sum(info.size for info in merge.layout.outputs.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_room(out.parent, size)
    for note in merge.layout.notes:
        progress.note(note, "warning")
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        _write_weights(merge, beside, progress, shard_bytes, device)
        write_companions(merge, beside)
        (beside / "README.md").write_text(model_card(merge, out.name), encoding="utf-8")
        (beside / RECIPE).write_text(json.dumps(_record(merge), indent=2) + "\n", encoding="utf-8")
        beside.chmod(0o755)
        _into_place(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def _write_weights(merge: Merge, folder: Path, progress: Progress, shard_bytes: int, device: str) -> None:
    """Stream the tensors into their shards; reports tensors and GB/s (bytes read and written)."""
    plan = plan_shards(merge.layout.outputs, shard_bytes)
    inputs = sum(model.size_bytes for model in (merge.base, *merge.experts))
    total = sum(info.size for info in merge.layout.outputs.values())
    begun, done = time.perf_counter(), 0
    with ShardWriter(folder, plan) as writer, progress.step("merge", total=len(merge.layout.outputs)) as step:
        for name, tensor in merge.tensors(device):
            writer.write(name, tensor)
            done += tensor.numel() * tensor.element_size()
            rate = done * (1 + inputs / max(total, 1)) / max(time.perf_counter() - begun, 1e-9) / 1e9
            step.advance(1, tensor=name, gb_s=round(rate, 2))


def _check_place(out: Path) -> None:
    """Only an empty place or an earlier merge is written over."""
    if out.is_file():
        raise UserError(f"{out} is a file", do="give another folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RECIPE).is_file():
        raise UserError(f"{out} is not empty and is no merge made here", do="give an empty or new folder")


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + SLACK:
        raise UserError(
            f"the merged model takes {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free",
            where=str(folder),
            do="free some room, give another folder, or choose dtype=bfloat16",
        )


def _into_place(beside: Path, out: Path) -> None:
    """Rename into place; an earlier merge is moved aside first and then removed."""
    aside = None
    if out.is_dir() and any(out.iterdir()):
        aside = beside.with_suffix(".old")
        out.rename(aside)
    beside.rename(out)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _record(merge: Merge) -> dict:
    """The recipe with all parameters filled in, and the fingerprints of what it was made from."""
    recipe = merge.recipe.with_parameters(merge.parameters).to_dict()
    return {"recipe": recipe, "base": merge.base.fingerprint(), "experts": merge.ids}
