"""The requests of a suite's tasks, tokenised once, and how one model after another is made to answer them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from torch import nn
from transformers import PretrainedConfig

from conf.errors import UserError
from conf.schema import Suite
from pipelines.checkpoints.load import load_config
from pipelines.evaluate.build import Leaf
from pipelines.evaluate.engine import Answer, Batch, Pair, batches, can_share, forest, log_likelihoods
from pipelines.evaluate.reader import open_tokenizer
from pipelines.evaluate.vllm_engine import VllmEngine
from pipelines.process import device_of, give_back

Tick = Callable[..., None]
"""Told how many sequences are done, and of which ``task``."""

Extent = tuple[int, int, int]
"""Of some requests: tokens of the shortest context and of the longest option, and the highest token."""


class _NoModel:
    """What stands in for a model while there is none."""

    device = torch.device("cpu")
    name_or_path = ""

    def __init__(self, config: PretrainedConfig):
        self.config = config


class LiveLM(HFLM):
    """lm-eval's HFLM without a model of its own: weights come and go, tokenizer, prompts and tokens stay.

    Generation and rolling log-likelihood run by HFLM's own code; encoding gives HFLM's own tokens, faster. Where the
    suite generates with vLLM, ``engine`` writes answers instead.
    """

    def __init__(self, tokenizer_folder: Path, suite: Suite, engine: VllmEngine | None = None):
        self._suite, self._loaded = suite, False
        self._engine = engine or VllmEngine() if suite.generate_with == "vllm" else None
        known = (Path(tokenizer_folder) / "config.json").is_file()
        self._none = _NoModel(load_config(tokenizer_folder, suite.trust_remote_code) if known else PretrainedConfig())
        self._encoded: dict[str, list[int]] = {}
        self._tick: Tick = lambda rows: None
        super().__init__(
            pretrained=self._none,
            backend="causal",
            tokenizer=open_tokenizer(tokenizer_folder, suite),
            batch_size=suite.batch_size,
            max_length=suite.max_length,
            enable_thinking=suite.enable_thinking,
            think_end_token=suite.think_end_token,
        )

    @contextmanager
    def holding(self, model: nn.Module, batch_size: int) -> Iterator[None]:
        """Hold a model for a while; nothing of it is kept afterwards."""
        self._model, self._config, self._device = model, model.config, device_of(model)
        self.batch_size_per_gpu, self._loaded = batch_size, False
        try:
            yield
        finally:
            self._model, self._config, self._device = self._none, self._none.config, self._none.device

    def encode_pairs(self, texts: list[tuple[str, str]]) -> list[Pair]:
        """Tokens of (context, continuation) requests, as ``loglikelihood`` would make them."""
        # what lm-eval encodes for a request: both together, and the context without trailing space
        strings = {s for context, continuation in texts for s in (context + continuation, context.rstrip())}
        bos = self.tokenizer.decode(self.prefix_token_id)
        plain = sorted(s for s in strings if s and not has_bos_prefix(s, bos))
        try:
            self._encoded = dict(zip(plain, self.tokenizer(plain)["input_ids"], strict=True)) if plain else {}
            return [self._pair(context, continuation) for context, continuation in texts]
        finally:
            self._encoded = {}

    def answer(self, pairs: list[Pair], tick: Tick, tokens: int | None = None) -> list[Answer]:
        """Answers by HFLM's own code, in its batches: in 16 bits, and with some embeddings of positions, an answer
        depends on what else is in the batch. With ``tokens`` a batch has as many rows as these hold."""
        rows, self._budget, self._first = self.batch_size_per_gpu, tokens or 0, 0
        asking: Any = "auto" if tokens else rows  # auto has HFLM ask _batch_scheduler
        try:
            self.batch_size_per_gpu = asking
            with self._telling(tick):
                return self._loglikelihood_tokens([(None, *pair) for pair in pairs])
        finally:
            self.batch_size_per_gpu = rows

    def _batch_scheduler(self, pos: int, requests: Any) -> int:
        """Rows of the batch that the request at ``pos`` is in: asked of all in order, longest first."""
        if pos == self._first:
            _, context, continuation = requests[pos]
            longest = min(len(context) + len(continuation) - 1, self.max_length)
            self._rows = max(1, self._budget // max(1, longest))
            self._first = pos + self._rows
        return self._rows

    def generate(self, requests: list[Instance], tick: Tick) -> list[str]:
        """Written answers, by HFLM's own code or by vLLM, which is sent the model once while it is held."""
        if self._engine is not None:
            if not self._loaded:
                self._engine.load(self.model, self.tokenizer.name_or_path, self.max_length, self._suite)
                self._loaded = True
            return self._engine.answer(self, requests, tick)
        with self._telling(tick):
            return self.generate_until(requests, disable_tqdm=True)

    @contextmanager
    def _telling(self, tick: Tick) -> Iterator[None]:
        self._tick = tick
        try:
            yield
        finally:
            self._tick = lambda rows: None

    def _model_call(self, inps: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        logits = super()._model_call(inps, **kwargs)
        self._tick(len(inps))
        return logits

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        tokens = super()._model_generate(context, *args, **kwargs)
        self._tick(len(context))
        return tokens

    def _pair(self, context: str, continuation: str) -> Pair:
        if context:
            return self._encode_pair(context, continuation)
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        first = self.prefix_token_id
        return ([first], tokens) if first != tokens[0] else (tokens[:1], tokens[1:])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """HFLM's encoding, from the batch made beforehand where there is one."""
        if add_special_tokens is None and not kwargs and string in self._encoded:
            return self._encoded[string]
        return super().tok_encode(string, add_special_tokens=add_special_tokens, **kwargs)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)


