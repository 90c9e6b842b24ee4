"""A live model that accelerate spread over devices: the same bits as a whole one, merge after merge."""

import dataclasses

import pytest
import torch
from accelerate import dispatch_model
from transformers import LlamaConfig, LlamaForCausalLM

from conf.errors import UserError
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.checkpoints.load import load_model, spread
from pipelines.merge.live import merge_into
from pipelines.merge.stream import single_model
from pipelines.process import device_of
from pipelines.study import worker
from pipelines.study.single import evaluate_model
from pipelines.study.sweep import run_study
from pipelines.study.worker import find_device
from tests.pipelines.study.test_sweep import config_of, store, values  # noqa: F401


def offloaded(model):
    """As ``spread`` dispatches what fits no GPU, with the CPU as the GPU: weights lie in a dictionary and visit."""
    blocks = [f"model.layers.{i}" for i in range(len(model.model.layers))]
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "lm_head", *blocks[1:]), "disk")
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places |= {"model.rotary_emb": "cpu", blocks[0]: "cpu"}
    made = dispatch_model(model, places, main_device="cpu", state_dict=held, offload_dir="unused", offload_index={})
    assert sum(p.is_meta for p in made.parameters()) > 5 < sum(not p.is_meta for p in made.parameters())
    return made


@pytest.fixture
def device_map(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(worker, "spread", offloaded)
    return ("executor.device=auto", "executor.device_map=auto")


def test_merges_are_written_wherever_a_weight_lies(tiny_pool, store, tmp_path, device_map):  # noqa: F811
    more = ("~methods.dare", "sampler.sizes=[2]", "sampler.samples=2", "executor.device=auto")
    there = run_study(config_of(tiny_pool, store, *more, *device_map))
    here = run_study(config_of(tiny_pool, tmp_path / "here" / "store", *more))
    assert there.complete, [failure.reason for failure in there.outcome.failures]
    assert here.complete
    assert values(store) == values(tmp_path / "here" / "store")


def test_a_tied_head_follows_and_is_not_untied(tmp_path):
    config = LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=48, tie_word_embeddings=True)  # fmt: skip
    for seed in (0, 1):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / str(seed))
    model = LlamaForCausalLM(config)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "untied")
    live = offloaded(load_model(tmp_path / "0", torch.float32))
    opened = {name: open_checkpoint(str(tmp_path / name)) for name in ("0", "1", "untied")}
    tokens = torch.tensor([[3, 5, 7, 9]])
    merge_into(live, single_model(opened["0"], opened["1"]))
    with torch.no_grad():
        found = live(tokens).logits
        assert torch.equal(found, LlamaForCausalLM.from_pretrained(tmp_path / "1")(tokens).logits)
    assert device_of(live) == torch.device("cpu") != next(live.parameters()).device
    with pytest.raises(UserError, match="a head of its own"):
        merge_into(live, single_model(opened["0"], opened["untied"]))


def test_what_cannot_be_spread_is_told(tiny_pool, store, device_map):  # noqa: F811
    config = config_of(tiny_pool, store, f"base.path={tiny_pool.base}", *device_map)
    suite = dataclasses.replace(config.suite, linearised=True, limit=2)
    experts = [str(path) for path in (store / "experts").iterdir()][:1]
    config = dataclasses.replace(config, suite=suite, model=experts[0])
    with pytest.raises(UserError, match=r"suite.linearised wants the whole model on one device"):
        evaluate_model(config)
    with pytest.raises(UserError, match=r"set it to auto"):
        find_device(dataclasses.replace(config.executor, device="cpu"))
    model = load_model(tiny_pool.base, worker.DTYPES["float32"])
    assert spread(model, {"cpu": 10**9}) is model
    with pytest.raises(UserError, match="neither the GPUs nor host memory"):
        spread(model, {"cpu": 200_000})
