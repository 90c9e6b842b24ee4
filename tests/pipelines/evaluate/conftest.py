"""A tiny random model and its folder, a suite of built-in skills, and a mirror of real benchmark files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conf.schema import Suite, SuiteTask
from tests import own_documents

SKILLS = ("add", "odd", "close")


@pytest.fixture(scope="session", autouse=True)
def own_data_cache(tmp_path_factory) -> Iterator[None]:
    """What lm-eval makes of data sets is kept for this run alone: ``datasets`` takes one mirror for another."""
    import datasets.config

    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """An ordinary checkpoint: random Llama (seeded) with the built-in tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipelines.tiny.base import tokenizer

    out = tmp_path_factory.mktemp("random_llama")
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(out)
    words.save_pretrained(out)
    return out


@pytest.fixture
def model(folder):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder)


@pytest.fixture
def suite() -> Suite:
    tasks = {skill: SuiteTask(skill=skill) for skill in SKILLS}
    return Suite(name="skills", tasks=tasks, split="test", limit=40, batch_size=16)


@pytest.fixture(scope="session")
def mirror(data, tmp_path_factory) -> Path:
    """Benchmark files under the hub's names."""
    out = tmp_path_factory.mktemp("mirror")
    own_documents.mirror(data, out)
    return out
