"""Log-likelihoods under a live model, with the tokens that several requests begin with computed once, as a tree.

The inputs of a document's requests (a context followed by each option) are laid out as a prefix tree in depth-first
order. Token q may attend to token k when k is q itself or an ancestor of q. In depth-first order the subtree of k is
an interval [k, end_k), so the mask is

    allowed(q, k) = (k ≤ q) and (q < end_k)

and a token's position is its depth. Options of one token need no branch at all: they are read from one forward pass
over the context. A tree without branches is an ordinary causal sequence. Only the outputs that are read go through the
output layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from pipelines.process import device_of

Pair = tuple[list[int], list[int]]
"""Tokens of a request's context and of its continuation."""

Answer = tuple[float, bool]
"""lm-eval's answer to a request: (log-likelihood, whether greedy decoding would give the continuation)."""

WORTH = 0.9
"""A request joins a tree when that costs less than this share of computing it alone."""


class Pick(NamedTuple):
    """One target token: ``request``'s log-likelihood takes ``token`` at the output of tree node ``node``."""

    request: int
    node: int
    token: int


@dataclass(frozen=True)
class Tree:
    """One row of a batch: tokens [T], their depths [T] and subtree ends [T], and what is read from its outputs."""

    tokens: list[int]
    depths: list[int]
    ends: list[int]
    picks: list[Pick]

    @property
    def chain(self) -> bool:
        """Whether no token branches off."""
        return self.depths == list(range(len(self.tokens)))


@dataclass(frozen=True)
class Batch:
    """Trees padded to one length, as tensors.

    ``tokens`` [B, T]; ``depths`` and ``ends`` [B, T], or None where every tree is a chain; ``rows`` [R] the flat
    places (b·T + t) whose logits are needed; for each of P picks its row ``pick_row`` [P], target ``pick_token`` [P]
    and request ``pick_request`` [P] as counted in ``requests``, the requests this batch answers.
    """

    tokens: torch.Tensor
    depths: torch.Tensor | None
    ends: torch.Tensor | None
    rows: torch.Tensor
    pick_row: torch.Tensor
    pick_token: torch.Tensor
    pick_request: torch.Tensor
    requests: list[int]

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in vars(self).items()}
        return Batch(**moved)


def cut(pair: Pair, max_length: int) -> list[int]:
    """What the model reads for (context, continuation) tokens: all but the last, cut from the left as lm-eval does."""
    return (pair[0] + pair[1])[-(max_length + 1) : -1]


def tree(requests: list[int], pairs: list[Pair], max_length: int) -> Tree:
    """The prefix tree of some requests' inputs."""
    out = Tree([], [], [], [])
    path: list[int] = []  # nodes from the root to the last token of the previous input
    for tokens, request in sorted((cut(pairs[i], max_length), i) for i in requests):
        shared = common([out.tokens[node] for node in path], tokens)
        for node in path[shared:]:
            out.ends[node] = len(out.tokens)
        added = range(len(out.tokens), len(out.tokens) + len(tokens) - shared)
        path[shared:] = added
        out.tokens.extend(tokens[shared:])
        out.depths.extend(range(shared, len(tokens)))
        out.ends.extend([-1] * len(added))
        target = pairs[request][1]
        nodes = path[len(path) - len(target) :]
        out.picks.extend(Pick(request, node, token) for node, token in zip(nodes, target, strict=True))
    for node in path:
        out.ends[node] = len(out.tokens)
    return out


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def forest(pairs: list[Pair], max_length: int, width: int) -> list[Tree]:
    """Trees of all requests, longest first.

    Requests that begin alike (options after one context, documents after the same examples) are put into one tree as
    far as that saves work for a model of hidden size ``width``.
    """
    trees = [tree(part, pairs, max_length) for part in _parts(pairs, max_length, width)]
    return sorted(trees, key=lambda t: (-len(t.tokens), t.tokens))


def _parts(pairs: list[Pair], max_length: int, width: int) -> list[list[int]]:
    """Which requests to compute together: neighbours in the order of their tokens, where it pays."""
    inputs = sorted((cut(pair, max_length), i) for i, pair in enumerate(pairs))
    most = 2 * max((len(tokens) for tokens, _ in inputs), default=0)
    parts: list[list[int]] = []
    last: list[int] = []
    size, branched = 0, False  # of the tree of the last part
    for tokens, request in inputs:
        shared = common(last, tokens)
        grown, branches = size + len(tokens) - shared, branched or shared < len(last)
        apart = _work(size, branched, width) + WORTH * _work(len(tokens), False, width)
        pays = grown <= most and _work(grown, branches, width) < apart
        if parts and (tokens == last or pays):
            parts[-1].append(request)
            size, branched = grown, branches
        else:
            parts.append([request])
            size, branched = len(tokens), False
        last = tokens
    return parts


def _work(tokens: int, branched: bool, width: int) -> float:
    """Relative cost of a sequence: matrix products, and attention, which a mask of one's own makes twice as dear."""
    return tokens * (6 * width + tokens * (2 if branched else 1))


