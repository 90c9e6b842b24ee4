"""Offsets from other experts' task vectors, against autograd at hand-moved weights in float64."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from mergeopt_core import MergOPT
from mergeopt_core.finetuning import MasterWeights
from tests.mergeopt_core.finetuning.test_mergopt import Spy, Tied, bits, make, same


def vectors(model, count, size=0.2):
    torch.manual_seed(5)
    return [{n: size * torch.randn_like(p) for n, p in model.named_parameters()} for _ in range(count)]


def around(model, others, base=None, **more):
    base = base or Spy(model.parameters(), lr=0.01)
    return MergOPT(base, others=others, named_parameters=model.named_parameters(), seed=3, **more)


@pytest.mark.parametrize("own", ["approximate", "exact"])
def test_base_optimizer_receives_the_gradient_at_the_others_task_vectors(own):
    model, x, y = make()
    others, theta0 = vectors(model, 4), copy.deepcopy(model).double()
    opt, sizes = around(model, others, own_vector=own, max_tasks=9), set()
    for _ in range(8):
        before = copy.deepcopy(model).double()
        with opt.perturbed() as offset:
            for part in (slice(0, 2), slice(2, 5)):  # two micro-batches
                mse_loss(model(x[part]), y[part], reduction="sum").backward()
        assert same(bits(model), [p.float() for p in before.parameters()])
        opt.step()
        opt.zero_grad()
        chosen = opt.chosen(offset)
        sizes.add(len(chosen))
        with torch.no_grad():
            for (name, p), start in zip(before.named_parameters(), theta0.parameters()):
                p += (offset.alpha - 1) * (p - start) if own == "exact" else 0
                for j in chosen:
                    p += offset.alpha * others[j][name].double()
        mse_loss(before(x.double()), y.double(), reduction="sum").backward()
        for got, p in zip(opt.base.seen, before.parameters(), strict=True):
            torch.testing.assert_close(got.double(), p.grad, rtol=1e-4, atol=1e-5)
    assert len(sizes) > 2
    assert max(sizes) <= 4, "no more than there are others"


def test_a_large_task_vector_is_added_block_by_block_and_given_back(monkeypatch):
    monkeypatch.setattr("mergeopt_core.finetuning.mergopt.BLOCK", 8)
    model, *_ = make()
    given_back = []

    class Mapped(dict):
        def release(self):
            given_back.append(self)

    others = [Mapped(vector) for vector in vectors(model, 2)]
    opt = around(model, others, alphas=[0.5], max_tasks=9)
    opt.steps = next(step for step in range(50) if opt.draw(step).tasks == 3)
    theta = bits(model)
    with opt.perturbed():
        for before, (name, p) in zip(theta, model.named_parameters()):
            assert torch.equal(p, torch.add(torch.add(before, others[0][name], alpha=0.5), others[1][name], alpha=0.5))
    blocks = sum(-(-p.numel() // 8) for p in opt.perturbation.weights())
    assert len(given_back) == 2 * blocks


def test_every_subset_of_a_size_is_as_likely():
    model, *_ = make()
    opt = around(model, vectors(model, 4), max_tasks=3)
    drawn = Counter(tuple(opt.chosen(opt.draw(step))) for step in range(6000))
    shares = {size: [n for s, n in drawn.items() if len(s) == size] for size in range(3)}
    assert {size: len(n) for size, n in shares.items()} == {0: 1, 1: 4, 2: 6}
    for counts in shares.values():
        assert sum(counts) == pytest.approx(2000, rel=0.1)
        assert max(counts) < 1.3 * min(counts)


def test_without_others_it_is_plain_training_and_an_exchange_changes_it():
    found = []
    for kind in ("plain", "none", "others"):
        model, x, y = make()
        base = torch.optim.Adam(model.parameters(), lr=0.01)
        opt = base if kind == "plain" else around(model, [], base)
        for step in range(6):
            if kind == "others" and step == 3:
                opt.exchange(vectors(model, 2))

            def closure():
                loss = mse_loss(model(x), y)  # noqa: B023
                loss.backward()
                return loss

            opt.zero_grad()
            opt.step(closure)
        found.append(bits(model))
    plain, none, others = found
    assert same(plain, none)
    assert not same(plain, others)


def test_masters_are_moved_from_and_come_back():
    torch.manual_seed(0)
    model = Tied().bfloat16()
    base = MasterWeights(torch.optim.SGD(model.parameters(), lr=0.1))
    others, before = vectors(model, 1), bits(model)
    opt = around(model, [{n: d.float() for n, d in others[0].items()}], base, masters=base.masters, alphas=[0.5])
    offset = next(step for step in range(99) if opt.chosen(opt.draw(step)))
    opt.steps = offset
    with opt.perturbed():
        for i, moved in enumerate(opt.perturbation.moved):
            expected = opt.perturbation.weights()[i] + 0.5 * others[0][moved.name].float()
            assert torch.equal(moved.weight, expected.bfloat16())
    assert same(bits(model), before)


def test_what_cannot_be_exchanged_is_refused():
    model, *_ = make()
    with pytest.raises(ValueError, match="moves one z"):
        around(model, [], inner="ascent")
    with pytest.raises(ValueError, match="go by name"):
        MergOPT(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1), others=[])
