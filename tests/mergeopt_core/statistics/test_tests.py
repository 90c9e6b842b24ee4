import numpy as np
import pytest
from scipy import stats

from mergeopt_core.statistics import (
    benjamini_hochberg,
    binomial_test,
    clopper_pearson,
    holm,
    mcnemar,
    sign_flip,
    wilson,
)


def test_binomial_by_hand():
    assert binomial_test(3, 10) == pytest.approx(2 * (1 + 10 + 45 + 120) / 1024)
    assert binomial_test(2, 2, 0.2) == pytest.approx(0.04)
    assert binomial_test(0, 0) == 1
    with pytest.raises(ValueError):
        binomial_test(3, 2)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (7, 9), (9, 9), (30, 45), (1, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_proportion_intervals(k, n, confidence):
    """Wilson's against SciPy's, the exact one against the Beta quantiles."""
    got, want = wilson(k, n, confidence), stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=1e-12)
    exact, tail = clopper_pearson(k, n, confidence), (1 - confidence) / 2
    low = stats.beta.ppf(tail, k, n - k + 1) if k else 0
    high = stats.beta.ppf(1 - tail, k + 1, n - k) if k < n else 1
    assert (exact.low, exact.high) == pytest.approx((low, high), abs=1e-9)
    assert got.estimate == exact.estimate == k / n


def test_nothing_counted_is_nothing_known():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)
    with pytest.raises(ValueError, match="0 ≤ k ≤ n"):
        wilson(3, 2)


def test_mcnemar_is_the_coin_on_documents_that_differ():
    a, b = np.array([1, 1, 1, 1, 1, 0, 0, 1]), np.array([0, 0, 0, 0, 1, 1, 0, 1])
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(4, 5, 0.5).pvalue)
    assert mcnemar(a, a) == 1
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar([0.5, 1], [0, 1])


def test_exact_sign_flip_equals_mcnemar_and_scipy():
    a, b = np.array([1, 1, 1, 1, 1, 0, 0, 1.0]), np.array([0, 0, 0, 0, 1, 1, 0, 1.0])
    assert sign_flip(a, b) == pytest.approx(mcnemar(a, b))
    d = np.random.default_rng(0).normal(0.3, 1, 12)
    flips = stats.permutation_test(
        (d, np.zeros(12)), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(d, np.zeros(12)) == pytest.approx(flips.pvalue)


def test_random_sign_flip_agrees_with_the_normal_limit_and_weighs_tasks_equally():
    rng = np.random.default_rng(2)
    tasks = np.repeat(["large", "small"], [900, 100])
    d = rng.normal(np.where(tasks == "small", 0.35, 0.0), 1)
    weights = np.where(tasks == "small", 1 / 200, 1 / 1800)
    z = (weights * d).sum() / np.sqrt((weights**2 * d**2).sum())
    want = 2 * stats.norm.sf(abs(z))
    assert sign_flip(d, np.zeros(1000), tasks, resamples=20_000) == pytest.approx(want, abs=0.01)
    assert sign_flip(d, np.zeros(1000), tasks, seed=1) == sign_flip(d, np.zeros(1000), tasks, seed=1)


def test_holm_by_hand():
    # ranked .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert len(holm([])) == 0


def test_benjamini_hochberg_by_hand():
    # ranked .01 .03 .04 times 3/1 3/2 3/3 = .03 .045 .04, made monotone from above
    np.testing.assert_allclose(benjamini_hochberg([0.04, 0.01, 0.03]), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(benjamini_hochberg([0.9, 0.8]), [0.9, 0.9])


def test_holm_keeps_false_claims_rare_where_uncorrected_tests_do_not():
    p = np.random.default_rng(0).random((500, 20))
    assert np.mean([holm(row).min() < 0.05 for row in p]) < 0.08
    assert np.mean((p < 0.05).any(axis=1)) > 0.5


@pytest.mark.parametrize("p", [[1.2], [-0.1], [float("nan")], [[0.1]]])
def test_what_are_no_p_values_is_refused(p):
    with pytest.raises(ValueError, match="p-values"):
        holm(p)
