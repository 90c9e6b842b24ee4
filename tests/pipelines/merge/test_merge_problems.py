"""What is wrong with a merge is told from headers, all of it at once, before any weight is read."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from merge_helpers import assert_same, merge_of, weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from conf.errors import UserError
from pipelines.checkpoints.checkpoint import OpenCheckpoint
from pipelines.merge.live import merge_into
from pipelines.merge.recipe import Recipe
from pipelines.merge.write import write_merge


@pytest.fixture(autouse=True)
def no_reading(monkeypatch):
    """Weights cannot be read."""
    monkeypatch.setattr(OpenCheckpoint, "tensor", lambda self, name: pytest.fail(f"{self} read {name}"))


def altered(source, target, config=None, change=None):
    """A copy of a checkpoint with another config or other tensors."""
    shutil.copytree(source, target)
    fields = json.loads((target / "config.json").read_text()) | (config or {})
    (target / "config.json").write_text(json.dumps(fields))
    if change:
        state = weights(source)
        change(state)
        save_file({n: t.contiguous() for n, t in state.items()}, target / "model.safetensors")
    return target


def found(merge):
    return {(p.tensor, p.who) for p in merge.problems()}


def test_nothing_is_wrong_with_a_good_pool(pool):
    assert merge_of(*pool, "ties").problems() == []


def test_every_mismatch_of_every_expert_at_once(pool, tmp_path):
    base, experts = pool

    def change(state):
        del state["model.norm.weight"]
        state["score.weight"] = torch.zeros(2, 16)
        state["lm_head.weight"] = torch.zeros(41, 16)
        state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(24, 17)
        state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(24, 16, dtype=torch.int8)

    bad = altered(experts[0], tmp_path / "bad", change=change)
    other = altered(experts[1], tmp_path / "other", config={"model_type": "mistral"})
    merge = merge_of(base, [experts[2], bad, other], "ties", {"densty": 0.3})
    assert found(merge) == {
        ("", "ties"),
        ("", "other"),
        ("model.norm.weight", "bad"),
        ("score.weight", "bad"),
        ("lm_head.weight", "bad"),
        ("model.layers.0.mlp.up_proj.weight", "bad"),
        ("model.layers.1.mlp.up_proj.weight", "bad"),
    }
    said = {p.tensor: p for p in merge.problems() if p.who == "bad"}
    assert said["lm_head.weight"].what == "is [41, 16], the base's is [40, 16]"
    assert "vocab=union" in said["lm_head.weight"].do
    assert "density" in next(p.what for p in merge.problems() if p.who == "ties")
    with pytest.raises(UserError, match="and 6 more"):
        merge.check()
    with pytest.raises(UserError):
        next(merge.tensors())


def test_heads_that_differ_are_found_though_shapes_agree(pool, tmp_path):
    base, experts = pool
    bad = altered(experts[0], tmp_path / "bad", config={"num_attention_heads": 2, "num_key_value_heads": 1})
    assert [p.what for p in merge_of(base, [bad], "linear").problems()] == [
        "has num_attention_heads=2, the base num_attention_heads=4",
        "has num_key_value_heads=1, the base num_key_value_heads=2",
    ]


def test_too_few_and_too_many_experts(pool):
    base, experts = pool
    assert "experts, not 3" in merge_of(base, experts, "slerp").problems()[0].what


def test_quantized_weights(pool, tmp_path):
    bad = altered(pool[1][0], tmp_path / "bad", config={"quantization_config": {"quant_method": "gptq"}})
    assert [p.what for p in merge_of(pool[0], [bad], "linear").problems()] == ["holds quantized weights"]


@pytest.mark.parametrize("dtype", ["float23", "int8"])
def test_a_misspelt_dtype(dtype):
    with pytest.raises(UserError, match=r"dtype=.*is not valid"):
        Recipe("b", ("e",), "linear", dtype=dtype)


class TestRead:
    """Merges of unlike checkpoints that can be made."""

    @pytest.fixture(autouse=True)
    def no_reading(self):
        """Weights are read here."""

    def test_not_strict_takes_the_bases_tensor_and_drops_what_it_has_not(self, pool, tmp_path):
        base, experts = pool

        def change(state):
            del state["model.norm.weight"]
            state["score.weight"] = torch.zeros(2, 16)

        odd = altered(experts[0], tmp_path / "odd", change=change)
        merge = merge_of(base, [odd, experts[1]], "task_arithmetic", strict=False)
        assert merge.problems() == []
        assert len(merge.layout.notes) == 2
        merged = dict(merge.tensors())
        torch.testing.assert_close(merged["model.norm.weight"], weights(experts[1])["model.norm.weight"])
        assert "score.weight" not in merged

    def test_buffers_that_old_versions_saved_are_no_problem(self, pool, tmp_path):
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        odd = altered(pool[1][0], tmp_path / "odd", change=lambda state: state.update({name: torch.ones(2)}))
        merge = merge_of(pool[0], [odd], "linear")
        assert merge.problems() == []
        assert name not in dict(merge.tensors())

    def test_a_tied_expert_of_an_untied_base_gives_its_embedding_as_head(self, pool, tmp_path):
        base, experts = pool
        tied = altered(
            experts[0], tmp_path / "tied", {"tie_word_embeddings": True}, lambda state: state.pop("lm_head.weight")
        )
        merged = dict(merge_of(base, [tied], "linear").tensors())
        assert torch.equal(merged["lm_head.weight"], weights(experts[0])["model.embed_tokens.weight"])

    def test_an_untied_expert_of_a_tied_base_gives_the_merge_a_head(self, make_pool, pool, tmp_path):
        base, experts = make_pool(1, tie_word_embeddings=True)
        untied = pool[1][0]
        merge = merge_of(base, [experts[0], untied], "linear")
        assert merge.problems() == []
        assert merge.layout.untied
        merged = dict(merge.tensors())
        embedding, head = weights(experts[0])["model.embed_tokens.weight"], weights(untied)["lm_head.weight"]
        torch.testing.assert_close(merged["lm_head.weight"], (embedding + head) / 2)
        model = AutoModelForCausalLM.from_pretrained(base)
        merge_into(model, merge)
        write_merge(merge, tmp_path / "out")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        tokens = torch.arange(8)[None]
        with torch.no_grad():
            assert torch.equal(model(tokens).logits, loaded(tokens).logits)
        assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
        # the same live model then takes a tied merge again
        back = merge_of(base, experts, "linear")
        merge_into(model, back)
        fresh = AutoModelForCausalLM.from_pretrained(base)
        merge_into(fresh, back)
        with torch.no_grad():
            assert torch.equal(model(tokens).logits, fresh(tokens).logits)

    def test_a_tied_checkpoint_that_stores_its_head_too(self, make_pool, tmp_path):
        base, experts = make_pool(2, tie_word_embeddings=True)

        def change(state):
            state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()

        both = altered(experts[0], tmp_path / "both", change=change)
        merge = merge_of(base, [both, experts[1]], "linear")
        assert merge.problems() == []
        assert_same(dict(merge.tensors()), dict(merge_of(base, experts, "linear").tensors()))
