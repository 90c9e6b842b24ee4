"""What goes beyond the paper: exact own vector, fitted scale, inner ascent, masters, patterns, saved state."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from mergeopt_core import ASAM, SAM, MergOPT
from mergeopt_core.finetuning import MasterWeights, select
from mergeopt_core.finetuning.sampling import Noise, noise_like


def make(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(10, 6), torch.randn(10, 3)

    def closure():
        loss = mse_loss(model(x), y)
        loss.backward()
        return loss

    return model, closure


def bits(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_exact_own_vector_is_equation_5():
    model, closure = make()
    opt = MergOPT(torch.optim.SGD(model.parameters(), lr=0.5), scale=0.1, own_vector="exact", seed=1)
    theta0 = bits(model)
    for _ in range(6):
        theta = bits(model)
        with opt.perturbed() as offset:
            moved = bits(model)
            closure()
        others = [opt.noise(offset, expert=j) for j in range(1, offset.tasks)]
        for i, (w, w0, got) in enumerate(zip(theta, theta0, moved, strict=True)):
            merged = w0.double() + offset.alpha * ((w - w0).double() + sum(z[i].double() for z in others))
            torch.testing.assert_close(got.double(), merged, rtol=1e-5, atol=1e-6)
        opt.step()
        opt.zero_grad()


def test_exact_own_vector_draws_the_others_independently():
    opt = MergOPT(torch.optim.SGD([nn.Parameter(torch.zeros(100_000))], lr=0.5), scale=1.0, own_vector="exact")
    offset = opt.draw(0)
    a, b = opt.noise(offset, 1)[0].double(), opt.noise(offset, 2)[0].double()
    assert abs(float((a * b).mean())) < 0.03
    assert float((a * a).mean()) == pytest.approx(2.0, rel=0.03)


def test_fitted_scale_follows_the_task_vector():
    """The parameters are pushed by known Laplace noise; the running fit must arrive at its scale, tensor by tensor."""
    small, large = nn.Parameter(torch.zeros(40_000)), nn.Parameter(torch.zeros(40_000))
    opt = MergOPT(torch.optim.SGD([small, large], lr=1.0), scale="fitted", fit_start=1.0, fit_memory=0.5, loc=0.0)
    for p, b, key in ((small, 0.01, 1), (large, 0.3, 2)):
        p.grad = -noise_like(p, Noise(key), scale=b)
    opt.ready = True
    opt.step()
    assert opt.fit.scales == pytest.approx([0.5 + 0.005, 0.5 + 0.15], rel=0.01)
    for _ in range(20):
        opt.zero_grad()
        opt.ready = True
        opt.step()
    assert opt.fit.scales == pytest.approx([0.01, 0.3], rel=0.02)
    with opt.perturbed() as offset:
        pass
    z = opt.noise(offset)
    assert z[0].abs().mean().item() == pytest.approx(0.01, rel=0.03)
    assert z[1].abs().mean().item() == pytest.approx(0.3, rel=0.03)


def test_ascent_finds_the_worst_case_of_a_quadratic():
    """L(w) = |w − t|²/2 with w = 0 and the ball of radius R: the worst case is (c_max R + |t|)²/2, along −t."""
    w, t = nn.Parameter(torch.zeros(50, dtype=torch.float64)), torch.zeros(50, dtype=torch.float64)
    t[0] = 3.0
    opt = MergOPT(
        torch.optim.SGD([w], lr=0.0),
        alphas=[0.5],
        max_tasks=6,
        scale=0.1,
        inner="ascent",
        ascent_steps=60,
        ascent_size=0.5,
    )

    def closure():
        loss = 0.5 * (w - t).square().sum()
        loss.backward()
        return loss

    opt.step(closure)
    radius = (2 * 0.1**2 * 50) ** 0.5
    assert opt.last_offset.coefficient == 2.0
    assert opt.last_shortfall.worst == pytest.approx((2 * radius + 3) ** 2 / 2, rel=1e-3)
    assert opt.last_shortfall.gap > 1.0
    assert torch.equal(w, torch.zeros_like(w))


def test_ascent_steps_with_the_gradient_at_the_last_point():
    model, closure = make()
    seen = []

    def watched():
        loss = closure()
        seen.append((bits(model), [p.grad.clone() for p in model.parameters()]))
        return loss

    opt = MergOPT(torch.optim.SGD(model.parameters(), lr=1.0), scale=0.05, inner="ascent", ascent_steps=2)
    before = bits(model)
    opt.step(watched)
    assert len(seen) == opt.passes == 3
    assert not same(seen[0][0], seen[2][0])
    for w, g, after in zip(before, seen[-1][1], bits(model), strict=True):
        torch.testing.assert_close(after, w - g, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="closure"), opt.perturbed():
        pass


def test_shortfall_analysis_leaves_everything_as_it_was():
    model, closure = make()
    opt = MergOPT(torch.optim.AdamW(model.parameters(), lr=0.1), scale=0.05)
    before = bits(model)
    found = opt.shortfall(closure, draws=3, steps=4)
    assert found.worst > found.sampled > 0
    assert same(bits(model), before)
    assert opt.steps == 0
    assert all(p.grad is None for p in model.parameters())


METHODS = {
    "mergopt": lambda base: MergOPT(base, scale=0.05, seed=7),
    "gaussian": lambda base: MergOPT(base, scale=0.05, seed=7, distribution="gaussian"),
    "fitted": lambda base: MergOPT(base, scale="fitted", fit_start=0.05, seed=7),
    "exact": lambda base: MergOPT(base, scale=0.05, own_vector="exact", seed=7),
    "ascent": lambda base: MergOPT(base, scale=0.05, inner="ascent", seed=7),
    "sam": lambda base: SAM(base, rho=0.1),
    "asam": lambda base: ASAM(base, rho=0.5),
    "squared": lambda base: ASAM(base, rho=1.0, form="squared"),
}
BASES = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_is_bitwise_the_uninterrupted(method, base, tmp_path):
    (a, closure_a), (b, closure_b) = make(), make()
    one = METHODS[method](BASES[base](a.parameters()))
    for _ in range(6):
        one.step(closure_a)
    two = METHODS[method](BASES[base](b.parameters()))
    for _ in range(3):
        two.step(closure_b)
    torch.save({"model": b.state_dict(), "opt": two.state_dict()}, tmp_path / "saved.pt")

    c, closure_c = make()
    three = METHODS[method](BASES[base](c.parameters()))
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    c.load_state_dict(saved["model"])
    three.load_state_dict(saved["opt"])
    for _ in range(3):
        three.step(closure_c)
    assert same(bits(a), bits(c))
    assert three.steps == 6


@pytest.mark.parametrize("method", ["mergopt", "sam", "asam", "squared"])
def test_zero_size_is_plain_training_bit_for_bit(method):
    (a, closure_a), (b, closure_b) = make(), make()
    plain, opt = torch.optim.AdamW(a.parameters(), lr=0.05), METHODS[method](torch.optim.AdamW(b.parameters(), lr=0.05))
    opt.scale = opt.rho = 0.0
    for _ in range(5):
        plain.zero_grad()
        closure_a()
        plain.step()
        opt.step(closure_b)
    assert same(bits(a), bits(b))


def test_another_theta0_is_refused_on_resume():
    model, closure = make()
    opt = MergOPT(torch.optim.SGD(model.parameters(), lr=0.5), own_vector="exact")
    opt.step(closure)
    late = MergOPT(torch.optim.SGD(model.parameters(), lr=0.5), own_vector="exact")
    with pytest.raises(ValueError, match="θ0 is not the one"):
        late.load_state_dict(opt.state_dict())


def test_masters_train_in_float32_and_move_without_a_copy():
    (a, _), (b, _) = make(), make()
    x, y = torch.randn(10, 6).bfloat16(), torch.randn(10, 3).bfloat16()
    a, b = a.bfloat16(), b.bfloat16()
    plain, base = MasterWeights(torch.optim.AdamW(a.parameters(), lr=1e-4)), None
    base = MasterWeights(torch.optim.AdamW(b.parameters(), lr=1e-4))
    opt = MergOPT(base, scale=0.05, masters=base.masters)
    homes = [p.data_ptr() for p in b.parameters()]
    for _ in range(3):
        theta = bits(b)
        with opt.perturbed() as offset:
            assert [p.data_ptr() for p in b.parameters()] == homes
            master, z = next(iter(base.masters.values())), opt.noise(offset)[0].float()
            expected = (master.detach() + offset.coefficient * z).bfloat16()
            torch.testing.assert_close(next(b.parameters()).detach(), expected, rtol=0.01, atol=1e-3)
            mse_loss(b(x), y).backward()
        assert same(bits(b), theta)
        opt.step()
        opt.zero_grad()
    assert all(torch.equal(p, m.bfloat16()) for p, m in base.masters.items())
    moved = [m.detach() - w.float() for m, w in zip(base.masters.values(), theta, strict=True)]
    assert all(d.abs().max() > 0 for d in moved)  # steps of 1e-4, which bf16 weights near 0.3 would swallow

    mse_loss(a(x), y).backward()
    plain.step()
    plain.param_groups[0]["lr"] = 0.5  # as a schedule would
    again = MasterWeights(torch.optim.AdamW(copy.deepcopy(a).parameters(), lr=1e-4))
    again.load_state_dict(plain.state_dict())
    assert same(list(again.masters.values()), list(plain.masters.values()))
    assert again.param_groups[0]["lr"] == again.base.param_groups[0]["lr"] == 0.5


def test_patterns_choose_what_moves():
    model, _ = make()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def names(**options):
        return [m.name for m in select(opt, model.named_parameters(), **options)]

    assert names() == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert names(include=["*.weight"]) == ["0.weight", "2.weight"]
    assert names(include=["*.weight"], exclude=["2.*"]) == ["0.weight"]
    with pytest.raises(ValueError, match=r"'wieght' matches no weight; nearest names: [02]\.weight"):
        names(include=["wieght"])
    with pytest.raises(ValueError, match="no weight is left"):
        names(exclude=["*"])
    model[0].bias.requires_grad_(False)
    assert names() == ["0.weight", "2.weight", "2.bias"]
    assert names(frozen=True) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_parameters_that_share_memory_move_once():
    a, b = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
    b.weight.data = a.weight.data
    opt = MergOPT(torch.optim.SGD([a.weight, b.weight], lr=0.1), scale=1.0, alphas=[0.5], max_tasks=1)
    assert len(opt.perturbation.moved) == 1
    with opt.perturbed():
        assert a.weight.data_ptr() == b.weight.data_ptr()
    assert a.weight.data_ptr() == b.weight.data_ptr()


def test_moving_clears_autocast_copies():
    model, _ = make()
    x = torch.ones(1, 6)
    opt = MergOPT(torch.optim.SGD(model.parameters(), lr=0.1), scale=1.0, alphas=[0.5], max_tasks=1)
    with torch.autocast("cpu", torch.bfloat16):
        home = model(x)
        with opt.perturbed():
            assert not torch.equal(model(x), home)
        assert torch.equal(model(x), home)


def test_schedulers_and_clipping_work_on_the_wrapper():
    model, closure = make()
    opt = MergOPT(torch.optim.SGD(model.parameters(), lr=1.0), scale=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    before = bits(model)
    for _ in range(2):
        with opt.perturbed():
            closure()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        opt.step()
        opt.zero_grad()
        schedule.step()
    assert opt.base.param_groups[0]["lr"] == 0.25
    assert sum((a - b).square().sum() for a, b in zip(bits(model), before)).sqrt() <= 1.5e-3 + 1e-6


@pytest.mark.parametrize(
    ("make_wrong", "message"),
    [
        (lambda o: SAM(o, rho=-1), "rho is -1"),
        (lambda o: ASAM(o, eta=-1), "eta is -1"),
        (lambda o: ASAM(o, form="other"), "normalised, squared"),
        (lambda o: MergOPT(o, scale="fited"), "give a number, or fitted"),
        (lambda o: MergOPT(o, own_vector="own"), "approximate or exact"),
        (lambda o: MergOPT(o, own_vector="exact", inner="ascent"), "moves one z"),
        (lambda o: MergOPT(o, inner="ascent", ascent_steps=0), "1 step or more"),
        (lambda o: MergOPT(o, scale="fitted", fit_memory=2), "memory in"),
    ],
)
def test_bad_parameters_are_refused(make_wrong, message):
    model, _ = make()
    with pytest.raises(ValueError, match=message):
        make_wrong(torch.optim.SGD(model.parameters(), lr=0.1))
