import math

import pytest

from conf.errors import UserError
from conf.schema import Checkpoint, Config, Pool, Sampler
from pipelines.study.subsets import draw_orders, draw_subsets, left_out

EXPERTS = [f"e{i}" for i in range(12)]


def test_counts_and_distinctness():
    drawn = draw_subsets(EXPERTS, Sampler(sizes=[1, 2, 4, 11, 12], samples=15))
    by_size = {k: [s for s in drawn if len(s) == k] for k in (1, 2, 4, 11, 12)}
    assert {k: len(v) for k, v in by_size.items()} == {1: 12, 2: 15, 4: 15, 11: 12, 12: 1}
    assert len(set(drawn)) == len(drawn)
    assert all(list(s) == sorted(s, key=EXPERTS.index) for s in drawn)


def test_seed_decides_and_more_samples_extend():
    few = draw_subsets(EXPERTS, Sampler(sizes=[6], samples=5, seed=3))
    many = draw_subsets(EXPERTS, Sampler(sizes=[6], samples=40, seed=3))
    assert many[:5] == few
    assert draw_subsets(EXPERTS, Sampler(sizes=[6], samples=5, seed=3)) == few
    assert draw_subsets(EXPERTS, Sampler(sizes=[6], samples=5, seed=4)) != few


def test_every_expert_is_drawn_about_as_often():
    drawn = draw_subsets(EXPERTS, Sampler(sizes=[6], samples=400))
    expected = 400 * 6 / 12
    spread = math.sqrt(400 * 0.25)
    assert all(abs(sum(e in s for s in drawn) - expected) < 5 * spread for e in EXPERTS)


def test_no_sizes_means_all_experts_and_larger_ones_are_left_out():
    assert draw_subsets(EXPERTS[:3], Sampler()) == [("e0", "e1", "e2")]
    assert draw_subsets(EXPERTS[:3], Sampler(sizes=[2, 5], samples=1)) != []
    assert all(len(s) == 2 for s in draw_subsets(EXPERTS[:3], Sampler(sizes=[2, 5])))


def test_nonsense_is_refused():
    for sampler in (Sampler(sizes=[0]), Sampler(sizes=[2], samples=0)):
        with pytest.raises(UserError):
            draw_subsets(EXPERTS, sampler)


def test_orders_begin_with_the_pools_and_are_distinct():
    subset = tuple(EXPERTS[:3])
    assert draw_orders(subset, Sampler()) == [subset]
    assert sorted(draw_orders(subset, Sampler(orders=6))) == sorted(draw_orders(subset, Sampler(orders=99)))
    assert len(set(draw_orders(subset, Sampler(orders=99)))) == 6
    many = draw_orders(tuple(EXPERTS), Sampler(orders=20))
    assert many[0] == tuple(EXPERTS)
    assert len(set(many)) == 20
    assert {frozenset(order) for order in many} == {frozenset(EXPERTS)}
    assert many[:5] == draw_orders(tuple(EXPERTS), Sampler(orders=5))
    with pytest.raises(UserError, match="at least one order"):
        draw_orders(subset, Sampler(orders=0))


def test_sizes_that_some_pools_cannot_have_are_noted():
    pool = {name: {str(i): {"path": "x"} for i in range(n)} for name, n in (("small", 3), ("large", 6))}
    pools = {name: Pool(experts={k: Checkpoint(**v) for k, v in experts.items()}) for name, experts in pool.items()}
    config = Config(pools=pools, sampler=Sampler(sizes=[2, 5]), methods={"ties": {"method": "ties"}})
    assert left_out(config) == ([], ["Left out: subsets of 5 experts in small (3), which has fewer experts."])
