"""The test that matters: what the base optimizer is given inside the Trainer, against autograd at moved weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.schema import Lora, Training
from mergeopt_core import MergOPT
from pipelines.finetune import optimizers
from pipelines.finetune.data import read_rows
from pipelines.finetune.models import adapt
from pipelines.finetune.tokens import Collator, encode

STEP = {"steps": 1, "batch_size": 4, "accumulation": 3, "clip": 0.0}
SCALE = 0.05


@pytest.fixture
def given(monkeypatch):
    """The gradients that the base optimizer steps with."""
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None])
            return super().step(closure)

    monkeypatch.setattr(optimizers, "_make", lambda spec, groups: Spy(groups, lr=0.1))
    return seen


def model_and_batch(base, rows, lora=None):
    model = AutoModelForCausalLM.from_pretrained(base)
    if lora:
        model = adapt(model, lora)
    tokenizer = AutoTokenizer.from_pretrained(base)
    batch = Collator(tokenizer.pad_token_id)(encode(read_rows(rows, 0), tokenizer, rows, Training(), 512))
    batch.pop("tokens")
    return model, batch


def gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()  # mean over all completion tokens of the step
    return [p.grad for p in ordered(model)]


def ordered(model):
    """Trained parameters in the optimizer's order: matrices, then vectors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if p.dim() > 1] + [p for p in trained if p.dim() <= 1]


def assert_close(got, expected, rtol=1e-4, atol=1e-6):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def add(model, noise, coefficient):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in noise:
                p += coefficient * noise[name]


@pytest.mark.parametrize("clip", [0.0, 0.01])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_mergopt(base, rows, train, given, clip, checkpointing):
    train(
        "a",
        {"method": "mergopt", "scale": SCALE},
        task=rows,
        **{**STEP, "clip": clip},
        gradient_checkpointing=checkpointing,
    )
    model, batch = model_and_batch(base, rows)
    at_home = gradients(model, batch)
    opt = MergOPT(torch.optim.SGD(model.parameters(), lr=0.1), scale=SCALE, named_parameters=model.named_parameters())
    offset = opt.draw(0)
    add(model, opt.noise(offset), offset.coefficient)
    expected = gradients(model, batch)
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        torch.nn.utils.clip_grad_norm_([torch.nn.Parameter(g) for g in at_home], clip)
    assert_close(given[0], expected)
    assert max(float((a - b).abs().max()) for a, b in zip(expected, at_home)) > 1e-3 * (clip or 1)


def test_sam(base, rows, train, given):
    train("a", {"method": "sam", "rho": 0.5}, task=rows, **STEP)
    model, batch = model_and_batch(base, rows)
    g = [x.clone() for x in gradients(model, batch)]
    norm = torch.sqrt(sum((x.double() ** 2).sum() for x in g))
    with torch.no_grad():
        for p, x in zip(ordered(model), g, strict=True):
            p += (0.5 * x / norm).float()
    assert_close(given[0], gradients(model, batch), rtol=1e-3, atol=1e-5)


def test_lora_offset_acts_on_the_merged_update(base, rows, train, given):
    """The adapters' gradients with the offset below them, against those with the offset added to the merged weight."""
    spec = Lora(rank=4, targets=["q_proj", "v_proj"])
    train("a", {"method": "mergopt", "scale": SCALE, "include": ["*q_proj*"]}, task=rows, **STEP, lora=spec)
    torch.manual_seed(0)
    model, batch = model_and_batch(base, rows, spec)
    name = "model.layers.0.self_attn.q_proj.weight"
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    named = [(name, layer.base_layer.weight)]
    opt = MergOPT(torch.optim.SGD([named[0][1]], lr=0.1), scale=SCALE, named_parameters=named, frozen=True)
    offset = opt.draw(0)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    merged = layer.base_layer.weight.detach() + offset.coefficient * opt.noise(offset)[name]
    scaling = layer.scaling["default"]
    layer.forward = lambda x, *_, **__: torch.nn.functional.linear(x, merged + scaling * (B @ A))
    assert_close(given[0], gradients(model, batch))


def test_lora_sam_climbs_on_the_merged_update(base, rows, train, given):
    spec = Lora(rank=4, targets=["q_proj"])
    train("a", {"method": "sam", "rho": 0.5}, task=rows, **STEP, lora=spec)
    torch.manual_seed(0)
    model, batch = model_and_batch(base, rows, spec)
    weight = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    weight.requires_grad_(True)
    gradients(model, batch)
    with torch.no_grad():
        weight += 0.5 * weight.grad / weight.grad.norm()
    weight.requires_grad_(False)
    assert_close(given[0], gradients(model, batch), rtol=1e-3, atol=1e-5)


NOTHING = {
    "mergopt": {"method": "mergopt", "scale": 0},
    "sam": {"method": "sam", "rho": 0},
    "asam": {"method": "asam", "rho": 0},
}
SETTINGS = {
    "accumulation": {"accumulation": 3, "clip": 0.01},
    "bf16": {"precision": "bf16"},
    "masters": {"precision": "bf16_masters"},
    "checkpointing": {"gradient_checkpointing": True},
    "packing": {"packing": True, "max_length": 40},
    "lora": {"lora": Lora(rank=4)},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_offset_is_plain_training_bit_for_bit(rows, train, setting, same):
    options = {"task": rows, "steps": 3, "batch_size": 2, **SETTINGS[setting]}
    plain = train("plain", **options)
    for name, method in NOTHING.items():
        assert same(plain, train(name, method, **options)), name
    moved = {"method": "mergopt", "scale": 0.05, "include": ["*proj*"] if setting == "lora" else []}
    assert not same(plain, train("moved", moved, **options))
    if setting != "checkpointing":  # the setting itself does something
        assert not same(plain, train("default", task=rows, steps=3, batch_size=2))
