"""Checkpoints of real shapes with random weights, written tensor by tensor, for the benchmarks that need size."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from pipelines.checkpoints.headers import TensorInfo
from pipelines.checkpoints.write import ShardWriter, plan_shards

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": True},
    "0.1b": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
             "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip
"""Llama 3.1 and 3.2 as published, by size, and two small ones."""


def llama(shape: str, layers: int | None = None) -> Any:
    """transformers' configuration of a shape, or of one with fewer layers."""
    from transformers import LlamaConfig

    chosen = SHAPES[shape] | ({"num_hidden_layers": layers} if layers else {})
    return LlamaConfig(**chosen, max_position_embeddings=4096, pad_token_id=0, dtype=torch.bfloat16)


def write_models(
    folder: Path, shape: str, experts: int, device: str = "cpu", tokenizer: Any = None, layers: int | None = None
) -> list[Path]:
    """A random bf16 base and experts a small step away from it; one tensor is held at a time."""
    from transformers import LlamaForCausalLM

    config = llama(shape, layers)
    with torch.device("meta"):
        empty = LlamaForCausalLM(config)
    tied = "lm_head.weight" if config.tie_word_embeddings else ""
    outputs = {n: TensorInfo("bfloat16", tuple(t.shape)) for n, t in sorted(empty.state_dict().items()) if n != tied}
    paths = [folder / f"{shape}-{k}" for k in range(experts + 1)]
    for k, path in enumerate(paths):
        path.mkdir(parents=True)
        config.save_pretrained(path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        (path / "about.json").write_text(json.dumps({"model": k}))
        with ShardWriter(path, plan_shards(outputs, 5 * 10**9)) as writer:
            for i, (name, info) in enumerate(outputs.items()):
                writer.write(name, _weights(info, i, k, device))
    return paths


def _weights(info: TensorInfo, tensor: int, model: int, device: str) -> torch.Tensor:
    """The base's tensor, or an expert's: the base's with a small difference of its own."""
    if len(info.shape) == 1:
        value = torch.ones(info.shape, dtype=torch.bfloat16, device=device)
    else:
        value = _noise(info, tensor, device) * (0.5 / info.shape[1] ** 0.5)
    return value.add_(_noise(info, 1000 * model + tensor, device), alpha=2e-3) if model else value


@cache
def _stretch(device: str) -> torch.Tensor:
    """Random numbers enough to begin anywhere; no row length divides their number, so no two rows are alike."""
    return torch.randn(4_194_301, device=device).bfloat16()


def _noise(info: TensorInfo, seed: int, device: str) -> torch.Tensor:
    """Random numbers at the speed of memory: one stretch of them repeated, from a place of its own."""
    stretch = _stretch(device)
    start = seed * 7_919 % len(stretch)
    return stretch.repeat(-(-(info.count + start) // len(stretch)))[start : start + info.count].view(info.shape)


def word_rows(
    folder: Path, documents: int, question: tuple[int, int] = (40, 300), option: tuple[int, int] = (3, 30)
) -> list[dict[str, Any]]:
    """Documents of random words with four options each, and the task ``words`` that asks them, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)

    def text(lengths: tuple[int, int]) -> str:
        return " ".join(f"w{rng.randrange(4092)}" for _ in range(rng.randint(*lengths)))

    rows = [{"q": text(question), "a": [text(option) for _ in range(4)], "gold": 0} for _ in range(documents)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "words", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{q}}", "doc_to_choice": "a",
        "doc_to_target": "gold", "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "words.yaml").write_text(yaml.safe_dump(task))
    return rows
