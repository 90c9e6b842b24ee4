"""Experts of a pool that exchange task vectors: in one process, in stretches, killed, and against given experts."""

from functools import partial
from itertools import product

import pytest
import torch

from conf.errors import UserError
from conf.schema import Base, Lora, Optimizer, Task, Training
from mergeopt_core import MergOPT
from pipelines.finetune import finetune
from pipelines.finetune.exchange import Exchange, ExchangeCallback
from pipelines.finetune.train import finetune_pool
from pipelines.tiny.base import make_base

SKILLS = ("odd", "add", "at")
POOL = {"method": "mergopt", "offsets": "pool", "rounds": 2, "alphas": [0.5]}


@pytest.fixture
def members(base, tmp_path):
    """Arguments of three experts, written below a folder of the given name."""

    def make(place, method=POOL, **more):
        training = Training(**{"steps": 7, "batch_size": 4, "warmup_steps": 2, **more})
        return [
            {
                "base": base, "task": Task(name=skill, skill=skill, limit=40), "finetuning": method,
                "optimizer": Optimizer(lr=5e-3), "training": training, "seed": 0, "out": tmp_path / place / skill,
            }
            for skill in SKILLS
        ]  # fmt: skip

    return make


def in_one_process(members, tmp_path, rounds=2):
    finetune_pool(members, tmp_path / "exchange", rounds)
    assert not (tmp_path / "exchange").exists()
    return [member["out"] for member in members]


def in_stretches(members, folder, rounds=2, stop=None):
    """Every stretch of every expert as a call of its own, as workers take them; ``stop`` may break one off."""
    for until, (place, arguments) in product(range(1, rounds + 2), enumerate(members)):
        exchange = Exchange(folder, str(place), ("0", "1", "2"), rounds, until if until <= rounds else None)
        if not (until <= rounds and exchange.file(until, str(place)).exists()) and not list(
            arguments["out"].glob("*.safetensors")
        ):
            call = partial(finetune, **arguments, exchange=exchange, checkpoints=folder / f"work-{place}")
            if stop:
                stop(until, place)
            assert bool(call()) == (until > rounds)
    return [member["out"] for member in members]


def test_one_process_and_stretches_give_the_same_bits(members, tmp_path, same):
    together = in_one_process(members("together"), tmp_path)
    apart = in_stretches(members("apart"), tmp_path / "files")
    assert all(same(a, b) for a, b in zip(together, apart, strict=True))
    assert (together[0] / "metrics.jsonl").read_text().count("\n") == 7
    plain = [finetune(**one) and one["out"] for one in members("plain", {"method": "plain"})]
    assert not any(same(a, b) for a, b in zip(together, plain, strict=True))
    none = in_one_process(members("none", {**POOL, "rounds": 0}), tmp_path, rounds=0)
    assert all(same(a, b) for a, b in zip(none, plain, strict=True)), "without an exchange it is plain training"


def test_a_kill_anywhere_costs_no_bits(members, tmp_path, same, monkeypatch):
    """A stretch breaks off in its middle; another between its checkpoint and what it leaves; both are gone on with."""
    whole = in_one_process(members("whole"), tmp_path)
    wanted = members("killed", save_steps=1)
    leave, begin = ExchangeCallback.on_save, ExchangeCallback.on_train_begin
    killed = []

    def killing(until, place):
        monkeypatch.undo()
        if (until, place) in ((2, 1), (1, 2)) and (until, place) not in killed:
            killed.append((until, place))
            which = "on_save" if until == 1 else "on_step_begin"

            def kill(self, args, state, control, **more):
                if (which == "on_save" and state.global_step in self.at) or state.global_step == 4:
                    raise KeyboardInterrupt
                return leave(self, args, state, control, **more) if which == "on_save" else None

            monkeypatch.setattr(ExchangeCallback, which, kill, raising=False)

    for _ in range(3):
        try:
            found = in_stretches(wanted, tmp_path / "files", stop=killing)
            break
        except KeyboardInterrupt:
            assert begin is ExchangeCallback.on_train_begin
    assert len(killed) == 2
    assert all(same(a, b) for a, b in zip(whole, found, strict=True))


