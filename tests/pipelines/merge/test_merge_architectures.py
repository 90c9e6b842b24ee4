"""A merge into a live model is the merged folder as it loads, however transformers names and packs the weights."""

from __future__ import annotations

import pytest
import torch
from merge_helpers import assert_same, merge_of
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.merge.live import merge_into
from pipelines.merge.stream import single_model
from pipelines.merge.write import write_merge

PLAIN = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
GROUPED = {**PLAIN, "num_key_value_heads": 1, "head_dim": 8}
OLD = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "pad_token_id": 0}
EXPERTS = {**GROUPED, "num_local_experts": 11, "num_experts": 11, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    **PLAIN,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
KINDS = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "tie_word_embeddings": True},
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
    "gemma3": {"text_config": GROUPED, "vision_config": {**PLAIN, "image_size": 28, "patch_size": 14}},
    "phi": PLAIN,
    "phi3": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED,
    "cohere": GROUPED,
    "cohere2": GROUPED,
    "granite": GROUPED,
    "glm": GROUPED,
    "glm4": GROUPED,
    "starcoder2": GROUPED,
    "stablelm": GROUPED,
    "nemotron": GROUPED,
    "smollm3": GROUPED,
    "helium": GROUPED,
    "exaone4": {**GROUPED, "sliding_window": 8},
    "apertus": GROUPED,
    "seed_oss": GROUPED,
    "gpt2": OLD,
    "gptj": {**OLD, "rotary_dim": 4},
    "codegen": {**OLD, "n_head": 4, "rotary_dim": 4},
    "gpt_bigcode": OLD,
    "gpt_neo": {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_neox": PLAIN,
    "gpt_neox_japanese": PLAIN,
    "bloom": {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": PLAIN,
    "mpt": {"vocab_size": 40, "d_model": 16, "n_layers": 2, "n_heads": 2},
    "opt": {**PLAIN, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "xglm": {"vocab_size": 40, "d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 2},
    "biogpt": PLAIN,
    "persimmon": PLAIN,
    "openai-gpt": OLD,
    "mixtral": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
    "olmoe": EXPERTS,
    "phimoe": EXPERTS,
    "granitemoe": EXPERTS,
    "jetmoe": {**EXPERTS, "kv_channels": 8, "num_key_value_heads": 1},
    "gpt_oss": EXPERTS,
    "dbrx": {
        "vocab_size": 40,
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 2,
        "max_seq_len": 32,
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 11, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0},
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "glm4_moe": {**LATENT, "head_dim": 8},
    "ernie4_5_moe": {**EXPERTS, "moe_num_experts": 11, "moe_k": 2},
    "qwen3_next": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
    },
    "lfm2": {**GROUPED, "full_attn_idxs": [1], "block_multiple_of": 8},
    "falcon_h1": {**GROUPED, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "jamba": {
        **EXPERTS,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 0,
        "expert_layer_period": 2,
        "mamba_dt_rank": 4,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
    "mamba": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "mamba2": {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "state_size": 4,
        "num_heads": 4,
        "head_dim": 8,
        "n_groups": 1,
    },
    "recurrent_gemma": {**GROUPED, "num_hidden_layers": 3, "attention_window_size": 8},
    "rwkv": {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "attention_hidden_size": 16,
        "intermediate_size": 24,
    },
    "bamba": {**GROUPED, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "zamba2": {
        **PLAIN,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "n_mamba_heads": 4,
        "mamba_d_state": 8,
        "num_mem_blocks": 1,
    },
}


@pytest.fixture(autouse=True)
def quiet():
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def make(kind, folders):
    """A base of random weights and experts near it, as transformers saves them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**KINDS[kind]), dtype=torch.float32)
        for folder in folders:
            model.save_pretrained(folder)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", KINDS)
def test_the_live_model_is_the_one_loaded_from_the_merged_folder(tmp_path, kind):
    base, *experts = [tmp_path / str(k) for k in range(3)]
    make(kind, [base, *experts])
    live = AutoModelForCausalLM.from_pretrained(base)
    merge_into(live, single_model(open_checkpoint(str(base)), open_checkpoint(str(experts[0]))))
    assert_same(dict(live.state_dict()), dict(AutoModelForCausalLM.from_pretrained(experts[0]).state_dict()))
    for method, dtype in (("linear", torch.float32), ("dare", torch.bfloat16)):
        merge = merge_of(base, experts, method, seed=3)
        assert merge.problems() == []
        live = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        before = {name: t.clone() for name, t in live.state_dict().items()}
        merge_into(live, merge)
        assert sum(not torch.equal(t, before[n]) for n, t in live.state_dict().items()) > 5
        loaded = AutoModelForCausalLM.from_pretrained(write_merge(merge, tmp_path / method), dtype=dtype)
        assert_same(dict(live.state_dict()), dict(loaded.state_dict()))
        tokens = torch.arange(1, 9)[None]
        with torch.no_grad():
            assert torch.equal(live.eval()(tokens).logits, loaded.eval()(tokens).logits)
