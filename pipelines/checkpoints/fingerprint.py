"""Hashes of weights: the fingerprint of a checkpoint folder, and the hash of merged weights as they stream by."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.checkpoints.hashes import file_hash
from pipelines.checkpoints.untrusted import read_json

CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "spiece.model")
"""Files that say which id a token has; store keys depend on their order."""
READER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""Files that decide how a prompt is read; store keys depend on their order."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files that decide how a picture is read; store keys depend on their order."""
TOKENIZER_FILES = (
    *READER_FILES, "added_tokens.json", "vocab.txt", "sentencepiece.bpe.model", "chat_template.json",
)  # fmt: skip
"""Files that a checkpoint's fingerprint takes in."""
COPIED = ("tokenizer*", "vocab*", "*.model", "chat_template*", "*.tiktoken", "additional_chat_templates/*.jinja")
"""Further files that go with a tokenizer wherever it is copied."""
SAYS_NOTHING = ("_name_or_path", "transformers_version", "_from_model_config", "base_model_name_or_path")
"""Fields of configs that say where a file came from, not what the model is."""
PINNED = 1 << 25
"""Bytes that come from an accelerator at once."""


def fingerprint(
    folder: Path, weights: Sequence[Path], cache: Path | None = None, known: Mapping[str, str] | None = None
) -> str:
    """Hex sha256 over the weight files, configs and tokenizer files of a checkpoint.

    A file's own hash is kept under ``cache`` by path, size, time of change and inode; a file of the hub's cache is
    named by its sha256 already and is not read. ``known`` holds the sha256 of files, by name, that are not here yet.
    """
    known = known or {}
    configs = [folder / name for name in CONFIGS if (folder / name).is_file()]
    others = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    files = [*weights, *others]
    with ThreadPoolExecutor(max_workers=min(4, len(files) or 1)) as pool:
        hashes = list(pool.map(lambda file: known.get(file.name) or file_hash(file, cache), files))
    lines = [f"{file.name} {digest}" for file, digest in zip(files, hashes)]
    lines += [f"{file.name} {_config_hash(file)}" for file in configs]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a checkpoint's tokenizer as they are."""
    for file in {file for pattern in (*TOKENIZER_FILES, *COPIED) for file in source.glob(pattern) if file.is_file()}:
        place = target / file.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)


def _config_hash(file: Path) -> str:
    """Hash of a config's fields, in any order, without those that say where it came from."""
    fields = read_json(file)
    kept = {key: value for key, value in fields.items() if key not in SAYS_NOTHING}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


class WeightHash:
    """SHA-256 over name, dtype, shape and bytes of every tensor, in the order in which they are added."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._pinned: list[Tensor] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in one tensor ``[*shape]``, on any device."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._digest.update(f"{name} {dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)  # [bytes]
        for piece in [flat] if flat.device.type == "cpu" else self._pieces(flat):
            self._digest.update(piece.numpy().data)

    def _pieces(self, flat: Tensor) -> Iterator[Tensor]:
        """An accelerator's bytes on the host, each piece while the next one is copied."""
        if not self._pinned:
            self._pinned = [torch.empty(PINNED, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        waiting: tuple[Tensor, torch.cuda.Event] | None = None
        for piece in flat.split(PINNED):
            self._pinned.reverse()
            copied, done = self._pinned[0][: len(piece)].copy_(piece, non_blocking=True), torch.cuda.Event()
            done.record()
            if waiting is not None:
                waiting[1].synchronize()
                yield waiting[0]
            waiting = copied, done
        if waiting is not None:
            waiting[1].synchronize()
            yield waiting[0]

    def hexdigest(self) -> str:
        """The hash so far, as 64 hex digits."""
        return self._digest.hexdigest()


def parameter_hashes(model: nn.Module, rows: Mapping[str, int]) -> dict[str, str]:
    """Hashes of those of a model's parameters that ``rows`` names, each of its first rows."""
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in rows:
            digest = WeightHash()
            digest.add("", parameter[: rows[name]])
            found[name] = digest.hexdigest()
    return found
