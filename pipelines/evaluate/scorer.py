"""The requests of a suite's tasks, tokenised once, and how a model is made to answer them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from conf.errors import UserError
from conf.schema import Suite
from pipelines.evaluate.entries import Leaf
from pipelines.evaluate.forward import NotFiniteError, can_branch, log_likelihoods
from pipelines.evaluate.lm import LiveLM
from pipelines.evaluate.trie import Batch, Pair, batches, forest

Tick = Callable[[int], None]

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""How far shared and separate computation may differ in a request's log-likelihood before sharing is turned off."""

SAMPLE = 8
"""Requests that are computed both ways in every model to see whether sharing works."""


class Scorer:
    """Batches of every leaf, for one context length and batch size at a time."""

    def __init__(self, lm: LiveLM, suite: Suite, leaves: list[Leaf]):
        self.lm, self.suite, self.leaves = lm, suite, leaves
        self.batch_size, self.share = suite.batch_size, suite.share_prefix
        self.pairs: dict[int, list[Pair]] = {}
        self.work: dict[int, list[Batch]] = {}
        self.misfits: dict[int, ValueError] = {}
        self.made_for: tuple[int, int, bool, int] | None = None
        self.max_length, self.width = 0, 0
        for leaf in leaves:
            if leaf.instances and leaf.instances[0][0].request_type == "loglikelihood":
                self._tokenise(leaf)

    @property
    def rows(self) -> int | None:
        """Sequences that one evaluation computes, as far as known."""
        return sum(len(b.tokens) for work in self.work.values() for b in work) or None

    def prepare(self, model: nn.Module) -> None:
        """Lay out the batches for a model's context length; check that it computes shared prefixes rightly."""
        self.max_length = self.lm.max_length
        self.width = model.get_input_embeddings().embedding_dim
        if self.share and not can_branch(model):
            self.share = False
        self._lay_out()
        if self.share and not self._branches_rightly(model):
            self.share = False
            self._lay_out()

    def halve(self, who: str) -> None:
        """Halve the batch size after running out of memory. Raises UserError when it is one already."""
        if self.batch_size == 1:
            raise UserError(f"out of memory at batch size 1 ({who})", do="use a larger device or suite.max_length")
        self.batch_size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def run(self, leaf: Leaf, model: nn.Module, tick: Tick) -> None:
        """Answer a leaf's requests and pass the answers through its filters."""
        requests = leaf.task._instances or []
        kind = requests[0].request_type
        if id(leaf) in self.misfits:
            raise self.misfits[id(leaf)]
        if kind == "loglikelihood":
            answers: list[Any] = log_likelihoods(model, self.work[id(leaf)], len(requests), tick)
        else:
            self._try_one(model, requests[0].args[0])
            requests = [request for request in requests for _ in range(request.repeats or 1)]
            answers = getattr(self.lm, kind)(requests, disable_tqdm=True)
            tick(len(requests))
        for request, given in zip(requests, answers, strict=True):
            request.resps.append(given)
        leaf.task.apply_filters()

    def describe(self, settings: dict[str, Any], model: nn.Module) -> dict[str, Any]:
        """The settings with what this model was really scored with."""
        parameter = next(model.parameters())
        return {
            **settings,
            "device": str(parameter.device),
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
            "share_prefix": self.share,
            "max_length": self.max_length,
        }

    def _tokenise(self, leaf: Leaf) -> None:
        self.pairs[id(leaf)] = self.lm.encode_pairs([request.args for request in leaf.task._instances or []])

    def _lay_out(self) -> None:
        wanted = (self.max_length, self.batch_size, self.share, self.width)
        if self.made_for == wanted:
            return
        self.work, self.misfits = {}, {}
        for key, pairs in self.pairs.items():
            try:
                trees = forest(pairs, self.max_length, self.width if self.share else None)
                self.work[key] = batches(trees, self.batch_size)
            except ValueError as error:
                self.misfits[key] = error
        self.made_for = wanted

    def _branches_rightly(self, model: nn.Module) -> bool:
        """Whether the longest branching tree of each leaf scores the same with and without sharing, in this model."""
        for leaf in self.leaves:
            branched = [batch for batch in self.work.get(id(leaf), []) if batch.ends is not None]
            if branched and not self._same(model, self.pairs[id(leaf)], branched[0].requests):
                return False
        return True

    def _same(self, model: nn.Module, pairs: list[Pair], requests: list[int]) -> bool:
        group = [pairs[i] for i in requests[:SAMPLE]]
        try:
            shared, apart = (
                log_likelihoods(model, batches(forest(group, self.max_length, w), 1), len(group), _unheard)
                for w in (1 << 30, None)
            )
        except NotFiniteError:
            return True  # the scoring itself tells, with the task's name
        except (TypeError, ValueError, RuntimeError):
            return False
        tolerance = TOLERANCE.get(next(model.parameters()).dtype, 0.5)
        return all(abs(s[0] - a[0]) <= tolerance * (1 + abs(a[0])) for s, a in zip(shared, apart))

    def _try_one(self, model: nn.Module, prompt: str) -> None:
        """Generation would turn NaN logits into text: look at one prompt's logits first."""
        tokens = torch.tensor([self.lm.tok_encode(prompt)[-self.max_length :]], device=self.lm.device)
        with torch.no_grad():
            if torch.isnan(model(input_ids=tokens, use_cache=False).logits).any():
                raise NotFiniteError("the model's logits are NaN")


def _unheard(n: int) -> None:
    pass
