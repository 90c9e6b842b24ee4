"""lm-eval's Hugging Face model without a model: weights come and go, tokenizer, prompts and tokens stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from conf.errors import UserError
from pipelines.evaluate.forward import Answer
from pipelines.evaluate.trie import Pair


class _Vacant:
    """What stands in for a model while there is none."""

    device = torch.device("cpu")
    name_or_path = ""

    def __init__(self, config: PretrainedConfig):
        self.config = config


class LiveLM(HFLM):
    """An HFLM whose model is lent to it for one evaluation at a time.

    Generation and rolling log-likelihood run by HFLM's own code; encoding gives HFLM's own tokens, faster.
    """

    def __init__(self, tokenizer_folder: Path, *, batch_size: int, max_length: int | None):
        config = PretrainedConfig()
        if (Path(tokenizer_folder) / "config.json").is_file():
            config = AutoConfig.from_pretrained(tokenizer_folder)
        self._vacant = _Vacant(config)
        self._encoded: dict[str, list[int]] = {}
        self._tick: Callable[[int], None] = lambda rows: None
        super().__init__(
            pretrained=self._vacant,
            backend="causal",
            tokenizer=_tokenizer(tokenizer_folder),
            batch_size=batch_size,
            max_length=max_length,
        )

    @contextmanager
    def lent(self, model: nn.Module, batch_size: int) -> Iterator[None]:
        """Hold a model for a while; nothing of it is kept afterwards."""
        self._model, self._config, self._device = model, model.config, next(model.parameters()).device
        self.batch_size_per_gpu = batch_size
        try:
            yield
        finally:
            self._model, self._config, self._device = self._vacant, self._vacant.config, self._vacant.device

    def encode_pairs(self, texts: list[tuple[str, str]]) -> list[Pair]:
        """Tokens of (context, continuation) requests, as ``loglikelihood`` would make them."""
        self._encode_all({s for context, continuation in texts for s in _strings(context, continuation)})
        try:
            return [self._pair(context, continuation) for context, continuation in texts]
        finally:
            self._encoded = {}

    def answer(self, pairs: list[Pair], tick: Callable[[int], None]) -> list[Answer]:
        """Answers by HFLM's own code, in its batches: in 16 bits, and with some embeddings of positions, an answer
        depends on what else is in the batch."""
        self._tick = tick
        try:
            return self._loglikelihood_tokens([(None, *pair) for pair in pairs])
        finally:
            self._tick = lambda rows: None

    def _model_call(self, inps: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        logits = super()._model_call(inps, **kwargs)
        self._tick(len(inps))
        return logits

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

    def _encode_all(self, strings: set[str]) -> None:
        bos = self.tokenizer.decode(self.prefix_token_id)
        plain = sorted(s for s in strings if s and not has_bos_prefix(s, bos))
        if plain:
            self._encoded = dict(zip(plain, self.tokenizer(plain)["input_ids"], strict=True))

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError, KeyError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"there is no tokenizer that can be read: {why}"
        raise UserError(what, where=str(folder), do="put the tokenizer's files beside the weights") from None


def _strings(context: str, continuation: str) -> tuple[str, str]:
    """The two strings that lm-eval encodes for a request: both together, and the context without trailing space."""
    return context + continuation, context.rstrip()
