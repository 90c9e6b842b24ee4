"""What goes beside merged weights: config, generation config, tokenizer, chat template, remote code."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.merge.fingerprint import TOKENIZER
from pipelines.merge.vocabulary import union_tokenizer

if TYPE_CHECKING:
    from pipelines.merge.stream import Merge

COPIED = (*TOKENIZER, "generation_config.json", "preprocessor_config.json", "processor_config.json")
PATTERNS = ("*.tiktoken", "*.py", "additional_chat_templates/*.jinja")


def write_companions(merge: Merge, folder: Path) -> None:
    """Write config and tokenizer files of the base, changed where the merge differs from it."""
    source = merge.base.folder
    config = json.dumps(merged_config(merge), indent=2)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    files = [source / name for name in COPIED] + [file for pattern in PATTERNS for file in source.glob(pattern)]
    for file in files:
        if file.is_file():
            target = folder / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    write_tokenizer(merge, folder)


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
