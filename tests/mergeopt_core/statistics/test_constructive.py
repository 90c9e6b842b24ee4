import math

import numpy as np
import pytest

from mergeopt_core.statistics import Tally, constructive, performance_drop, share_kept, union_test


def test_constructive_means_better_than_the_base_and_every_expert():
    assert constructive(0.61, 0.5, [0.55, 0.6]).constructive
    assert not constructive(0.6, 0.5, [0.55, 0.6]).constructive  # equal is not above
    between = constructive(0.58, 0.5, [0.55, 0.6])
    assert (between.above_base, between.above_mean, between.constructive, between.best_rival) == (True, True, False, 2)
    assert constructive(0.58, 0.7, [0.55, 0.6]).best_rival == 0


def test_rounding_alone_is_not_constructive():
    assert not constructive(0.1 + 0.2, 0.3, [0.1]).constructive


def test_a_comparison_needs_numbers():
    with pytest.raises(ValueError, match="at least one expert"):
        constructive(0.5, 0.4, [])
    with pytest.raises(ValueError, match="NaN"):
        constructive(0.5, math.nan, [0.4])


def test_tally_counts_with_wilsons_interval():
    tally = Tally.of([True] * 7 + [False] * 2)
    assert (tally.k, tally.n) == (7, 9)
    # by hand: z = 1.96; (7 + 1.92 ± 1.96·√(7·2/9 + 0.96)) / 12.84
    assert (tally.share.low, tally.share.high) == pytest.approx((0.4526, 0.9368), abs=1e-3)


def test_beating_all_is_as_sure_as_the_least_sure_comparison():
    assert union_test([0.1, 0.2], [0.03, 0.001]) == 0.03
    assert union_test([0.1, -0.2], [0.03, 0.001]) == 1.0


def test_union_test_keeps_its_level_at_the_edge():
    # the merge equals one rival and clearly beats the other: claims at 5 % must stay at most 2.5 % (one side)
    rng = np.random.default_rng(0)
    z = rng.normal(size=4000)
    p = 2 * (1 - np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))(np.abs(z)))
    claims = np.mean([union_test([d, 9.0], [q, 0.0]) < 0.05 for d, q in zip(z, p)])
    assert claims == pytest.approx(0.025, abs=0.01)


def test_share_kept_by_hand():
    merge, base, expert = np.array([0.6, 0.5]), np.array([0.5, 0.5]), np.array([0.9, 0.7])
    assert share_kept(merge, base, expert) == pytest.approx(0.1 / 0.6)
    assert share_kept(expert, base, expert) == pytest.approx(1)
    replicates = np.repeat(merge[:, None], 4, axis=1)
    assert share_kept(replicates, base[:, None], expert[:, None]).shape == (4,)


def test_performance_drop():
    np.testing.assert_allclose(performance_drop([0.8, 0.5, 0.0], [0.6, 0.5, 0.1]), [0.25, 0.0, np.nan])
