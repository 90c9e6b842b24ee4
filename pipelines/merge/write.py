"""From the stream to disk: an ordinary transformers checkpoint."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.merge.card import model_card
from pipelines.merge.companions import write_companions
from pipelines.merge.place import RECIPE, placed
from pipelines.merge.shards import ShardWriter, plan_shards
from pipelines.progress import SILENT, Progress

if TYPE_CHECKING:
    from pipelines.merge.stream import Merge


def write_merge(
    merge: Merge, out: Path, progress: Progress = SILENT, *, shard_bytes: int = 5 * 10**9, device: str = "cpu"
) -> Path:
    """Write a merge as a model folder: weights in shards, index, configs, tokenizer, card and recipe.

    The folder is written beside its place and renamed. Raises ``UserError`` for a folder that holds something else,
    too little room on the disk, and whatever ``Merge.check`` finds.
    """
    out = Path(out).expanduser()
    merge.check()
    size = sum(info.size for info in merge.layout.outputs.values())
    with placed(out, size) as beside:
        for note in merge.layout.notes:
            progress.note(note, "warning")
        _write_weights(merge, beside, progress, shard_bytes, device)
        if finding := low_rank_note(merge):
            progress.note(finding, "warning")
        write_companions(merge, beside)
        (beside / "README.md").write_text(model_card(merge, out.name), encoding="utf-8")
        (beside / RECIPE).write_text(json.dumps(_record(merge), indent=2) + "\n", encoding="utf-8")
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


def low_rank_note(merge: Merge) -> str | None:
    """One line about updates whose numerical rank leaves the method ill-posed, as found while merging."""
    found = {name: entry for name, entry in merge.report.items() if isinstance(entry, dict) and "rank" in entry}
    if not found:
        return None
    name, entry = min(found.items(), key=lambda item: (item[1]["rank"], item[0]))
    way = "; rank_tolerance leaves the rest out" if "rank_tolerance" in merge.parameters else ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{merge.recipe.method} is ill-posed on updates of low numerical rank: {name} (rank {entry['rank']} of "
        f"{entry['of']}){more}{way}"
    )


def _record(merge: Merge) -> dict:
    """The recipe with all parameters filled in, and the fingerprints of what it was made from."""
    recipe = merge.recipe.with_parameters(merge.parameters).to_dict()
    return {"recipe": recipe, "base": merge.base_id, "experts": merge.ids}
