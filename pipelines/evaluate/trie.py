"""Sequences that begin alike, computed once: the tokens of several requests as one tree.

The inputs of a document's requests (a context followed by each option) are laid out as a prefix tree in depth-first
order. Token q may attend to token k when k is q itself or an ancestor of q. In depth-first order the subtree of k is
an interval [k, end_k), so the mask is

    allowed(q, k) = (k ≤ q) and (q < end_k)

and a token's position is its depth. Options of one token need no branch at all: they are read from one forward pass
over the context. A tree without branches is an ordinary causal sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Pair = tuple[list[int], list[int]]
"""Tokens of a request's context and of its continuation."""

WORTH = 0.9
"""A request joins a tree when that costs less than this share of computing it alone."""


@dataclass(frozen=True)
class Pick:
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
        del path[shared:]
        for depth in range(shared, len(tokens)):
            path.append(len(out.tokens))
            out.tokens.append(tokens[depth])
            out.depths.append(depth)
            out.ends.append(-1)
        target = pairs[request][1]
        where = path[len(tokens) - len(target) : len(tokens)]
        out.picks.extend(Pick(request, node, token) for node, token in zip(where, target, strict=True))
    for node, end in enumerate(out.ends):
        if end < 0:
            out.ends[node] = len(out.tokens)
    return out


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the common prefix."""
    for i, (a, b) in enumerate(zip(one, other)):
        if a != b:
            return i
    return min(len(one), len(other))


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
    size, branched = 0, False
    for tokens, request in inputs:
        shared = common(last, tokens)
        grown, branches = size + len(tokens) - shared, branched or shared < len(last)
        joined = bool(parts) and tokens == last
        if parts and not joined and grown <= most:
            apart = _work(size, branched, width) + WORTH * _work(len(tokens), False, width)
            joined = _work(grown, branches, width) < apart
        if joined:
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


def batches(trees: list[Tree], size: int) -> list[Batch]:
    """Trees in batches of ``size``, in the order given."""
    return [_batch(trees[i : i + size]) for i in range(0, len(trees), size)]


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
    picked = torch.tensor(picks, dtype=torch.long).reshape(-1, 3)
    return Batch(
        tokens=tokens,
        depths=None if plain else depths,
        ends=None if plain else ends,
        rows=torch.tensor(list(rows), dtype=torch.long),
        pick_row=picked[:, 0].contiguous(),
        pick_token=picked[:, 1].contiguous(),
        pick_request=picked[:, 2].contiguous(),
        requests=list(requests),
    )


def allowed(ends: torch.Tensor) -> torch.Tensor:
    """Who may attend to whom: bool [B, 1, T, T] from subtree ends [B, T]."""
    at = torch.arange(ends.shape[1], device=ends.device)
    return ((at[None, :] <= at[:, None])[None] & (at[None, :, None] < ends[:, None, :]))[:, None]