def test_one_expert_against_given_ones_sees_the_gradient_there(base, members, tmp_path, weights, monkeypatch):
    """What the base optimizer steps with is autograd's gradient at θ + α Σ Δ_j, from the experts' own files."""
    from pipelines.finetune import optimizers

    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
            return super().step(closure)

    first, second = (finetune(**one) and str(one["out"]) for one in members("first", {"method": "plain"})[1:])
    monkeypatch.setattr(optimizers, "_make", lambda spec, groups: Spy(groups, lr=0.1))
    method = {"method": "mergopt", "offsets": "experts", "experts": [first, second], "alphas": [0.5]}
    own = members("own", method, steps=3, clip=0.0)[0]
    finetune(**own, others=[first, second])
    moved = seen.copy()
    seen.clear()

    class Hand(MergOPT):  # θ + α Σ Δ_j by hand, from the files
        def move(self):
            offset = self.draw(self.steps)
            chosen = [weights(p) for p in (tmp_path / "first" / "add", tmp_path / "first" / "at")]
            start = weights(base)
            for m in self.perturbation.moved:
                for j in self.chosen(offset):
                    m.weight.add_(0.5 * (chosen[j][m.name] - start[m.name]))
            self.ready = True

        def restore(self):
            offset, start = self.draw(self.steps), weights(base)
            if self.ready:
                chosen = [weights(p) for p in (tmp_path / "first" / "add", tmp_path / "first" / "at")]
                for m in self.perturbation.moved:
                    for j in self.chosen(offset):
                        m.weight.sub_(0.5 * (chosen[j][m.name] - start[m.name]))

    monkeypatch.setattr("mergeopt_core.finetuning.MergOPT", Hand)
    finetune(**{**own, "out": tmp_path / "hand"}, others=[first, second])
    for got, expected in zip(moved, seen, strict=True):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert len(moved) == 3


@pytest.mark.parametrize("more", [{"precision": "bf16_masters"}, {"precision": "bf16"}, {"lora": Lora(rank=2)}])
def test_precisions_adapters_and_accumulation_go_with_it(members, tmp_path, same, more):
    options = {"accumulation": 2, "clip": 0.5, "steps": 4, **more}
    together = in_one_process(members("together", **options), tmp_path)
    plain = finetune(**members("plain", {"method": "plain"}, **options)[0]) and tmp_path / "plain" / "odd"
    assert not same(together[0], plain)
    apart = in_stretches(members("apart", **options), tmp_path / "files")
    assert all(same(a, b) for a, b in zip(together, apart, strict=True))


def test_a_failure_in_one_process_is_told_and_stops_all(members, tmp_path):
    wanted = members("a")
    wanted[1]["task"] = Task(name="none", path=str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="no such file"):
        in_one_process(wanted, tmp_path)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"offsets": "pool"}, "one expert has no pool"),
        ({"offsets": "experts"}, "there are no experts"),
        ({"offsets": "pool", "inner": "ascent"}, "inner=ascent draws noise"),
        ({"offsets": "pool", "rounds": -1}, "a whole number, 0 or more"),
        ({"offsets": "live"}, "noise or pool or experts"),
    ],
)
def test_what_cannot_be_is_refused(train, method, message):
    with pytest.raises(UserError, match=message):
        train("a", {"method": "mergopt", **method})


def test_more_exchanges_than_steps_are_refused(members, tmp_path):
    with pytest.raises(UserError, match=r"9 exchanges do not fit into 7 steps.*give 6 rounds at most"):
        in_one_process(members("a"), tmp_path, rounds=9)


def test_given_experts_of_another_shape_are_refused(members, tmp_path, base):

    make_base(Base(hidden=40, layers=1, steps=1), tmp_path / "wide")
    own = members("own", {"method": "mergopt", "offsets": "experts", "experts": ["wide"]})[0]
    with pytest.raises(UserError, match=r"of shape .* give experts of the same base"):
        finetune(**own, others=[str(tmp_path / "wide")])
