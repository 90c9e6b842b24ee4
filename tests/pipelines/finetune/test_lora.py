"""Adapters: merged into an ordinary checkpoint, and every option of the offset seen on the merged update."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from conf.schema import Lora, Optimizer
from mergeopt_core import MergOPT
from pipelines.finetune.models import AdapterOrigin, adapt, merged_weights

SPEC = Lora(rank=2, alpha=8.0, targets=["q_proj", "down_proj"])


def adapted(base):
    torch.manual_seed(0)
    model = adapt(AutoModelForCausalLM.from_pretrained(base), SPEC)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    return model


def test_only_the_targets_change_and_by_rank_two(base, train, weights):
    out = train("a", {"method": "mergopt", "scale": 0.01}, lora=SPEC, optimizer=Optimizer(lr=1e-2))
    old, new = weights(base), weights(out)
    assert old.keys() == new.keys()
    for name in old:
        vector = new[name] - old[name]
        if "q_proj" in name or "down_proj" in name:
            assert torch.linalg.matrix_rank(vector.double(), atol=1e-5) == 2
        else:
            assert not vector.any()


def test_the_exact_own_vector_is_the_adapters_product(base):
    model = adapted(base)
    named = merged_weights(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    opt = MergOPT(
        torch.optim.SGD(trained, lr=0.1), scale=0.0, own_vector="exact", theta0=AdapterOrigin(model),
        named_parameters=named, frozen=True,
    )  # fmt: skip
    before = {name: w.detach().clone() for name, w in named}
    with opt.perturbed() as offset:
        for name, weight in named:
            layer = model.get_submodule("base_model.model." + name.removesuffix(".weight"))
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 4.0
            torch.testing.assert_close(weight, before[name] + (offset.alpha - 1) * product)


def test_the_fitted_scale_is_that_of_the_merged_update(base):
    model = adapted(base)
    named = merged_weights(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    opt = MergOPT(
        torch.optim.SGD(trained, lr=0.0), scale="fitted", fit_memory=0.0, theta0=AdapterOrigin(model),
        named_parameters=named, frozen=True,
    )  # fmt: skip
    with opt.perturbed():
        pass
    opt.step()
    for i, (name, _) in enumerate(named):
        layer = model.get_submodule("base_model.model." + name.removesuffix(".weight"))
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 4.0
        assert opt.scale_of(i) == pytest.approx(product.abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("option", [{"own_vector": "exact"}, {"scale": "fitted"}, {"inner": "ascent"}])
def test_every_option_trains_through_adapters(base, train, same, option):
    plain = train("plain", lora=SPEC)
    assert not same(plain, train("a", {"method": "mergopt", "fit_start": 0.05, **option}, lora=SPEC))
    assert not same(plain, base)
