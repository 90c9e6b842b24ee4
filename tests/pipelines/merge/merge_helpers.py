"""Words shared by the tests of merging."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge

WORDS = ["<eos>", *(f"w{i}" for i in range(39))]
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = "{{ messages[0].content }}"
    return tokenizer


def perturbed(base: LlamaForCausalLM, seed: int, scale: float = 0.05) -> LlamaForCausalLM:
    """A copy of the base with a task vector of random numbers."""
    model = LlamaForCausalLM(base.config)
    model.load_state_dict(base.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def save(model: LlamaForCausalLM, folder: Path, dtype: torch.dtype = torch.float32, **options: object) -> Path:
    model.to(dtype).save_pretrained(folder, **options)
    word_tokenizer(WORDS[: model.config.vocab_size]).save_pretrained(folder)
    return folder


def merge_of(base: Path, experts: Sequence[Path], method: str, parameters: dict | None = None, **fields: Any) -> Merge:
    recipe = Recipe(str(base), tuple(map(str, experts)), method, parameters or {}, **fields)
    return Merge(recipe, open_checkpoint(str(base)), [open_checkpoint(str(e)) for e in experts])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("model*.safetensors")) for name, t in load_file(file).items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name
