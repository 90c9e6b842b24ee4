"""What training holds, counted from its tensors at the moment of the base optimizer's step."""

import pytest
import torch
from torch import nn

from conf.schema import Lora, Optimizer, Training
from pipelines.finetune.memory import bytes_a_weight
from pipelines.finetune.optimizers import base_optimizer, check_finetuning, wrap

WIDE = 256  # wide enough that vectors do not count
ADAM, SGD = Optimizer(lr=1e-4), Optimizer(name="sgd", lr=1e-2, momentum=0.9)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)

    def forward(self, x):
        return self.b(self.a(x).relu())


def size(tensors):
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def held(method, optimizer, training):
    """Bytes of all tensors of a second step."""
    model = Two().to(torch.bfloat16 if training.precision == "bf16_masters" else torch.float32)
    base = base_optimizer(optimizer, model, training.precision == "bf16_masters")
    opt = wrap(base, method, model, 0, 2)
    inner, found = getattr(base, "base", base), []

    def count(*_):
        masters = list(getattr(base, "masters", {}).values())
        weights = [*model.parameters(), *masters]
        state = [t for per in inner.state.values() for t in per.values() if torch.is_tensor(t)]
        moved = [*opt.perturbation._buffers, *(opt.origin.weights if getattr(opt, "origin", None) else ())] if (
            opt is not base
        ) else []  # fmt: skip
        found.append(size([*weights, *(w.grad for w in weights), *state, *moved]))

    inner.register_step_pre_hook(count)

    def closure():
        opt.zero_grad()
        loss = model(torch.ones(2, WIDE, dtype=next(model.parameters()).dtype)).float().square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        if opt is base:
            closure()
            opt.step()
        else:
            opt.step(closure)
    return found[-1] / sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("precision", ["float32", "bf16_masters"])
@pytest.mark.parametrize("optimizer", [ADAM, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize(
    "method", [{}, {"method": "mergopt"}, {"method": "mergopt", "scale": "fitted"}, {"method": "sam"}], ids=str
)
def test_bytes_a_weight_are_those_of_the_tensors(method, optimizer, precision):
    method, training = check_finetuning(method), Training(precision=precision)
    assert held(method, optimizer, training) == pytest.approx(
        sum(bytes_a_weight(method, optimizer, training).values()), rel=0.01
    )


def test_adapters_leave_the_weights_and_their_copy():
    training = Training(lora=Lora(rank=8))
    assert sum(bytes_a_weight(check_finetuning({"method": "mergopt"}), ADAM, training).values()) == 8
