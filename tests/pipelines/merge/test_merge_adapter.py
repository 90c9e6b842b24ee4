"""Merges written as adapters: what peft loads is the merge, and peft's own combinations are methods here."""

from __future__ import annotations

import json

import pytest
import torch
from merge_helpers import merge_of, weights
from peft import PeftModel
from test_merge_lora import make_adapter
from transformers import AutoConfig, AutoModelForCausalLM

from conf.compose import compose
from conf.errors import UserError
from pipelines.checkpoints.adapters import AdaptedCheckpoint
from pipelines.merge.adapter import write_adapter
from pipelines.study.single import extract_adapter, merge_checkpoint

SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2}  # fmt: skip


def loaded(base, folder):
    """The weights that peft makes of a base and an adapter."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return model.merge_and_unload().state_dict()


def combined(base, folders, rank, **options):
    """The weights that peft's own combination of two adapters gives."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folders[0], adapter_name="a")
    model.load_adapter(folders[1], adapter_name="b")
    options |= {"svd_rank": rank} if options["combination_type"] == "svd" else {}
    model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "ab", **options)
    model.set_adapter("ab")
    return model.merge_and_unload(adapter_names=["ab"]).state_dict()


def assert_close(got, wanted, atol=1e-5):
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name].float(), tensor.float(), rtol=1e-4, atol=atol, msg=name)


@pytest.fixture(scope="module")
def two(tmp_path_factory, request):
    base, _ = request.getfixturevalue("pool")
    folder = tmp_path_factory.mktemp("loras")
    return base, [make_adapter(base, folder / name, seed)[0] for seed, name in enumerate("ab")]


@pytest.mark.parametrize(
    ("kind", "method", "rank"),
    [("cat", "task_arithmetic", 8), ("svd", "task_arithmetic", 3), ("linear", "lora_linear", 4)],
)
def test_peft_s_combinations(two, tmp_path, kind, method, rank):
    base, folders = two
    out = write_adapter(merge_of(base, folders, method, {"weight": [0.7, 0.4]}), tmp_path / "out", rank)
    assert_close(loaded(base, out), combined(base, folders, rank, combination_type=kind))
    fields = json.loads((out / "adapter_config.json").read_text())
    assert (fields["r"], fields["target_modules"]) == (rank, ["down_proj", "q_proj"])


@pytest.mark.parametrize("method", ["core_space", "knots"])
def test_no_dense_update_of_an_expert_is_made(two, tmp_path, monkeypatch, method):
    base, folders = two
    wanted = dict(merge_of(base, folders, "task_arithmetic", {"lambda": 0.5}).tensors())
    monkeypatch.setattr(AdaptedCheckpoint, "_apply", None)  # what makes W + s·B·A
    given = {"base_method": "task_arithmetic", "lambda": 0.5}
    assert_close(dict(merge_of(base, folders, method, given).tensors()), wanted)
    out = write_adapter(merge_of(base, folders, method, given), tmp_path / "out", 8)
    assert_close(loaded(base, out), wanted)


def test_adapters_beside_a_whole_model_take_the_base_method(pool, two, tmp_path):
    base, experts = pool
    given = {"density": 0.5}
    plain = dict(merge_of(base, [two[1][0], experts[0]], "ties", given).tensors())
    inside = {"base_method": "ties", "base_parameters": given}
    assert_close(dict(merge_of(base, [two[1][0], experts[0]], "knots", inside).tensors()), plain)


def test_extract(pool, tmp_path):
    base, experts = pool
    common = [f"base.path={base}", f"model={experts[0]}", f"store={tmp_path / 'store'}"]
    out = tmp_path / "whole"
    (config, _), = compose([*common, "out_adapter=16", f"out={out}"])  # fmt: skip
    extract_adapter(config)
    assert_close(loaded(base, out), weights(experts[0]))
    assert "holds the whole update" in (out / "README.md").read_text()
    (config, _), = compose([*common, "out_adapter=2", f"out={tmp_path / 'small'}"])  # fmt: skip
    extract_adapter(config)
    got, lost, total = loaded(base, tmp_path / "small"), 0.0, 0.0
    for name, tensor in weights(experts[0]).items():
        delta, made = tensor - weights(base)[name], got[name] - weights(base)[name]
        if delta.ndim == 2 and "embed" not in name and "head" not in name:
            u, s, vh = torch.linalg.svd(delta.double())
            torch.testing.assert_close(made.double(), (u[:, :2] * s[:2]) @ vh[:2], rtol=1e-3, atol=1e-5)
            lost, total = lost + float(s[2:].square().sum()), total + float(s.square().sum())
        else:
            torch.testing.assert_close(made, delta, rtol=0, atol=1e-6)
    assert f"leaves out {lost / total:.2%} of" in (tmp_path / "small" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_biases_of_adapted_layers_go_along(tmp_path, kind):
    """Qwen's attention has biases, GPT-2's layers all do and are stored [in, out]."""
    size = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16} if kind == "gpt2" else SMALL
    base, expert, out = (tmp_path / name for name in ("base", "expert", "out"))
    for seed, folder in enumerate((base, expert)):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=32, **size))
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn_like(parameter) if "norm" not in name and "ln_" not in name else parameter.data
        model.save_pretrained(folder)
    write_adapter(merge_of(base, [expert], "task_arithmetic", {}), out, 16)
    assert json.loads((out / "adapter_config.json").read_text())["bias"] == "all"
    assert_close(loaded(base, out), AutoModelForCausalLM.from_pretrained(expert).state_dict())
    assert_close(dict(merge_of(base, [out], "task_arithmetic", {}).tensors()), weights(expert))


def test_what_no_adapter_can_be_made_of(pool, tmp_path):
    base, experts = pool
    where = [f"store={tmp_path / 'store'}", f"base.path={base}", f"out={tmp_path / 'out'}"]

    def refused(call, words, *overrides):
        (config, _), = compose([*where, *overrides])  # fmt: skip
        with pytest.raises(UserError, match=words):
            call(config)
        assert not (tmp_path / "out").exists()

    refused(extract_adapter, "model is not given", "out_adapter=4")
    refused(extract_adapter, "out_adapter is not given", f"model={experts[0]}")
    refused(extract_adapter, "changes nothing", f"model={base}", "out_adapter=4")
    refused(merge_checkpoint, "out_adapter=0", f"experts=[{experts[0]}]", "method=ties", "out_adapter=0")
