"""MergOPT against autograd at hand-moved weights, and against plain training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from mergeopt_core import MergOPT


class Tied(nn.Module):
    """Two layers that share one matrix, and one that does not."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.free = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.free(self.last(torch.tanh(self.first(x))))


class Spy(torch.optim.SGD):
    """Records the gradients that it is given."""

    def step(self, closure=None):
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def make(seed=0):
    torch.manual_seed(seed)
    return Tied(), torch.randn(5, 6), torch.randn(5, 3)


def bits(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("distribution", ["laplace", "gaussian"])
def test_base_optimizer_receives_the_gradient_at_the_moved_weights(distribution):
    model, x, y = make()
    opt = MergOPT(
        Spy(model.parameters(), lr=0.01), loc=0.01, scale=0.2, distribution=distribution, seed=3,
        named_parameters=model.named_parameters(),
    )  # fmt: skip
    for _ in range(4):
        before = copy.deepcopy(model)
        with opt.perturbed() as offset:
            for part in (slice(0, 2), slice(2, 5)):  # two micro-batches
                mse_loss(model(x[part]), y[part], reduction="sum").backward()
        assert same(bits(model), bits(before))
        noise = opt.noise(offset)
        opt.step()
        opt.zero_grad()
        assert opt.last_offset == offset
        with torch.no_grad():
            for name, p in before.named_parameters():
                p += (offset.tasks * offset.alpha - 1) * noise[name]
        mse_loss(before(x), y, reduction="sum").backward()
        for got, p in zip(opt.base.seen, before.parameters(), strict=True):
            torch.testing.assert_close(got, p.grad, rtol=1e-5, atol=1e-6)


def test_a_nonzero_scale_changes_the_trajectory():
    (a, x, y), (b, _, _) = make(), make()
    for model, scale in ((a, 0.0), (b, 0.1)):
        opt = MergOPT(torch.optim.SGD(model.parameters(), lr=0.1), scale=scale)
        with opt.perturbed():
            mse_loss(model(x), y).backward()
        opt.step()
    assert not same(bits(a), bits(b))


def test_weights_come_back_after_an_error():
    model, *_ = make()
    opt, before = MergOPT(torch.optim.SGD(model.parameters(), lr=0.1), scale=1.0), bits(model)

    def fails():
        assert not same(bits(model), before)
        raise KeyError

    with pytest.raises(KeyError):
        opt.step(fails)
    assert same(bits(model), before)


def test_ties_move_once_and_stay_tied():
    model, *_ = make()
    opt = MergOPT(torch.optim.SGD(model.parameters(), lr=0.1), scale=1.0, alphas=[0.5], max_tasks=1)
    before = model.first.weight.detach().clone()
    with opt.perturbed() as offset:
        assert model.last.weight is model.first.weight
        expected = before + offset.coefficient * opt.noise(offset)[0]
        torch.testing.assert_close(model.first.weight.detach(), expected)
    assert len(opt.perturbation.moved) == 5


def test_a_step_without_moved_gradients_is_refused():
    model, x, y = make()
    opt = MergOPT(torch.optim.SGD(model.parameters(), lr=0.1))
    mse_loss(model(x), y).backward()
    with pytest.raises(RuntimeError, match="moved weights"):
        opt.step()
    with opt.perturbed(), pytest.raises(RuntimeError, match="before the step"):
        opt.step()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alphas": []}, "alphas is empty"),
        ({"max_tasks": 0}, "max_tasks is 0"),
        ({"scale": -1e-3}, "cannot be negative"),
        ({"scale": float("nan")}, "cannot be negative"),
        ({"distribution": "cauchy"}, "laplace, gaussian"),
        ({"include": ["first*"]}, "need names"),
    ],
)
def test_bad_parameters_are_refused(wrong, message):
    model, *_ = make()
    with pytest.raises(ValueError, match=message):
        MergOPT(torch.optim.SGD(model.parameters(), lr=0.1), **wrong)
