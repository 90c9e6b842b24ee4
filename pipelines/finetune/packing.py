"""Several examples in one sequence: positions start anew and attention stays within each example."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.finetune.tokens import IGNORED, Example


@dataclass(frozen=True)
class Pack:
    """Examples that share one sequence."""

    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return sum(len(e.ids) for e in self.examples)


def pack(examples: Sequence[Example], length: int, seed: int) -> list[Pack]:
    """Fill sequences of at most ``length`` tokens, longest example first into the fullest sequence that has room.

    Examples of one length are taken in a seeded order, so that neighbours in the data are not neighbours in a sequence.
    """
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda i: -len(examples[i].ids))
    room: dict[int, list[list[Example]]] = {}
    for i in order:
        size = len(examples[i].ids)
        left = min((r for r in room if r >= size and room[r]), default=None)
        chosen = room[left].pop() if left is not None else []
        chosen.append(examples[i])
        room.setdefault((length if left is None else left) - size, []).append(chosen)
    return [Pack(tuple(chosen)) for r in sorted(room) for chosen in room[r]]


class PackCollator:
    """Batches of packed sequences: ids, labels and positions, int64 [batch, length].

    transformers reads the examples' bounds from positions that start anew, and masks attention accordingly.
    """

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, packs: Sequence[Pack]) -> dict[str, Any]:
        """One micro-batch."""
        length = max(len(p) for p in packs)
        rows = [self._row(p, length) for p in packs]
        ids, labels, positions = (torch.tensor(list(column)) for column in zip(*rows))
        tokens = sum(len(p) for p in packs)
        return {"input_ids": ids, "labels": labels, "position_ids": positions, "tokens": tokens}

    def _row(self, pack: Pack, length: int) -> tuple[list[int], list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        for example in pack.examples:
            start = max(example.start, 1)  # nothing predicts an example's first token
            ids += example.ids
            labels += [IGNORED] * start + example.ids[start:]
            positions += range(len(example.ids))
        rest = length - len(ids)
        return ids + [self.pad] * rest, labels + [IGNORED] * rest, positions + list(range(rest))
