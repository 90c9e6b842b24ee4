"""The base ready for training, and the expert as an ordinary checkpoint of the base's dtype."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conf.errors import UserError
from conf.schema import Training

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*",
)  # fmt: skip


@dataclass
class Loaded:
    """A base ready for training; ``model`` becomes the expert."""

    model: Any
    tokenizer: Any
    folder: Path
    dtype: torch.dtype
    device: str
    cache: bool

    @property
    def context(self) -> int:
        """Longest sequence the model takes."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    @property
    def pad(self) -> int:
        """Token id that batches are filled up with; the loss never sees it."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def size(self) -> int:
        """Bytes of the expert on disk."""
        return sum(p.numel() for p in self.model.parameters()) * self.dtype.itemsize

    def save(self, out: Path) -> None:
        """Write weights in the base's dtype, config, generation config and the base's own tokenizer files."""
        model = self.model
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        model = model.to("cpu", self.dtype)
        model.config.use_cache = self.cache
        model.save_pretrained(out)
        model.config.use_cache = False
        umask = os.umask(0)
        os.umask(umask)
        for file in out.glob("*.safetensors"):
            file.chmod(0o666 & ~umask)
        for pattern in TOKENIZER_FILES:
            for file in self.folder.glob(pattern):
                shutil.copyfile(file, out / file.name)


def load(folder: Path, training: Training, method: str, device: str = "auto") -> Loaded:
    """Load a checkpoint folder for training: float32 weights, or bf16 ones where float32 masters are kept.

    Raises:
        UserError: A folder that transformers cannot load, or options that do not go together.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_options(training, method)
    half = training.precision == "bf16_masters"
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if half else torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load the base from {folder}", where=reason, do="give a transformers checkpoint"
        ) from None
    cache = bool(getattr(model.config, "use_cache", True))
    model.config.use_cache = False
    if device.startswith("cuda:") and device != "cuda:0":
        raise UserError(
            "training runs on the first GPU that it sees", where=f"executor.device={device}",
            do=f"choose one with CUDA_VISIBLE_DEVICES={device[5:]} and executor.device=cuda",
        )  # fmt: skip
    device = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    loaded = Loaded(model, tokenizer, folder, _dtype(folder), device, cache)
    _set_up(loaded, training, method)
    return loaded


def _set_up(loaded: Loaded, training: Training, method: str) -> None:
    if training.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    if training.lora.rank:
        from pipelines.finetune.lora import adapt

        loaded.model = adapt(loaded.model, training.lora)
    if method == "tangent":
        from pipelines.finetune.linear import linearise

        linearise(loaded.model)


def check_options(training: Training, method: str) -> None:
    """Refuse options that mean nothing, or nothing together.

    Raises:
        UserError: Naming the option.
    """
    from pipelines.finetune.schedule import check_training

    check_training(training)
    if method != "tangent":
        return
    for wrong, name in (
        (training.lora.rank > 0, "lora"),
        (training.gradient_checkpointing, "gradient_checkpointing"),
        (training.precision != "float32", f"precision={training.precision}"),
    ):
        if wrong:
            raise UserError(
                "the tangent space takes all weights in float32", where=f"training.{name}", do="leave it out"
            )


def _dtype(folder: Path) -> torch.dtype:
    """The dtype that the base's weights are stored in."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(folder).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