class NotFiniteError(ArithmeticError):
    """The model's logits are NaN."""


class Scorer:
    """How every leaf's requests are answered, for one model and batch size at a time.

    Where prefixes can be shared, trees are laid out once per context length, batch size and width. Elsewhere lm-eval's
    own code answers all log-likelihood requests of the suite in one call, as ``lm_eval run`` on its tasks does.
    """

    def __init__(self, lm: LiveLM, suite: Suite, leaves: list[Leaf]):
        self.lm, self.suite = lm, suite
        self.batch_size, self.share = suite.batch_size, bool(suite.share_prefix)
        self.batch_tokens = suite.batch_tokens
        self.pairs: dict[int, list[Pair]] = {}
        self.extents: dict[int, Extent] = {}
        self.work: dict[int, list[Batch]] = {}
        self.answers: dict[int, list[Answer]] = {}
        self.made_for: tuple[int | None, ...] | None = None
        self.max_length, self.vocabulary, self.others = 0, 0, 0
        for leaf in leaves:
            kinds = _by_kind(leaf)
            if requests := kinds.pop("loglikelihood", None):
                self.pairs[id(leaf)] = lm.encode_pairs([request.args for request in requests])
                self.extents[id(leaf)] = _extent(self.pairs[id(leaf)])
            self.others += sum(request.repeats or 1 for requests in kinds.values() for request in requests)

    @property
    def rows(self) -> int | None:
        """Sequences that one evaluation computes, as far as known."""
        if self.share:
            return self.others + sum(len(b.tokens) for work in self.work.values() for b in work) or None
        return self.others + len({hash((*c, *t[:-1])) for pairs in self._fitting().values() for c, t in pairs}) or None

    def prepare(self, model: nn.Module) -> None:
        """Decide whether a model can share prefixes, and lay out the batches for its context length if so."""
        self.max_length, self.answers = self.lm.max_length, {}
        self.vocabulary, width = model.get_input_embeddings().weight.shape
        pairs = self._fitting()
        longest = max((len(c) + len(t) - 1 for part in pairs.values() for c, t in part), default=0)
        longest, always = min(longest, self.max_length), self.suite.share_prefix == "always"
        self.share = bool(self.suite.share_prefix) and can_share(model, longest, always)
        fill = device_of(model).type != "cpu"
        wanted = (self.max_length, self.batch_size, self.batch_tokens, width, self.vocabulary, fill)
        if self.share and self.made_for != wanted:
            trees = {key: forest(part, self.max_length, width) for key, part in pairs.items()}
            self.work = {key: batches(part, self.batch_size, fill, self.batch_tokens) for key, part in trees.items()}
            self.made_for = wanted

    def halve(self, who: str) -> None:
        """Halve the batch size after running out of memory. Raises UserError when it is one already."""
        if self.batch_size == 1:
            raise UserError(f"out of memory at batch size 1 ({who})", do="use a larger device or suite.max_length")
        self.batch_size //= 2
        self.batch_tokens = self.batch_tokens and max(1, self.batch_tokens // 2)
        give_back()

    def run(self, leaf: Leaf, model: nn.Module, tick: Tick) -> None:
        """Answer a leaf's requests and pass the answers through its filters."""
        told = partial(tick, task=leaf.name)
        for kind, requests in _by_kind(leaf).items():
            if kind == "loglikelihood":  # of all tasks at once where prefixes are not shared
                answers: list[Any] = self._log_likelihoods(leaf, model, told if self.share else tick)
            else:
                self._probe(model, leaf.name, [request.args[0] for request in requests])
                requests = [request for request in requests for _ in range(request.repeats or 1)]
                if kind == "generate_until":
                    answers = self.lm.generate(requests, told)
                else:
                    answers = getattr(self.lm, kind)(requests, disable_tqdm=True)
                    told(len(requests))
            for request, given in zip(requests, answers, strict=True):
                request.resps.append(given)
        leaf.task.apply_filters()

    def describe(self, settings: dict[str, Any], model: nn.Module) -> dict[str, Any]:
        """The settings with what this model was really scored with."""
        weight, bits = next(model.parameters()), self.suite.quantization
        quantised = {"quantization": f"{bits}, bitsandbytes {version('bitsandbytes')}"} if bits else {}
        return {
            **settings,
            "device": str(device_of(model)),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
            **({"batch_tokens": self.batch_tokens} if self.batch_tokens else {}),
            "share_prefix": self.share,
            "max_length": self.max_length,
            **quantised,
            **({"generate_with": f"vllm {version('vllm')}"} if self.suite.generate_with == "vllm" else {}),
        }

    def _misfit(self, extent: Extent) -> str | None:
        """Why the model cannot answer requests of this extent, if it cannot."""
        shortest, longest, highest = extent
        if shortest == 0:
            return "a context of white space alone gives no tokens"
        if longest > self.max_length:
            return f"an option of {longest} tokens does not fit a context length of {self.max_length}"
        if highest >= self.vocabulary:
            return f"the tokenizer gives token {highest}, and the model has embeddings for {self.vocabulary}"
        return None

    def _fitting(self) -> dict[int, list[Pair]]:
        """Requests of the leaves that the model can answer."""
        return {key: pairs for key, pairs in self.pairs.items() if self._misfit(self.extents[key]) is None}

    def _log_likelihoods(self, leaf: Leaf, model: nn.Module, tick: Tick) -> list[Answer]:
        key = id(leaf)
        if problem := self._misfit(self.extents[key]):
            raise UserError(problem, where=leaf.name)
        if self.share:
            answers = log_likelihoods(model, self.work[key], len(self.pairs[key]), tick)
        else:
            if not self.answers:
                fitting = self._fitting()
                given = iter(
                    self.lm.answer([pair for part in fitting.values() for pair in part], tick, self.batch_tokens)
                )
                self.answers = {key: list(islice(given, len(part))) for key, part in fitting.items()}
            answers = self.answers[key]
        if any(math.isnan(value) for value, _ in answers):
            raise NotFiniteError("the model's logits are NaN")
        return answers

    def _probe(self, model: nn.Module, name: str, prompts: list[str]) -> None:
        """Look at one prompt's logits, as generation would turn NaN into text."""
        prompt, doubtful = prompts[0], prompts if len(self.lm.tokenizer) > self.vocabulary else prompts[:1]
        if problem := self._misfit(_extent([(self.lm.tok_encode(text), [0]) for text in doubtful])):
            raise UserError(problem, where=name)
        tokens = torch.tensor([self.lm.tok_encode(prompt)[-self.max_length :]], device=self.lm.device)
        with torch.no_grad():
            if torch.isnan(model(input_ids=tokens, use_cache=False).logits).any():
                raise NotFiniteError("the model's logits are NaN")


def _extent(pairs: list[Pair]) -> Extent:
    shortest = min(len(context) for context, _ in pairs)
    return shortest, max(len(option) for _, option in pairs), max(max((*context, *option)) for context, option in pairs)


def _by_kind(leaf: Leaf) -> dict[str, list[Instance]]:
    """A leaf's requests by what they ask of the model."""
    kinds: dict[str, list[Instance]] = {}
    for request in leaf.task._instances or []:
        kinds.setdefault(request.request_type, []).append(request)
    return kinds
