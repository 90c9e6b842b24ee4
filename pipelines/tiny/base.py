"""The tiny base: a word-level tokenizer and a Llama of a quarter of a million parameters, pre-trained for seconds."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from conf.errors import UserError
from conf.schema import Base
from pipelines.process import threads
from pipelines.progress import SILENT, Progress
from pipelines.tiny.generators import SKILLS, SYMBOLS
from pipelines.tiny.skills import EQUALS, items

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

VERSION = 1
"""Goes up whenever the same specification would give other weights."""

PAD, BOS, EOS, UNKNOWN = SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CONTEXT = 512
"""Longest sequence of the tiny model, in tokens."""

HEADS, BATCH, PEAK_LR, WARMUP, ITEMS = 4, 128, 3e-3, 30, 2048
WEIGHTS = {
    "add": 1.2, "dist": 2.0, "second": 0.8, "count": 0.5, "seq": 1.3, "close": 0.4, "at": 1.2, "back": 1.3,
    "most": 0.4, "top": 0.4,
}  # fmt: skip
"""Share of a skill in the mixture (1 where it is not named), so that the base is mediocre at all of them."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: splits at white space, then takes the longest known piece of each word.

    Every word of the skills is one token. Other ASCII text splits into letters, digits and signs, so that ordinary
    benchmarks can be run on the tiny model too; words with further characters are unknown. No token is added by itself.
    """
    known = dict.fromkeys([*SPECIAL, EQUALS, *SYMBOLS, *SKILLS, *string.ascii_lowercase, *string.punctuation])
    ids = {symbol: i for i, symbol in enumerate(known)}
    pieces = Tokenizer(
        models.WordPiece(ids, unk_token=UNKNOWN, continuing_subword_prefix="", max_input_chars_per_word=100)
    )
    pieces.normalizer = normalizers.Lowercase()
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def check_size(spec: Base) -> None:
    """UserError for a width that four heads cannot share, and for no layers or steps."""
    if spec.hidden < 8 or spec.hidden % 8 or spec.layers < 1 or spec.steps < 1:
        raise UserError(
            f"a tiny base of hidden={spec.hidden}, layers={spec.layers}, steps={spec.steps} cannot be made",
            where=f"base {spec.name}",
            do="take a hidden size that is a multiple of 8, and one layer and step at least",
        )


def make_base(spec: Base, out: Path, progress: Progress = SILENT) -> None:
    """Pre-train the tiny base and write it to ``out`` as an ordinary transformers checkpoint.

    One thread and one seed fix every bit on a given machine; the caller's random state and threads are left as found.

    Raises:
        UserError: A width that four heads cannot share, or no layers or steps.
    """
    check_size(spec)
    symbols = tokenizer()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), threads(1):
        torch.manual_seed(spec.seed)
        model = fresh_model(spec, symbols)
        ids, lengths, share = _mixture(symbols, spec.seed)
        pretrain(
            model, lambda rows: answer_loss(model, ids[rows], lengths[rows]), share, spec, BATCH, PEAK_LR, progress
        )
    out.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    save_file(model.state_dict(), out / "model.safetensors", metadata={"format": "pt"})
    symbols.save_pretrained(out)


def fresh_model(spec: Base, symbols: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of the given width and depth, drawn from torch's global random state."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(symbols),
        hidden_size=spec.hidden,
        intermediate_size=-(-spec.hidden * 8 // 3 // 8) * 8,
        num_hidden_layers=spec.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5 / spec.hidden**0.5,
        tie_word_embeddings=False,
        pad_token_id=symbols.pad_token_id,
        bos_token_id=symbols.bos_token_id,
        eos_token_id=symbols.eos_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def encode(symbols: PreTrainedTokenizerFast, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids of ``prompt answer`` texts with an end token, padded right: ids [n, L] and lengths [n]."""
    encoded = symbols(texts, add_special_tokens=False)["input_ids"]
    rows = [torch.tensor([*ids, symbols.eos_token_id]) for ids in encoded]
    lengths = torch.tensor([len(row) for row in rows])
    return pad_sequence(rows, batch_first=True, padding_value=symbols.pad_token_id), lengths


def answer_loss(model: LlamaForCausalLM, ids: Tensor, lengths: Tensor) -> Tensor:
    """Mean cross-entropy of the answer and the end token of every row; right padding needs no mask."""
    hidden = model.model(input_ids=ids[:, : int(lengths.max()) - 1], use_cache=False).last_hidden_state  # [n, L, d]
    rows = torch.arange(len(ids)).repeat(2)
    places = torch.cat([lengths - 3, lengths - 2])  # the equals sign tells the answer, the answer tells the end
    logits = model.lm_head(hidden[rows, places])  # [2 n, V]
    return cross_entropy(logits, ids[rows, places + 1])


def pretrain(
    model: PreTrainedModel, loss: Callable[[Tensor], Tensor], share: np.ndarray, spec: Base, batch: int, peak: float,
    progress: Progress,
) -> None:  # fmt: skip
    """Train a model in place with AdamW, its rate rising to ``peak`` over the first steps.

    ``loss`` is of the places [batch] of some rows, which are drawn by their cumulative probability ``share`` [n].
    """
    rng = np.random.RandomState(spec.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    with progress.step("pre-train the tiny base", total=spec.steps) as bar:
        for t in range(spec.steps):
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1.0, (t + 1) / WARMUP)
            value = loss(torch.from_numpy(share.searchsorted(rng.random_sample(batch), side="right")))
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.advance(loss=value.item())
    model.eval()


def _mixture(symbols: PreTrainedTokenizerFast, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Training rows of all skills and the cumulative probability of each row: [n, L], [n], [n]."""
    texts: list[str] = []
    weight: list[float] = []
    for name in SKILLS:
        rows = items(name, "train", ITEMS, seed=seed + 1_000_003)  # other items than an expert's
        texts += [f"{item.prompt} {item.answer}" for item in rows]
        weight += [WEIGHTS.get(name, 1.0) / len(rows)] * len(rows)
    ids, lengths = encode(symbols, texts)
    total = np.cumsum(weight)
    return ids, lengths, total / total[-1]
