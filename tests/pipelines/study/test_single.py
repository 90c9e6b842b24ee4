"""One model at a time: what is merged in memory is what is written to disk."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conf.compose import compose
from conf.errors import UserError
from pipelines.merge.live import merge_into
from pipelines.study.single import evaluate_model, finetune_expert, make_trial, merge_checkpoint
from pipelines.study.sources import access_of
from pipelines.study.trial import open_merge

SUITE = (
    "suite=custom",
    "+suite.tasks.add.skill=add",
    "+suite.tasks.count.skill=count",
    "suite.limit=20",
    "executor.device=cpu",
)


def config_of(pool, folder: Path, *more: str):
    experts = ",".join(pool.experts)
    fixed = (f"base.path={pool.base}", f"experts=[{experts}]", f"store={folder}/store", *SUITE)
    ((config, _),) = compose([*fixed, *more])
    return config


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear"])
def test_a_merge_scores_the_same_in_memory_and_from_disk(tiny_pool, tmp_path, method):
    merge_checkpoint(config_of(tiny_pool, tmp_path, f"method={method}", f"out={tmp_path}/merged"))
    in_memory = evaluate_model(config_of(tiny_pool, tmp_path, f"method={method}")).describe()["tasks"]
    on_disk = evaluate_model(config_of(tiny_pool, tmp_path, "experts=[]", f"model={tmp_path}/merged")).describe()[
        "tasks"
    ]
    assert in_memory == on_disk


def test_the_live_model_holds_the_bits_that_are_on_disk(tiny_pool, tmp_path):
    from transformers import AutoModelForCausalLM

    config = config_of(tiny_pool, tmp_path, "method=dare_linear", "seed=5", f"out={tmp_path}/merged")
    merge_checkpoint(config)
    model = AutoModelForCausalLM.from_pretrained(tiny_pool.base)
    access = access_of(config)
    trial = make_trial(config, access)
    merge_into(model, open_merge(trial.merge, trial.base, trial.experts, (), access.open))
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in model.state_dict().items())
    base = load_file(tiny_pool.base + "/model.safetensors")
    assert any(not torch.equal(base[name], written[name]) for name in written)


def test_finetune_is_cached_and_copied_out(tmp_path):
    fixed = ["base=tiny", "base.steps=5", "task=skills/add", "training.steps=2", "optimizer.lr=0.01"]
    overrides = [*fixed, f"store={tmp_path}/store", f"out={tmp_path}/out"]
    ((config, _),) = compose(overrides)
    first = finetune_expert(config)
    assert first.new
    assert (tmp_path / "out" / "model.safetensors").is_file()
    ((again, _),) = compose([*overrides[:-1], f"out={tmp_path}/again"])
    assert not finetune_expert(again).new
    with pytest.raises(UserError, match="not empty"):
        finetune_expert(config)


def test_keys_change_with_the_number_and_with_nothing_else(tiny_pool, tmp_path):
    def key(*more: str) -> str:
        config = config_of(tiny_pool, tmp_path, *more)
        return make_trial(config, access_of(config)).key

    same = key("method=ties")
    assert key("method=ties", "name=other", "executor.threads=1", "runs=elsewhere", "statistics.seed=9") == same
    assert key("method=ties", "seed=7") == same, "ties draws nothing at random"
    for change in (
        "method.density=0.3",
        "dtype=bfloat16",
        "suite.limit=10",
        "suite.split=validation",
        "suite.dtype=bfloat16",
    ):
        assert key("method=ties", change) != same
    reordered = ",".join(reversed(tiny_pool.experts))
    assert key("method=ties", f"experts=[{reordered}]") != same
    assert key("method=dare_linear", "seed=7") != key("method=dare_linear")


def test_one_failing_task_hides_no_other(tiny_pool, tmp_path):
    entry = evaluate_model(config_of(tiny_pool, tmp_path, "+suite.tasks.odd.skill=odd", "+suite.tasks.odd.metric=f1"))
    tasks = entry.describe()["tasks"]
    assert "odd has no metric f1,none" in tasks["odd"]["error"]
    assert tasks["add"]["n"] == tasks["count"]["n"] == 20
    layout = json.loads((entry.folder / "lm_eval.json").read_text())
    assert layout["config"]["model_args"]["merge"]["method"] == "linear"
    with pytest.raises(UserError, match="could not be scored: add: add has no metric f1"):
        evaluate_model(config_of(tiny_pool, tmp_path, "+suite.tasks.count.metric=f1", "+suite.tasks.add.metric=f1"))
