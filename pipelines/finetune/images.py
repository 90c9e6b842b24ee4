"""Pictures as training examples of an image tower: pixels, labels, and cross-entropy against the frozen text head."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from conf.schema import Task
from pipelines.finetune.models import Loaded
from pipelines.images.clip import image_processor, text_head
from pipelines.images.data import Pictures, described
from pipelines.images.pixels import Pixels


class ImageExamples:
    """A data set for the Trainer that gives whole batches, so that pictures are decoded side by side."""

    def __init__(self, pictures: Pictures, processor: Any, task: Task, seed: int):
        self.places = list(range(len(pictures)))
        if task.limit is not None and task.limit < len(pictures):
            random.Random(seed).shuffle(self.places)
            self.places = self.places[: task.limit]
        self.pixels, self.labels = Pixels(pictures, processor, self.places), pictures.labels

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Any]]:
        places = [self.places[item] for item in items]
        found = zip(self.pixels.batch(places), places)
        return [{"pixels": pixels, "label": self.labels[place]} for pixels, place in found]


def collator(loaded: Loaded) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    """What makes micro-batches of examples: pixel_values [B, 3, S, S], labels [B], and how many tokens that is."""
    vision = loaded.model.config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1

    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        pixels = torch.stack([example["pixels"] for example in examples])
        labels = torch.tensor([example["label"] for example in examples])
        return {"pixel_values": pixels, "labels": labels, "tokens": len(examples) * patches}

    return collate


def head_loss(head: Tensor) -> Callable[..., Tensor]:
    """The Trainer's loss: cross-entropy of W f / ‖f‖ over the pictures of an optimizer step, for a head W [C, d]."""

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        features = outputs[0].float()  # [B, d]
        logits = features / features.norm(dim=-1, keepdim=True) @ head.to(features.device).T  # [B, C]
        total = cross_entropy(logits, labels, reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def examples(loaded: Loaded, pictures: Pictures, task: Task, seed: int) -> ImageExamples:
    """The training examples of a task of pictures."""
    return ImageExamples(pictures, image_processor(loaded.folder), task, seed)


def loss_of(loaded: Loaded, pictures: Pictures, task: Task) -> Callable[..., Tensor]:
    """The loss against the head that the base's text tower makes of the task's classes."""
    assert task.images is not None
    return head_loss(text_head(loaded.folder, pictures.classes, described(task.images)[1]))
