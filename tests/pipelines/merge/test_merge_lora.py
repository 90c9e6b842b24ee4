"""LoRA adapters merged on the fly are what peft's own merge gives."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from merge_helpers import WORDS, assert_same, merge_of, save, weights, word_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from conf.errors import UserError
from pipelines.checkpoints.adapters import SETTINGS, AdaptedCheckpoint
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.merge.live import merge_into


def make_adapter(base, folder, seed=0, **options):
    """An adapter with random weights saved by peft, and the state that peft merges it to."""
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"], **options}
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return folder, {n: t.clone() for n, t in wrapped.merge_and_unload().state_dict().items()}


VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {r"layers\.1\..*q_proj": 5}},
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "all_linear": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_is_what_peft_merges_it_to(pool, tmp_path, variant):
    base, _ = pool
    folder, expected = make_adapter(base, tmp_path / "lora", **VARIANTS[variant])
    merge = merge_of(base, [folder], "linear")
    assert merge.problems() == []
    merged = dict(merge.tensors())
    assert merged.keys() == expected.keys()
    changed = [name for name in merged if not torch.equal(merged[name], weights(base)[name])]
    assert len(changed) >= 3
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_bytes_are_read_in_pieces_as_they_are_mapped(pool, tmp_path):
    base = open_checkpoint(str(pool[0]))
    folder, _ = make_adapter(pool[0], tmp_path / "lora")
    (tmp_path / "config.json").write_text((pool[0] / "config.json").read_text())
    torch.save(weights(pool[0]), tmp_path / "pytorch_model.bin")
    pickled = open_checkpoint(str(tmp_path), allow_pickle=True)
    for model in (base, pickled, AdaptedCheckpoint(base, open_checkpoint(str(folder)))):
        for name in list(model.header)[:3] + [name for name in model.header if "q_proj" in name][:1]:
            tensor, into = model.tensor(name), memoryview(bytearray(model.header[name].size))
            read = model.reader(name)
            read(0, into[:6])
            read(6, into[6:])
            assert bytes(into) == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_fan_in_fan_out_layer(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=40, bos_token_id=0, eos_token_id=0)
    base = save(GPT2LMHeadModel(config), tmp_path / "base")
    folder, expected = make_adapter(
        base, tmp_path / "lora", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_rslora=True
    )
    model = AutoModelForCausalLM.from_pretrained(base)
    merge_into(model, merge_of(base, [folder], "linear"))
    for name, tensor in expected.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(
        model.state_dict()["transformer.h.0.attn.c_proj.weight"], weights(base)["transformer.h.0.attn.c_proj.weight"]
    )


def test_an_adapter_beside_a_whole_model(pool, tmp_path):
    base, experts = pool
    folder, expected = make_adapter(base, tmp_path / "lora")
    merged = dict(merge_of(base, [folder, experts[0]], "task_arithmetic", {"lambda": 0.5}).tensors())
    for name, start in weights(base).items():
        update = (expected[name] - start) + (weights(experts[0])[name] - start)
        torch.testing.assert_close(merged[name], start + 0.5 * update, rtol=1e-4, atol=1e-6)


def test_an_update_is_not_rounded_to_the_bases_dtype(make_pool, tmp_path):
    base, _ = make_pool(0, dtype=torch.bfloat16)
    folder, _ = make_adapter(base, tmp_path / "lora")
    adapted = AdaptedCheckpoint(open_checkpoint(str(base)), open_checkpoint(str(folder)))
    name = "model.layers.0.self_attn.q_proj.weight"
    parts = {n: t.double() for n, t in load_file(folder / "adapter_model.safetensors").items()}
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    exact = weights(base)[name].double() + 3.0 * parts[key.format("B")] @ parts[key.format("A")]
    assert adapted.header[name].dtype == "float32"
    torch.testing.assert_close(adapted.tensor(name).double(), exact, rtol=1e-6, atol=1e-7)


def test_threads_change_no_bit(pool, tmp_path):
    base, _ = pool
    folder, _ = make_adapter(base, tmp_path / "lora")
    one = dict(merge_of(base, [folder], "linear").tensors())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_same(one, dict(merge_of(base, [folder], "linear").tensors()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_embedding_of_its_own_unties_a_tied_base(make_pool, tmp_path):
    base, _ = make_pool(0, tie_word_embeddings=True)
    folder, expected = make_adapter(base, tmp_path / "lora", modules_to_save=["embed_tokens"])
    merge = merge_of(base, [folder], "linear")
    assert merge.layout.untied
    model = AutoModelForCausalLM.from_pretrained(base)
    merge_into(model, merge)
    torch.testing.assert_close(model.lm_head.weight, weights(base)["model.embed_tokens.weight"])
    torch.testing.assert_close(model.model.embed_tokens.weight, expected["model.embed_tokens.weight"])


def test_a_low_rank_is_told_where_the_spectrum_is_reshaped(make_pool, tmp_path):
    from pipelines.merge.layout import rank_notes
    from pipelines.merge.recipe import Recipe

    base, _ = make_pool(0)
    folder, _ = make_adapter(base, tmp_path / "lora")
    experts = merge_of(base, [folder], "linear").experts
    (note,) = rank_notes(Recipe(str(base), (str(folder),), "iso_c"), experts)
    assert "rank 4 at most, of 16" in note
    assert rank_notes(Recipe(str(base), (str(folder),), "ties"), experts) == []


def test_every_setting_of_peft_is_applied_refused_or_told():
    refused = {"layer_replication", "target_parameters", "alora_invocation_tokens", "use_qalora", "monteclora_config"}
    refused |= {"use_bdlora", "arrow_config", "kasa_config", "megatron_config"}
    assert {field.name for field in dataclasses.fields(LoraConfig)} <= {*SETTINGS.split(), *refused}


class TestProblems:
    """Adapters that cannot be applied, told from headers."""

    def altered(self, folder, settings=None, change=None):
        fields = json.loads((folder / "adapter_config.json").read_text()) | (settings or {})
        (folder / "adapter_config.json").write_text(json.dumps(fields))
        if change:
            state = load_file(folder / "adapter_model.safetensors")
            change(state)
            save_file(state, folder / "adapter_model.safetensors")
        return folder

    @pytest.mark.parametrize(
        ("settings", "what"),
        [
            ({"peft_type": "IA3"}, "IA3 adapter"),
            ({"init_lora_weights": "pissa_niter_4"}, "started from the base's weights"),
            ({"layer_replication": [[0, 1]]}, "layer_replication"),
            ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
            ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
            ({"a_setting_of_tomorrow": True}, "a_setting_of_tomorrow"),
        ],
    )
    def test_kinds_that_are_not_plain_lora(self, pool, tmp_path, settings, what):
        folder = self.altered(make_adapter(pool[0], tmp_path / "lora")[0], settings)
        assert what in merge_of(pool[0], [folder], "linear").problems()[0].what

    def test_half_an_update_and_another_base(self, pool, make_pool, tmp_path):
        wide, _ = make_pool(0, intermediate_size=32, num_hidden_layers=3)
        folder, _ = make_adapter(wide, tmp_path / "lora")
        gone = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
        self.altered(folder, change=lambda state: state.pop(gone))
        assert {(p.tensor, p.what.split(",")[0]) for p in merge_of(pool[0], [folder], "linear").problems()} == {
            ("model.layers.0.self_attn.q_proj.weight", "has one of lora_A and lora_B only"),
            ("model.layers.0.mlp.down_proj.weight", "is [16"),
            ("model.layers.1.mlp.down_proj.weight", "is [16"),
            ("model.layers.2.mlp.down_proj.weight", "is adapted but not in the base"),
            ("model.layers.2.self_attn.q_proj.weight", "is adapted but not in the base"),
        }

    def test_an_adapter_is_no_base(self, pool, tmp_path):
        folder, _ = make_adapter(pool[0], tmp_path / "lora")
        with pytest.raises(UserError, match="is an adapter"):
            merge_of(folder, pool[1], "linear").problems()

    def test_another_tokenizer_beside_the_adapter(self, pool, tmp_path):
        folder, _ = make_adapter(pool[0], tmp_path / "lora")
        swapped = [WORDS[0], WORDS[2], WORDS[1], *WORDS[3:]]
        word_tokenizer(swapped).save_pretrained(folder)
        (problem,) = merge_of(pool[0], [folder], "linear").problems()
        assert "gives 'w1' id 1, the base's 2 (and 1 more)" in problem.what or "'w0'" in problem.what