def batches(trees: list[Tree], size: int, fill: bool = False, tokens: int | None = None) -> list[Batch]:
    """Trees, longest first, in batches of ``size``, or of as many rows as ``tokens`` holds.

    With ``fill``, for an accelerator that few short rows would leave idle, more rows go into a batch as long as it has
    no more tokens and no more outputs than the first ``size`` of the longest.
    """
    made, left = [], list(trees)
    budget = size * len(trees[0].tokens) if trees else 0
    outputs = max((sum(len(t.picks) for t in trees[i : i + size]) for i in range(0, len(trees), size)), default=0)
    while left:
        rows = min(size if tokens is None else max(1, tokens // len(left[0].tokens)), len(left))
        if fill and tokens is None:
            picks = sum(len(t.picks) for t in left[:rows])
            for one in left[rows : budget // len(left[0].tokens)]:
                picks += len(one.picks)
                if picks > outputs:
                    break
                rows += 1
        made.append(_batch(left[:rows]))
        left = left[rows:]
    return made


def _batch(trees: list[Tree]) -> Batch:
    length = max(len(t.tokens) for t in trees)
    plain = all(t.chain for t in trees)
    tokens = torch.zeros(len(trees), length, dtype=torch.long)  # [B, T]
    depths = torch.zeros_like(tokens)
    ends = torch.arange(1, length + 1).repeat(len(trees), 1)  # padding sees itself only
    rows: dict[int, int] = {}
    requests: dict[int, int] = {}
    picks = []
    for b, t in enumerate(trees):
        n = len(t.tokens)
        tokens[b, :n] = torch.tensor(t.tokens)
        if not plain:
            depths[b, :n] = torch.tensor(t.depths)
            ends[b, :n] = torch.tensor(t.ends)
        for pick in t.picks:
            row = rows.setdefault(b * length + pick.node, len(rows))
            picks.append((row, pick.token, requests.setdefault(pick.request, len(requests))))
    row, token, request = torch.tensor(picks, dtype=torch.long).reshape(-1, 3).T.contiguous()
    places = torch.tensor(list(rows), dtype=torch.long)
    if plain:
        return Batch(tokens, None, None, places, row, token, request, list(requests))
    return Batch(tokens, depths, ends, places, row, token, request, list(requests))


def allowed(ends: torch.Tensor) -> torch.Tensor:
    """Who may attend to whom: bool [B, 1, T, T] from subtree ends [B, T]."""
    at = torch.arange(ends.shape[1], device=ends.device)
    return ((at[None, :] <= at[:, None])[None] & (at[None, :, None] < ends[:, None, :]))[:, None]


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
    batch = batch.to(device_of(model))
    rows[:] = [batch.rows]
    structure = {}  # chains need none: right padding is harmless
    if batch.ends is not None:
        mask = allowed(batch.ends)  # [B, 1, T, T]
        if model.config._attn_implementation != "sdpa":
            dtype = next(model.parameters()).dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        structure = {"attention_mask": mask, "position_ids": batch.depths}
    logits = model(input_ids=batch.tokens, use_cache=False, **structure).logits
    if logits.shape[:-1] == batch.tokens.shape:  # the output layer could not be hooked
        logits = logits.reshape(-1, logits.shape[-1])[batch.rows.to(logits.device)]
    batch, logits = batch.to(logits.device), logits.reshape(-1, logits.shape[-1])  # [R, V]
    picked = torch.log_softmax(logits, dim=-1, dtype=torch.float32)[batch.pick_row, batch.pick_token]  # [P]
    right = (logits.argmax(-1)[batch.pick_row] == batch.pick_token).float()  # [P]
    n = len(batch.requests)
    total = torch.zeros(n, device=logits.device).index_add_(0, batch.pick_request, picked)
    every = torch.ones(n, device=logits.device).scatter_reduce_(0, batch.pick_request, right, "amin")
    return total, every.bool()


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


FAMILIES = frozenset(
    """
    apertus arcee cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5 exaone4 falcon gemma gemma2 gemma3_text glm glm4
    glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe helium hunyuan_v1_dense llama ministral
    mistral mixtral nemotron olmo olmo2 olmo3 olmoe opt phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3
    stablelm starcoder2
    """.split()  # noqa: SIM905
)
"""transformers' model types whose code was read, and run on branching trees, for this: tokens meet in attention only,
under the mask that is passed, and a token's position is what ``position_ids`` says."""

STEADY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that do not depend on the length of the sequence."""


def can_share(model: nn.Module, longest: int, always: bool = False) -> bool:
    """Whether shared prefixes give a model's decisions on inputs of up to ``longest`` tokens.

    Only in float32, unless ``always``: in 16 bits log-likelihoods tie or differ by their own rounding, and another
    order of the same sums decides between options. A window must hold the longest input: the tree's mask is passed to
    every layer.
    """
    config: Any = model.config
    layers = set(getattr(config, "layer_types", None) or ())
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return (
        type(model).__module__.startswith("transformers.models.")
        and config.model_type in FAMILIES
        and config._attn_implementation in ("sdpa", "eager")
        and (always or all(p.dtype == torch.float32 for p in model.parameters()))
        and layers <= {"full_attention", "sliding_attention"}
        and all(not window or longest <= window for window in windows)
        and not any(getattr(config, name, False) for name in ("alibi", "use_bidirectional_attention"))
        and all(_steady(rope, longest) for rope in _ropes(config))
    )


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Settings of the rotary embeddings: one for the model, or one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [part for part in rope.values() if isinstance(part, dict)] or [rope]


def _steady(rope: dict[str, Any], longest: int) -> bool:
    """Whether a rotary embedding stays the same within ``longest`` tokens."""
    if rope.get("rope_type") == "longrope":
        return longest <= rope.get("original_max_position_embeddings", 0)
    return rope.get("rope_type", "default") in STEADY
