"""Live models whose modules name or pack weights otherwise than their checkpoints."""

from __future__ import annotations

import pytest
import torch
from merge_helpers import assert_same, merge_of, weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig, Qwen3Config

from conf.errors import UserError
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.merge.live import merge_into
from pipelines.merge.stream import single_model
from pipelines.merge.write import write_merge

COMMON = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 0}
WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "mixtral": MixtralConfig(**COMMON, **WIDTH, num_local_experts=3, num_experts_per_tok=2),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0),
    "qwen3_tied": Qwen3Config(**COMMON, **WIDTH, tie_word_embeddings=True),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_live_model_is_the_written_one(tmp_path, kind):
    folders = []
    for k in range(3):
        torch.manual_seed(k)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind])
        model.save_pretrained(tmp_path / str(k))
        folders.append(tmp_path / str(k))
    merge = merge_of(folders[0], folders[1:], "task_arithmetic", {"lambda": 0.4})
    assert merge.problems() == []
    live = AutoModelForCausalLM.from_pretrained(folders[0])
    before = {name: t.clone() for name, t in live.state_dict().items()}
    merge_into(live, merge)
    write_merge(merge, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same(dict(live.state_dict()), dict(loaded.state_dict()))
    assert sum(not torch.equal(t, before[n]) for n, t in live.state_dict().items()) > 5
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(live(tokens).logits, loaded(tokens).logits)


def test_a_model_of_another_shape_is_told(pool, make_pool):
    base, experts = pool
    other, _ = make_pool(0, hidden_size=32)
    with pytest.raises(UserError, match=r"is \[.*\] in the merge and \[.*\] in the model"):
        merge_into(AutoModelForCausalLM.from_pretrained(other), merge_of(base, experts, "linear"))


def test_a_plain_module_with_other_names_is_told(pool):
    base, experts = pool
    with pytest.raises(UserError, match=r"the model has no lm_head\.weight"):
        merge_into(torch.nn.Linear(3, 3), merge_of(base, experts, "linear"))


def test_one_model_alone_is_its_own_checkpoint(pool, make_pool):
    base, experts = pool
    other, _ = make_pool(0, vocab_size=48, tie_word_embeddings=True)
    live = AutoModelForCausalLM.from_pretrained(base)
    for folder in (experts[0], other, base, experts[1]):
        merge_into(live, single_model(open_checkpoint(str(base)), open_checkpoint(str(folder))))
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert_same(dict(live.state_dict()), dict(loaded.state_dict()))
    assert_same(dict(live.state_dict()), weights(experts[1]))
    tied = AutoModelForCausalLM.from_pretrained(other)
    merge_into(tied, single_model(open_checkpoint(str(other)), open_checkpoint(str(experts[1]))))
    assert_same(dict(tied.state_dict()), weights(experts[1]))


def test_a_base_without_a_head_is_told(pool, tmp_path):
    base, _ = pool
    headless = {name: tensor for name, tensor in weights(base).items() if name != "lm_head.weight"}
    save_file(headless, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    merge = merge_of(tmp_path, [tmp_path], "linear")
    with pytest.raises(UserError, match=r"no lm_head\.weight"):
        merge_into(AutoModelForCausalLM.from_pretrained(base), merge)
