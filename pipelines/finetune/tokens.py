"""From rows to token ids with labels on the completion alone, end-of-sequence included, and to batches of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from conf.errors import UserError
from conf.schema import Task, Training
from pipelines.finetune.data import Row

IGNORED = -100
"""Label of a token that the loss does not see."""


@dataclass(frozen=True)
class Example:
    """Token ids and, from ``start`` on, the completion that the loss is taken on."""

    ids: list[int]
    start: int


WORD = 500
"""Characters that a token stands for at most, in a text that is worth cutting into tokens."""


def encode(rows: Sequence[Row], tokenizer: Any, task: Task, training: Training, context: int) -> list[Example]:
    """Tokenise all rows.

    Raises:
        UserError: A tokenizer without end-of-sequence or chat template, or a sequence longer than the context.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token", where=task.name, do="choose another base")
    longest = min(training.max_length or context, context)
    texts = [_texts(row, tokenizer, task) for row in rows]
    for i, (_, whole) in enumerate(texts):
        if not training.truncate and len(whole) > WORD * longest:
            where, do = f"{task.name}, example {i + 1}", "shorten it, or set training.truncate=true"
            raise UserError(f"{len(whole):,} characters are more than {longest} tokens hold", where=where, do=do)
    special = not (task.chat_template or task.messages)  # a chat template writes its own
    examples = []
    for i, (ids, start) in enumerate(_split_ids(texts, tokenizer, special)):
        if not ids:
            where = f"{task.name}, example {i + 1}"
            raise UserError("the tokenizer makes no tokens of the text", where=where, do="choose another base")
        if ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, tokenizer.eos_token_id]
        examples.append(_fit(ids, start, longest, training.truncate, f"{task.name}, example {i + 1}"))
    return examples


def _texts(row: Row, tokenizer: Any, task: Task) -> tuple[str, str]:
    """The text before the completion, and the whole."""
    if not (task.chat_template or task.messages):
        return row["prompt"], row["prompt"] + row["completion"]
    messages = row.get("messages") or [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]
    if not getattr(tokenizer, "chat_template", None):
        do = "choose an instruct base, or task.chat_template=false"
        raise UserError("the tokenizer has no chat template", where=task.name, do=do)
    before = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(before):  # a template that rewrites history: keep the prompt, put the answer after it
        whole = before + messages[-1]["content"]
    return before, whole.rstrip("\n")


def _split_ids(texts: list[tuple[str, str]], tokenizer: Any, special: bool) -> list[tuple[list[int], int]]:
    """Token ids of the whole text, and the first token that reaches into the completion."""
    found = []
    if tokenizer.is_fast:
        wholes = [whole for _, whole in texts]
        out = tokenizer(wholes, add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False)
        for (before, _), ids, offsets in zip(texts, out["input_ids"], out["offset_mapping"]):
            start = next((j for j, (a, b) in enumerate(offsets) if b > len(before) and b > a), len(ids))
            found.append((list(ids), start))
        return found
    for before, whole in texts:
        short = tokenizer(before, add_special_tokens=special)["input_ids"]
        ids = tokenizer(whole, add_special_tokens=special)["input_ids"]
        start = next((j for j, (a, b) in enumerate(zip(short, ids)) if a != b), min(len(short), len(ids)))
        found.append((list(ids), start))
    return found


def _fit(ids: list[int], start: int, longest: int, truncate: bool, where: str) -> Example:
    over = len(ids) - longest
    if over <= 0:
        return Example(ids, start)
    if not truncate:
        what = f"a sequence of {len(ids)} tokens is longer than {longest}"
        do = "set training.truncate=true to cut prompts from the left, or a larger training.max_length"
        raise UserError(what, where=where, do=do)
    if start <= over:
        what = f"a completion of {len(ids) - start} tokens leaves no room for its prompt in {longest}"
        raise UserError(what, where=where, do="leave the example out, or set a larger training.max_length")
    return Example(ids[over:], start - over)


@dataclass(frozen=True)
class Collator:
    """Batches of right-padded ids and labels, int64 [batch, length]; right padding needs no mask."""

    pad: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One micro-batch."""
        length = max(len(e.ids) for e in examples)
        ids = [e.ids + [self.pad] * (length - len(e.ids)) for e in examples]
        # the model shifts labels itself
        labels = [[IGNORED] * e.start + e.ids[e.start :] + [IGNORED] * (length - len(e.ids)) for e in examples]
        tokens = sum(len(e.ids) for e in examples)
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "tokens": tokens}


@dataclass(frozen=True)
class Pack:
    """Examples that share one sequence: positions start anew and attention stays within each example."""

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


@dataclass(frozen=True)
class PackCollator:
    """Batches of packed sequences: ids, labels and positions, int64 [batch, length].

    transformers reads the examples' bounds from positions that start anew, and masks attention accordingly.
    """

    pad: int

    def __call__(self, packs: Sequence[Pack]) -> dict[str, Any]:
        """One micro-batch."""
        length = max(len(p) for p in packs)
        ids, labels, positions = (torch.tensor(list(rows)) for rows in zip(*(self._row(p, length) for p in packs)))
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
