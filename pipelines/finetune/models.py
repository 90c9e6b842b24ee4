"""The base as float32 master weights, and the expert as an ordinary checkpoint of the base's dtype."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conf.errors import UserError

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*",
)  # fmt: skip


@dataclass
class Loaded:
    """A base ready for training."""

    model: Any
    tokenizer: Any
    folder: Path
    dtype: torch.dtype
    device: str

    @property
    def context(self) -> int:
        """Longest sequence the model takes."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    @property
    def pad(self) -> int:
        """Token id that batches are filled up with; the loss never sees it."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def save(self, out: Path) -> None:
        """Write weights in the base's dtype, config, generation config and the base's own tokenizer files."""
        model = self.model.to("cpu", self.dtype)
        model.config.use_cache = True
        model.save_pretrained(out)
        for pattern in TOKENIZER_FILES:
            for file in self.folder.glob(pattern):
                shutil.copyfile(file, out / file.name)


def load(folder: Path) -> Loaded:
    """Load a checkpoint folder for training, in float32.

    Raises:
        UserError: A folder that transformers cannot load.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load the base from {folder}", where=reason, do="give a transformers checkpoint"
        ) from None
    model.config.use_cache = False
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return Loaded(model, tokenizer, folder, dtype, "cuda" if torch.cuda.is_available() else "cpu")
