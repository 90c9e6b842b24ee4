"""Log-likelihoods of batched trees under a live model; only the rows that are read go through the output layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipelines.evaluate.trie import Batch, allowed

Answer = tuple[float, bool]
"""lm-eval's answer to a request: (log-likelihood, whether greedy decoding would give the continuation)."""


def log_likelihoods(model: nn.Module, work: list[Batch], count: int, tick: Callable[[int], None]) -> list[Answer]:
    """Answers to ``count`` requests from their batches, summed in float32."""
    answers = []
    with torch.no_grad(), rows_only(model) as rows:
        for batch in work:
            answers.append(answer(model, batch, rows))
            tick(len(batch.tokens))
    values, greedy = torch.zeros(count), torch.zeros(count, dtype=torch.bool)
    for batch, (value, right) in zip(work, answers, strict=True):  # read last, so that a GPU is never waited for
        values[batch.requests], greedy[batch.requests] = value.cpu(), right.cpu()
    return list(zip(values.tolist(), greedy.tolist(), strict=True))


def answer(model: nn.Module, batch: Batch, rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihood [n] and greedy flag [n] of a batch's n requests."""
    device = next(model.parameters()).device
    batch = batch.to(device)
    rows[:] = [batch.rows]
    logits = model(input_ids=batch.tokens, use_cache=False, **_structure(model, batch)).logits
    if logits.shape[:-1] == batch.tokens.shape:  # the output layer could not be hooked
        logits = logits.reshape(-1, logits.shape[-1])[batch.rows.to(logits.device)]
    batch, logits = batch.to(logits.device), logits.reshape(-1, logits.shape[-1])  # [R, V]
    scores = torch.log_softmax(logits, dim=-1)  # [R, V]
    picked = scores[batch.pick_row, batch.pick_token]  # [P]
    right = (logits.argmax(-1)[batch.pick_row] == batch.pick_token).float()  # [P]
    n = len(batch.requests)
    total = torch.zeros(n, device=logits.device).index_add_(0, batch.pick_request, picked)
    every = torch.ones(n, device=logits.device).scatter_reduce_(0, batch.pick_request, right, "amin")
    return total, every.bool()


def _structure(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Keyword arguments that make the model see trees: nothing at all for chains (right padding is harmless)."""
    if batch.ends is None:
        return {}
    mask = allowed(batch.ends)  # [B, 1, T, T]
    if model.config._attn_implementation != "sdpa":
        dtype = next(model.parameters()).dtype
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    return {"attention_mask": mask, "position_ids": batch.depths}


@contextmanager
def rows_only(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Let the output layer see only the hidden states [R, d] at the flat places last put into the yielded list."""
    rows: list[torch.Tensor] = []

    def pick(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0]  # [B, T, d]
        return (hidden.reshape(-1, hidden.shape[-1])[rows[0].to(hidden.device)][None], *inputs[1:])  # [1, R, d]

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(pick) if isinstance(head, nn.Linear) else None
    try:
        yield rows
    finally:
        if handle is not None:
            handle.remove()
