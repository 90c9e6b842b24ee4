import math

import numpy as np
import pytest
from scipy import stats

from mergeopt_core.statistics import (
    bootstrap_mean,
    cluster_weights,
    difference_p,
    macro_replicates,
    paired_bootstrap,
    task_replicates,
)


def closed_form_error(d, tasks):
    """Standard error of the macro mean difference: √(Σ_t s_t²/n_t) / T, written out from the definition."""
    names = sorted(set(tasks))
    parts = [d[tasks == t].var(ddof=1) / (tasks == t).sum() for t in names]
    return math.sqrt(sum(parts)) / len(names)


def scored(seed=0, sizes=(40, 300, 7)):
    rng = np.random.default_rng(seed)
    tasks = np.concatenate([[f"t{i}"] * n for i, n in enumerate(sizes)])
    a, b = rng.random(len(tasks)), (rng.random(len(tasks)) < 0.4) * 1.0
    order = rng.permutation(len(tasks))
    return a[order], b[order], tasks[order]


def test_estimate_is_the_macro_mean_and_spread_is_the_closed_form():
    a, b, tasks = scored()
    got = paired_bootstrap(a, b, tasks, resamples=40_000, seed=3)
    macro = np.mean([(a - b)[tasks == t].mean() for t in ("t0", "t1", "t2")])
    error = closed_form_error(a - b, tasks)
    assert got.estimate == pytest.approx(macro, abs=1e-12)
    assert (got.high - got.low) / 2 == pytest.approx(1.96 * error, rel=0.03)
    assert got.p == pytest.approx(2 * stats.norm.sf(abs(macro) / error), rel=0.15)


def test_agrees_with_scipy_percentile_bootstrap():
    x = np.random.default_rng(1).gamma(2.0, size=400)
    ours = bootstrap_mean(x, resamples=20_000, seed=0)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_pairing_removes_the_document_effect():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=500)
    a, b = hard + 0.01 * rng.normal(size=500) + 0.005, hard
    paired = paired_bootstrap(a, b, resamples=1000)
    alone = bootstrap_mean(a, resamples=1000)
    assert paired.high - paired.low < 0.05 * (alone.high - alone.low)
    assert paired.excludes_zero


def test_ninety_percent_intervals_cover_ninety_percent_of_the_time():
    rng, hits, runs = np.random.default_rng(7), 0, 400
    tasks = np.repeat(["x", "y"], [30, 60])
    chance = np.where(tasks == "x", 0.3, 0.8)
    for run in range(runs):
        seen = bootstrap_mean((rng.random(90) < chance) * 1.0, tasks, resamples=400, confidence=0.9, seed=run)
        hits += seen.low <= 0.55 <= seen.high
    assert abs(hits / runs - 0.9) < 0.05  # 3.3 standard errors


def test_p_values_of_equal_models_are_uniform():
    rng = np.random.default_rng(11)
    p = [paired_bootstrap(rng.random(80), rng.random(80), resamples=300, seed=s).p for s in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) < 0.05) < 0.1


def test_same_seed_same_numbers_and_the_draw_ignores_the_other_tasks_and_models():
    a, b, tasks = scored()
    assert paired_bootstrap(a, b, tasks, seed=4) == paired_bootstrap(a, b, tasks, seed=4)
    assert paired_bootstrap(a, b, tasks, seed=4).low != paired_bootstrap(a, b, tasks, seed=5).low
    one = task_replicates(a[None], resamples=50, seed=2, task="t")
    two = task_replicates(np.stack([b, a]), resamples=50, seed=2, task="t")
    np.testing.assert_allclose(one[0], two[1], atol=1e-12)
    both = macro_replicates({"t": a[None], "u": b[None]}, resamples=50, seed=2)
    np.testing.assert_allclose(both, (one + task_replicates(b[None], resamples=50, seed=2, task="u")) / 2, atol=1e-12)


def test_replicates_do_not_depend_on_the_chunk_of_memory_they_are_made_in_by_more_than_the_draw(monkeypatch):
    x = np.random.default_rng(0).random((3, 50))
    monkeypatch.setattr("mergeopt_core.statistics.bootstrap.CHUNK", 170)  # three resamples at a time
    small = task_replicates(x, resamples=3000, seed=0)
    assert small.shape == (3, 3000)
    np.testing.assert_allclose(small.std(axis=1), x.std(axis=1, ddof=1) / math.sqrt(50), rtol=0.06)


def test_averages_over_merges_widen_with_the_draw_of_merges():
    rng = np.random.default_rng(0)
    skill = rng.normal(0, 0.05, size=15)
    scores = np.clip(0.5 + skill[:, None] + rng.normal(0, 0.3, size=(15, 400)), -1, 2)
    everything = bootstrap_mean(scores, population=15, resamples=4000)
    sampled = bootstrap_mean(scores, population=500, resamples=4000)
    documents = scores.mean(axis=0).std(ddof=1) / 20
    between = scores.mean(axis=1).var(ddof=1) / 15 * (1 - 15 / 500)
    assert (everything.high - everything.low) / 3.92 == pytest.approx(documents, rel=0.06)
    # the two-way bootstrap is conservative by the interaction term, which is counted at both levels
    width = (sampled.high - sampled.low) / 3.92
    assert math.sqrt(between) < width < math.sqrt(between + 2 * documents**2) * 1.06


def test_cluster_weights_have_the_closed_form_variance():
    w = cluster_weights(6, 20, resamples=60_000, seed=0)
    x = np.array([0.1, 0.5, 0.2, 0.9, 0.4, 0.3])
    np.testing.assert_allclose(w.sum(axis=0), 1, atol=1e-12)
    assert (x @ w).var() == pytest.approx(x.var(ddof=1) / 6 * (1 - 6 / 20), rel=0.03)
    assert (cluster_weights(20, 20, resamples=3) == 1 / 20).all()
    assert (cluster_weights(1, 20, resamples=3) == 1).all()
    with pytest.raises(ValueError, match="population of 3"):
        cluster_weights(4, 3, resamples=2)


def test_p_is_never_smaller_than_a_sign_flip_test_could_give():
    assert paired_bootstrap([1, 1, 1], [0, 0, 0]).p == 0.25  # 2^(1−3)
    assert paired_bootstrap([1.0], [0.0]).p == 1.0
    assert difference_p(0.0, np.zeros(5), 0) == 1.0


def test_identical_models_differ_by_nothing():
    a = np.random.default_rng(0).random(30)
    got = paired_bootstrap(a, a)
    assert (got.estimate, got.low, got.high, got.p) == (0, 0, 0, 1)
    assert not got.excludes_zero


@pytest.mark.parametrize(
    ("a", "b", "strata", "message"),
    [
        ([1, 2], [1, 2, 3], None, "not paired"),
        ([], [], None, "shape"),
        ([1, math.nan], [1, 2], None, "NaN"),
        ([1, 2], [1, 2], ["x"], "one task name a document"),
    ],
)
def test_input_that_cannot_be_paired_is_refused(a, b, strata, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b, strata)
