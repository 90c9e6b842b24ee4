"""Shared prefixes in other architectures: right where they work, turned off where they cannot."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from conf.schema import Suite, SuiteTask
from pipelines.evaluate.evaluator import Evaluator

COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
KINDS = {
    "qwen3": ({**COMMON, "num_key_value_heads": 1, "head_dim": 16}, True),
    "gpt2": ({"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2}, True),
    "gpt_neox": ({**COMMON, "rotary_pct": 0.5}, True),
    "gemma2": ({**COMMON, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 512}, True),
    "mistral": ({**COMMON, "num_key_value_heads": 1, "sliding_window": 8}, False),
    "mamba": ({"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, False),
    "bloom": ({"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 2}, False),
    "opt": (
        {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48},
        True,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_without_sharing(kind, folder, mirror):
    settings, shares = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings, pad_token_id=0)).float()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))  # so that a token's neighbours matter
    tasks = {"arc_easy": SuiteTask(limit=6), "winogrande": SuiteTask(limit=6)}
    results = {}
    for share in (True, False):
        suite = Suite(name="s", tasks=tasks, batch_size=4, share_prefix=share, max_length=512)
        evaluator = Evaluator(suite, folder, datasets=str(mirror))
        results[share] = evaluator.evaluate(model)
        assert results[share].errors == {}
    assert results[True].documents == results[False].documents
    assert results[True].versions["share_prefix"] is shares
