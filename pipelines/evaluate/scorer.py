"""The requests of a suite's tasks, tokenised once, and how a model is made to answer them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import nn

from conf.errors import UserError
from conf.schema import Suite
from pipelines.evaluate.entries import Leaf
from pipelines.evaluate.forward import Answer, log_likelihoods
from pipelines.evaluate.lm import LiveLM
from pipelines.evaluate.sharing import can_share
from pipelines.evaluate.trie import Batch, Pair, batches, forest

Tick = Callable[[int], None]


class NotFiniteError(ArithmeticError):
    """The model's logits are NaN."""


class Scorer:
    """How every leaf's requests are answered, for one model and batch size at a time.

    Where prefixes can be shared, trees are laid out once per context length, batch size and width. Elsewhere lm-eval's
    own code answers all log-likelihood requests of the suite in one call, as ``lm_eval run`` on its tasks does.
    """

    def __init__(self, lm: LiveLM, suite: Suite, leaves: list[Leaf]):
        self.lm, self.suite = lm, suite
        self.batch_size, self.share = suite.batch_size, suite.share_prefix
        self.pairs: dict[int, list[Pair]] = {}
        self.work: dict[int, list[Batch]] = {}
        self.answers: dict[int, list[Answer]] = {}
        self.made_for: tuple[int, int, int] | None = None
        self.max_length = 0
        for leaf in leaves:
            if leaf.instances and leaf.instances[0][0].request_type == "loglikelihood":
                self._tokenise(leaf)

    @property
    def rows(self) -> int | None:
        """Sequences that one evaluation computes, as far as known."""
        if self.share:
            return sum(len(b.tokens) for work in self.work.values() for b in work) or None
        return len({hash((*c, *t[:-1])) for pairs in self._fitting().values() for c, t in pairs}) or None

    def prepare(self, model: nn.Module) -> None:
        """See whether a model can share prefixes, and lay out the batches for its context length if so."""
        self.max_length, self.answers = self.lm.max_length, {}
        pairs = self._fitting()
        longest = max((len(c) + len(t) - 1 for part in pairs.values() for c, t in part), default=0)
        self.share = self.suite.share_prefix and can_share(model, min(longest, self.max_length))
        if not self.share:
            return
        width = model.get_input_embeddings().embedding_dim
        wanted = (self.max_length, self.batch_size, width)
        if self.made_for != wanted:
            trees = {key: forest(part, self.max_length, width) for key, part in pairs.items()}
            self.work = {key: batches(part, self.batch_size) for key, part in trees.items()}
            self.made_for = wanted

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
        if kind == "loglikelihood":
            answers: list[Any] = self._log_likelihoods(leaf, model, tick)
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

    def _longest_option(self, key: int) -> int:
        return max(len(option) for _, option in self.pairs[key])

    def _fitting(self) -> dict[int, list[Pair]]:
        """Requests of the leaves whose options fit the context."""
        return {key: pairs for key, pairs in self.pairs.items() if self._longest_option(key) <= self.max_length}

    def _log_likelihoods(self, leaf: Leaf, model: nn.Module, tick: Tick) -> list[Answer]:
        key, pairs = id(leaf), self.pairs[id(leaf)]
        if (longest := self._longest_option(key)) > self.max_length:
            raise ValueError(f"an option of {longest} tokens does not fit a context length of {self.max_length}")
        if not self.share and not self.answers:
            fitting = self._fitting()
            given = iter(self.lm.answer([pair for part in fitting.values() for pair in part], tick))
            self.answers = {key: list(islice(given, len(part))) for key, part in fitting.items()}
        answers = log_likelihoods(model, self.work[key], len(pairs), tick) if self.share else self.answers[key]
        if any(math.isnan(value) for value, _ in answers):
            raise NotFiniteError("the model's logits are NaN")
        return answers

    def _try_one(self, model: nn.Module, prompt: str) -> None:
        """Generation would turn NaN logits into text: look at one prompt's logits first."""
        tokens = torch.tensor([self.lm.tok_encode(prompt)[-self.max_length :]], device=self.lm.device)
        with torch.no_grad():
            if torch.isnan(model(input_ids=tokens, use_cache=False).logits).any():
                raise NotFiniteError("the model's logits are NaN")
