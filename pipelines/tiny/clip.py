"""The tiny base of pictures: a CLIP of two small towers, trained on generated pictures and their captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from conf.schema import Base
from pipelines.process import silence, threads
from pipelines.progress import SILENT, Progress
from pipelines.tiny.base import check_size, pretrain
from pipelines.tiny.pictures import SIZE, SKILLS, pictures

VERSION = 1
"""Goes up whenever the same specification would give other weights."""

PAD, BOS, UNKNOWN, EOS = SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")
CONTEXT, PATCH, HEADS = 16, 8, 4
BATCH, PEAK_LR, PICTURES = 64, 1e-3, 512
WEIGHTS = {"digits": 1.6, "letters": 1.6, "counts": 1.4, "lines": 0.6, "places": 0.6, "colours": 0.6}
"""Share of a task in the mixture (1 where it is not named), so that the base is mediocre at all of them."""


def captions() -> dict[str, list[str]]:
    """The caption of every class, by task."""
    return {name: [task.template.format(word) for word in task.classes] for name, task in SKILLS.items()}


def tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: every word of the captions is one token, others are unknown."""
    words = dict.fromkeys(
        [*SPECIAL, *(word for texts in captions().values() for text in texts for word in text.split())]
    )
    ids = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(BOS, ids[BOS]), (EOS, ids[EOS])]
    made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=PAD, bos_token=BOS, unk_token=UNKNOWN, eos_token=EOS,
        model_max_length=CONTEXT, model_input_names=["input_ids", "attention_mask"], padding_side="right",
    )  # fmt: skip


def make_base(spec: Base, out: Path, progress: Progress = SILENT) -> None:
    """Train the tiny CLIP and write it to ``out`` as an ordinary transformers checkpoint.

    One thread and one seed fix every bit on a given machine; the caller's random state and threads are left as found.

    Raises:
        UserError: A width that four heads cannot share, or no layers or steps.
    """
    check_size(spec)
    words = tokenizer()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), threads(1):
        torch.manual_seed(spec.seed)
        model = CLIPModel(_config(spec, words))
        pixels, target, share = _mixture(spec.seed)
        pretrain(model, _loss(model, words, pixels, target), share, spec, BATCH, PEAK_LR, progress)
    with silence():
        model.save_pretrained(out)
    words.save_pretrained(out)
    processor().save_pretrained(out)


def processor() -> CLIPImageProcessorPil:
    """The image processor: CLIP's own, at this world's size."""
    return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


def _config(spec: Base, words: PreTrainedTokenizerFast) -> CLIPConfig:
    tower: dict[str, Any] = {
        "hidden_size": spec.hidden, "intermediate_size": 2 * spec.hidden, "num_hidden_layers": spec.layers,
        "num_attention_heads": HEADS, "projection_dim": spec.hidden,
    }  # fmt: skip
    text = {
        "vocab_size": len(words), "max_position_embeddings": CONTEXT, "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
    }  # fmt: skip
    vision = {"image_size": SIZE, "patch_size": PATCH}
    return CLIPConfig(
        text_config=tower | text, vision_config=tower | vision, projection_dim=spec.hidden, dtype="float32"
    )


def _loss(model: CLIPModel, words: PreTrainedTokenizerFast, pixels: Tensor, target: Tensor) -> Callable[..., Tensor]:
    """Of some pictures: cross-entropy of their cosines with the captions of all classes of all tasks."""
    texts = words([text for texts in captions().values() for text in texts], padding=True, return_tensors="pt")

    def loss(rows: Tensor) -> Tensor:
        out = model(pixel_values=pixels[rows], input_ids=texts.input_ids, attention_mask=texts.attention_mask)
        return cross_entropy(out.logits_per_image, target[rows])  # [B, captions]

    return loss


def _mixture(seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Pictures of all tasks, the place of each one's caption, and the cumulative probability of each."""
    pixels: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    weight: list[float] = []
    first = 0
    for name, task in SKILLS.items():
        drawn, labels = pictures(name, "train", PICTURES, seed=seed + 1_000_003)  # other pictures than an expert's
        pixels, targets = [*pixels, *drawn], [*targets, labels + first]
        weight += [WEIGHTS.get(name, 1.0) / len(labels)] * len(labels)
        first += len(task.classes)
    total = np.cumsum(weight)
    values = processor()(images=list(pixels), return_tensors="pt")["pixel_values"]
    return values, torch.from_numpy(np.concatenate(targets)), total / total[-1]
