"""mergekit's YAML: misspelt names are told, our methods run, filters, slices and gradients do what they say."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
import yaml
from merge_helpers import SMALL, assert_same, merge_of, perturbed, save, weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from conf.errors import UserError
from mergeopt_core.merging import describe, names
from pipelines.merge.mergekit_yaml import FIELDS, run_mergekit_config
from pipelines.merge.write import write_merge


def config_file(tmp_path, **fields):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(fields))
    return file


def models(experts, **parameters):
    return [{"model": str(e), **({"parameters": dict(parameters)} if parameters else {})} for e in experts]


def test_the_fields_are_mergekits():
    from mergekit import config
    from mergekit.tokenizer.config import TokenizerConfig

    classes = {
        "": config.MergeConfiguration,
        "models": config.InputModelDefinition,
        "slices": config.OutputSliceDefinition,
        "sources": config.InputSliceDefinition,
        "modules": config.OutputModuleDefinition,
        "tokenizer": TokenizerConfig,
    }
    theirs = {k: set(v.split()) - {"name", "mergebench"} for k, v in FIELDS.items() if k != "mergebench"}
    assert theirs == {k: set(c.model_fields) for k, c in classes.items()}


def test_a_stock_configuration_gives_what_our_stream_gives(pool, tmp_path):
    base, experts = pool
    fields = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "parameters": {"lambda": 0.5},
        "dtype": "float32",
    }
    file = config_file(tmp_path, models=models(experts, weight=0.7), **fields)
    random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), torch.get_rng_state()
    out = run_mergekit_config(file, tmp_path / "out")
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    merged = dict(merge_of(base, experts, "task_arithmetic", {"weight": 0.7, "lambda": 0.5}).tensors())
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-6, atol=1e-7)
    AutoModelForCausalLM.from_pretrained(out)
    assert file.read_text() in (out / "mergekit_config.yml").read_text()
    assert (
        json.loads((out / "mergebench_recipe.json").read_text())["mergekit_config"]["merge_method"] == "task_arithmetic"
    )
    run_mergekit_config(file, out)  # an earlier merge may be written over


def test_a_method_of_ours_runs_in_mergekit(pool, tmp_path):
    base, experts = pool
    fields = {"merge_method": "iso_c", "base_model": str(base), "dtype": "float32", "parameters": {"lambda": 0.5}}
    out = run_mergekit_config(config_file(tmp_path, models=models(experts), **fields), tmp_path / "out")
    merged = dict(merge_of(base, experts, "iso_c", {"lambda": 0.5}).tensors())
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-4, atol=1e-5)


def test_a_method_that_reads_everything_first_runs_through_our_stream(pool, tmp_path):
    base, experts = pool
    fields = {"merge_method": "ties_global", "base_model": str(base), "dtype": "float32"}
    file = config_file(tmp_path, models=[*models(experts, density=0.4), *models([base])], **fields)
    out = run_mergekit_config(file, tmp_path / "out")
    assert_same(weights(out), dict(merge_of(base, experts, "ties_global", {"density": 0.4}, dtype="float32").tensors()))
    fields["parameters"] = {"density": [0.1, 0.9]}
    with pytest.raises(UserError, match="whole models"):
        run_mergekit_config(config_file(tmp_path, models=models(experts), **fields), tmp_path / "other")


FEW = {name: min(3, describe(name).max_experts or 3) for name in names()}


@pytest.mark.parametrize("method", [name for name in names() if not describe(name).statistics])
def test_the_cards_recipe_gives_the_same_bits(pool, tmp_path, method):
    base, experts = pool
    merge = merge_of(base, experts[: FEW[method]], method, seed=3)
    if describe(method).parameters and describe(method).parameters[0].per_expert:
        given = {describe(method).parameters[0].name: [0.5, 0.25, 0.25][: FEW[method]]}
        merge = merge_of(base, experts[: FEW[method]], method, given, seed=3)
    out = write_merge(merge, tmp_path / "out")
    card = (out / "README.md").read_text()
    (tmp_path / "recipe.yaml").write_text(card.split("```yaml")[1].split("```")[0])
    again = run_mergekit_config(tmp_path / "recipe.yaml", tmp_path / "again")
    assert_same(weights(again), weights(out))
    with pytest.raises(UserError, match="the file says seed 3, the command 4"):
        run_mergekit_config(tmp_path / "recipe.yaml", tmp_path / "other", seed=4)


def test_the_cards_recipe_of_an_adapter_in_mixed_precision(make_pool, tmp_path):
    from peft import LoraConfig, get_peft_model

    base, experts = make_pool(1, dtype=torch.bfloat16)
    state = weights(base)
    save_file(state | {"model.norm.weight": state["model.norm.weight"].float()}, base / "model.safetensors")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path / "lora")
    out = write_merge(merge_of(base, [*experts, tmp_path / "lora"], "ties_global"), tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text((out / "README.md").read_text().split("```yaml")[1].split("```")[0])
    assert_same(weights(run_mergekit_config(tmp_path / "recipe.yaml", tmp_path / "again")), weights(out))


def test_the_seed_reaches_the_masks_of_our_methods(pool, tmp_path):
    base, experts = pool
    fields = {"merge_method": "dare", "base_model": str(base), "dtype": "float32", "models": models(experts)}
    file = config_file(tmp_path, **fields)
    three, again, four = (
        weights(run_mergekit_config(file, tmp_path / str(k), seed=seed)) for k, seed in enumerate((3, 3, 4))
    )
    assert_same(three, again)
    assert not torch.equal(three["lm_head.weight"], four["lm_head.weight"])
    stated = run_mergekit_config(config_file(tmp_path, **fields, parameters={"seed": 4}), tmp_path / "stated")
    assert_same(weights(stated), four)
    assert json.loads((stated / "mergebench_recipe.json").read_text())["seed"] == 4


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_mergekit_writes_is_finite(pool, tmp_path, dtype):
    weight = {"float32": (1.0, -1.0), "float16": (1e6, 1e6)}[dtype]
    given = [{"model": str(e), "parameters": {"weight": w}} for e, w in zip(pool[1], weight)]
    shared = {"normalize": dtype == "float32"}
    fields = {"merge_method": "linear", "models": given, "parameters": shared, "dtype": "float32", "out_dtype": dtype}
    file = config_file(tmp_path, **fields)
    with pytest.raises(UserError, match=r"lm_head\.weight.* not finite"):
        run_mergekit_config(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_filters_are_applied(pool, tmp_path):
    base, experts = pool
    by_filter = [{"filter": "self_attn", "value": 1.0}, {"value": 0.0}]
    fields = {"merge_method": "task_arithmetic", "base_model": str(base), "dtype": "float32"}
    out = run_mergekit_config(
        config_file(tmp_path, models=models(experts[:1], weight=by_filter), **fields), tmp_path / "out"
    )
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, weights(experts[0] if "self_attn" in name else base)[name])


def test_slices_and_gradients(pool, tmp_path):
    base, experts = pool
    sources = [{"model": str(m), "layer_range": [0, 2]} for m in (base, experts[0])]
    fields = {"slices": [{"sources": sources}], "merge_method": "slerp", "base_model": str(base), "dtype": "float32"}
    file = config_file(tmp_path, parameters={"t": [0.0, 1.0]}, **fields)
    out = weights(run_mergekit_config(file, tmp_path / "out"))
    name = "model.layers.{}.mlp.up_proj.weight"
    torch.testing.assert_close(out[name.format(0)], weights(base)[name.format(0)])
    torch.testing.assert_close(out[name.format(1)], weights(experts[0])[name.format(1)])


def test_a_checkpoint_that_was_rewritten_is_read_anew(pool, tmp_path):
    _, experts = pool
    expert = tmp_path / "expert"
    shutil.copytree(experts[0], expert)
    fields = {"merge_method": "linear", "dtype": "float32"}
    file = config_file(tmp_path, models=models([expert], weight=1.0), **fields)
    run_mergekit_config(file, tmp_path / "one")
    shutil.rmtree(expert)
    save(perturbed(LlamaForCausalLM(LlamaConfig(**SMALL)), 9), expert)
    assert_same(weights(run_mergekit_config(file, tmp_path / "two")), weights(expert))


def test_an_adapter_written_mergekits_way(pool, tmp_path):
    from peft import LoraConfig, get_peft_model

    base, _ = pool
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path / "lora")
    fields = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": models([f"{base}+{tmp_path / 'lora'}"], weight=1.0),
    }
    out = run_mergekit_config(config_file(tmp_path, **fields), tmp_path / "out")
    ours = dict(merge_of(base, [tmp_path / "lora"], "linear").tensors())
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, ours[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(
        ours["model.layers.0.self_attn.q_proj.weight"], weights(base)["model.layers.0.self_attn.q_proj.weight"]
    )


def test_pickled_weights_need_a_flag(pool, tmp_path):
    base, _ = pool
    pickled = tmp_path / "pickled"
    shutil.copytree(base, pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(weights(base), pickled / "pytorch_model.bin")
    file = config_file(tmp_path, merge_method="linear", dtype="float32", models=models([pickled], weight=1.0))
    with pytest.raises(UserError, match="pickled"):
        run_mergekit_config(file, tmp_path / "out")
    assert_same(weights(run_mergekit_config(file, tmp_path / "out", allow_pickle=True)), weights(base))


class TestErrors:
    """What mergekit takes silently, or answers with a traceback."""

    def run(self, tmp_path, pool, change):
        base, experts = pool
        fields = {"merge_method": "ties", "base_model": str(base), "dtype": "float32"}
        fields["models"] = models(experts, weight=1.0, density=0.5)
        change(fields)
        return run_mergekit_config(config_file(tmp_path, **fields), tmp_path / "out")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                lambda f: f["models"][1]["parameters"].update(densty=0.3),
                r"no parameter 'densty' .*models\[1\].*density",
            ),
            (lambda f: f.update(parameters={"lamda": 0.3}), r"no parameter 'lamda'.*lambda"),
            (lambda f: f.update(parameters={"reference": True}), r"no parameter 'reference'"),
            (lambda f: f.update(paramters={}), r"unknown field 'paramters'.*did you mean parameters"),
            (lambda f: f["models"][0].update(paramters={}), r"unknown field 'paramters' .*models"),
            (lambda f: f.update(merge_method="tie"), r"no merge method 'tie'.*did you mean ties"),
            (lambda f: f["models"][0].update(model="./nowhere"), r"no such folder: \./nowhere"),
            (lambda f: f["models"][0]["parameters"].update(density="much"), r"density is a number, not 'much'"),
            (lambda f: f["models"][0]["parameters"].update(density=[0.1, 1.5]), r"density is between"),
            (lambda f: f.update(dtype="float33"), r"mergekit does not run.*float33"),
            (lambda f: f.update(slices=[]) or f.pop("models"), r"mergekit does not run"),
            (lambda f: f.update(mergebench=3), "mergebench is no table"),
            (lambda f: f.update(mergebench={"sed": 3}), r"unknown field 'sed'.*did you mean seed"),
            (lambda f: f.update(mergebench={"seed": "x"}), "seed is a whole number, not 'x'"),
            (lambda f: f.update(mergebench={"seed": 1}, chat_template="auto"), "ties runs on whole models here"),
            (lambda f: f.update(merge_method="fisher"), r"fisher needs fisher statistics"),
        ],
    )
    def test_said_in_one_line(self, tmp_path, pool, change, said):
        with pytest.raises(UserError, match=said):
            self.run(tmp_path, pool, change)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml"]

    @pytest.mark.parametrize(("text", "said"), [("a: [", "no valid YAML"), ("- 1", "no table"), (None, "cannot read")])
    def test_files(self, tmp_path, text, said):
        if text is not None:
            (tmp_path / "f.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            run_mergekit_config(tmp_path / "f.yaml", tmp_path / "out")
