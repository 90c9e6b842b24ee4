"""CLIP as an image classifier: the text head of its classes, its image processor, and the tower put back into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conf.errors import UserError
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.checkpoints.fingerprint import PROCESSOR_FILES
from pipelines.checkpoints.load import load_model, load_tokenizer

LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
BATCH = 256
"""Texts a forward pass."""


def text_head(folder: Path, classes: Sequence[str], templates: Sequence[str], cache: Path | None = None) -> Tensor:
    """The head W [C, d] of a base's text tower: an image's logits are W f / ‖f‖.

    Each row is e^s m / ‖m‖, with m the mean over templates of the normalised embeddings of a class's texts and s the
    base's logit scale (Radford et al., 2021, https://arxiv.org/abs/2103.00020, section 3.1.4). Kept below ``cache`` by
    the base's content.

    Raises:
        UserError: A base without a text tower or tokenizer.
    """
    checkpoint, file = open_checkpoint(str(folder), allow_pickle=True), None
    if cache is not None:
        about = json.dumps([checkpoint.fingerprint(cache), list(classes), list(templates)])
        file = cache / "heads" / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.safetensors"
        if file.is_file():
            return load_file(file)["head"]
    texts = [template.format(word) for word in classes for template in templates]
    embedded = _embed(folder, texts).reshape(len(classes), len(templates), -1)  # [C, T, d]
    mean = (embedded / embedded.norm(dim=-1, keepdim=True)).mean(1)
    head = mean / mean.norm(dim=-1, keepdim=True) * checkpoint.tensor("logit_scale").float().exp()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.{os.getpid()}.part")
        save_file({"head": head.contiguous()}, beside)
        beside.replace(file)
    return head


def _embed(folder: Path, texts: list[str]) -> Tensor:
    """Embeddings [n, d] of texts."""
    model, tokenizer = load_model(folder, torch.float32, part="text").eval(), load_tokenizer(folder)
    longest = model.config.max_position_embeddings
    found = []
    with torch.no_grad():
        for i in range(0, len(texts), BATCH):
            options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
            inputs = tokenizer(texts[i : i + BATCH], **options)
            found.append(model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).text_embeds)
    return torch.cat(found)


def image_processor(folder: Path | str) -> Any:
    """transformers' image processor of a checkpoint folder, on Pillow. Raises UserError where there is none."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)
    except Exception as error:  # whatever the many readers below raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what, do = (
            f"there is no image processor that can be read: {reason[:200]}",
            "put preprocessor_config.json beside it",
        )
        raise UserError(what, where=str(folder), do=do) from error


def whole_model(tower: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The base in a folder as a whole, on the CPU, with a trained image tower in place of its own."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder, dtype=dtype, **LOCAL)
    model.load_state_dict(tower.to("cpu", dtype).state_dict(), strict=False)
    return model


def copy_processor(source: Path, target: Path) -> None:
    """Copy the files of a checkpoint's image processor as they are."""
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
