"""From the stream to disk: an ordinary transformers checkpoint."""

from __future__ import annotations

import copy
import json
import shutil
import time
from pathlib import Path
from typing import Any

from conf.errors import redacted
from pipelines.checkpoints.card import linearised_at, write_flag
from pipelines.checkpoints.fingerprint import copy_tokenizer
from pipelines.checkpoints.vocabulary import union_tokenizer
from pipelines.checkpoints.write import RECIPE, ShardWriter, new_folder, plan_shards
from pipelines.merge.card import model_card
from pipelines.merge.stream import Merge
from pipelines.progress import SILENT, Progress


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
    with new_folder(out, size) as beside:
        for note in merge.layout.notes:
            progress.note(note, "warning")
        _write_weights(merge, beside, progress, shard_bytes, device)
        if finding := low_rank_note(merge):
            progress.note(finding, "warning")
        write_companions(merge, beside)
        (beside / "README.md").write_text(model_card(merge, out.name), encoding="utf-8")
        (beside / RECIPE).write_text(redacted(json.dumps(_record(merge), indent=2)) + "\n", encoding="utf-8")
    return out


def _write_weights(merge: Merge, folder: Path, progress: Progress, shard_bytes: int, device: str) -> None:
    """Stream the tensors into their shards; reports tensors, GB/s (bytes read and written) and the seconds to go."""
    plan = plan_shards(merge.layout.outputs, shard_bytes)
    inputs = sum(model.size_bytes for model in (merge.base, *merge.experts))
    total = sum(info.size for info in merge.layout.outputs.values())
    begun, done, merge.origin = time.perf_counter(), 0, merge.base
    with ShardWriter(folder, plan) as writer, progress.step("merge", total=len(merge.layout.outputs)) as step:
        for name, tensor in merge.tensors(device):
            writer.write(name, tensor)
            done += tensor.numel() * tensor.element_size()
            seconds = max(time.perf_counter() - begun, 1e-9)
            rate = done * (1 + inputs / max(total, 1)) / seconds / 1e9
            step.advance(1, tensor=name, gb_s=round(rate, 2), eta=seconds * (total - done) / max(done, 1))


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


COPIED = ("generation_config.json", "preprocessor_config.json", "processor_config.json", "*.py")
"""What is copied beside the tokenizer."""


def write_companions(merge: Merge, folder: Path) -> None:
    """Write config and tokenizer files of the base, changed where the merge differs from it."""
    source = merge.base.folder
    config = json.dumps(merged_config(merge), indent=2)
    (folder / "config.json").write_text(redacted(config) + "\n", encoding="utf-8")
    copy_tokenizer(source, folder)
    for file in (file for pattern in COPIED for file in source.glob(pattern) if file.is_file()):
        shutil.copyfile(file, folder / file.name)
    write_tokenizer(merge, folder)
    if all(linearised_at(expert.folder) for expert in merge.experts):
        write_flag(folder, source)


def write_tokenizer(merge: Merge, folder: Path) -> bool:
    """Write the merged vocabulary's tokenizer where it is not the base's; says whether it wrote one."""
    vocabulary = merge.layout.vocabulary
    if vocabulary is None or not vocabulary.added:
        return False
    union_tokenizer(merge.base.folder, vocabulary).save_pretrained(folder)
    return True


def merged_config(merge: Merge) -> dict[str, Any]:
    """The base's config with the merged model's dtype, vocabulary rows and tie."""
    config = {key: value for key, value in copy.deepcopy(merge.base.config).items() if key != "_name_or_path"}
    dtypes = {info.dtype for info in merge.layout.outputs.values() if info.merged}
    if merge.recipe.dtype != "auto" and len(dtypes) == 1:
        present = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
        config.update({key: next(iter(dtypes)) for key in present})
    if merge.layout.untied:
        config["tie_word_embeddings"] = False
    if merge.layout.vocabulary is not None:
        inner = config.get("text_config")
        fields = inner if isinstance(inner, dict) and "vocab_size" in inner else config
        fields["vocab_size"] = merge.layout.vocabulary.rows
    return config
