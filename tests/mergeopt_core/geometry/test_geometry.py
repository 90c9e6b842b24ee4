import math

import numpy as np
import pytest
import torch
from scipy import stats

from mergeopt_core.geometry import (
    cosines,
    gram,
    ks_laplace,
    ks_normal,
    laplace_fit,
    sample_positions,
    sign_agreement,
    squared_distance,
)


def test_laplace_fit_equals_scipy_on_laplace_and_normal_elements():
    rng = np.random.default_rng(0)
    for draw in (rng.laplace(0.001, 0.004, 4001), rng.normal(0, 0.01, 4000)):
        fit = laplace_fit(torch.from_numpy(draw).reshape(-1, 1))
        location, scale = stats.laplace.fit(draw)
        assert (fit.location, fit.scale) == pytest.approx((location, scale), rel=1e-9)
        assert fit.ks_laplace == pytest.approx(stats.kstest(draw, "laplace", (location, scale)).statistic, abs=1e-9)
        normal = (draw.mean(), draw.std())
        assert fit.ks_normal == pytest.approx(stats.kstest(draw, "norm", normal).statistic, abs=1e-9)
        assert fit.log_laplace == pytest.approx(stats.laplace.logpdf(draw, location, scale).mean(), rel=1e-9)
        assert fit.log_normal == pytest.approx(stats.norm.logpdf(draw, *normal).mean(), rel=1e-9)
    assert laplace_fit(torch.from_numpy(rng.laplace(size=5000))).ks_laplace < 0.03


def test_distance_to_a_law_that_is_not_the_fitted_one():
    x = np.random.default_rng(1).normal(size=500)
    assert ks_laplace(torch.from_numpy(x), 0.3, 2.0) == pytest.approx(stats.kstest(x, "laplace", (0.3, 2)).statistic)
    assert ks_normal(torch.from_numpy(x), 0.3, 2.0) == pytest.approx(stats.kstest(x, "norm", (0.3, 2)).statistic)


def test_elements_that_cannot_be_fitted():
    assert laplace_fit(torch.full((5,), 0.25)).scale == 0
    with pytest.raises(ValueError, match="no elements"):
        laplace_fit(torch.empty(0))
    with pytest.raises(ValueError, match="NaN"):
        laplace_fit(torch.tensor([1.0, math.inf]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0, 7, 40_000])
def test_inner_products_and_distances_equal_numpy_in_float64(dtype, size):
    torch.manual_seed(0)
    base, *experts = (torch.randn(1, size).to(dtype) for _ in range(4))
    deltas = np.stack([expert.double().numpy().ravel() - base.double().numpy().ravel() for expert in experts])
    where = torch.arange(0, size, 3)
    entries = torch.empty(len(experts), len(where))
    products = gram(base, experts, where, entries)
    np.testing.assert_array_equal(entries.numpy(), deltas[:, ::3].astype(np.float32))
    assert torch.equal(products, gram(base, experts))
    np.testing.assert_allclose(products.numpy(), deltas @ deltas.T, rtol=0, atol=4e-6 * size)
    assert squared_distance(experts[0], base) == pytest.approx(float(deltas[0] @ deltas[0]), rel=1e-12)
    if size:
        norms = np.linalg.norm(deltas, axis=1)
        np.testing.assert_allclose(cosines(products).numpy(), deltas @ deltas.T / np.outer(norms, norms), atol=2e-6)
        torch.testing.assert_close(cosines(torch.stack([products, products]))[1], cosines(products))


def test_a_zero_vector_has_no_direction():
    values = cosines(gram(torch.ones(2), [torch.ones(2) + 1, torch.ones(2)]))
    assert values[0, 0] == 1
    assert values[0, 1].isnan()
    assert values[1, 1].isnan()


@pytest.mark.parametrize(("total", "size"), [(10, 10), (10, 99), (10, 7), (1000, 30), (10**12, 5000)])
def test_positions_are_distinct_sorted_and_of_a_seed(total, size):
    found = sample_positions(total, size, 3)
    assert len(found) == min(total, size)
    assert (np.diff(found) > 0).all()
    assert 0 <= found[0] < found[-1] < total
    assert (found == sample_positions(total, size, 3)).all()
    assert size >= total or not np.array_equal(found, sample_positions(total, size, 4))


def test_positions_are_uniform():
    counts = sum(np.bincount(sample_positions(10, 3, seed), minlength=10) for seed in range(2000))
    assert stats.chisquare(counts).pvalue > 1e-4


def test_signs_by_hand():
    a, b, c = torch.tensor([1.0, 1, 0, -2, 0]), torch.tensor([2.0, -1, 0, -1, 3]), torch.tensor([0.0, 1, 0, -4, 0])
    seen = sign_agreement([[a, b, c]])
    assert (seen.elements, seen.all_zero, seen.single, seen.agree, seen.conflict) == (5, 1, 1, 2, 1)


def test_shapes_must_match():
    for take in (lambda: gram(torch.ones(2), [torch.ones(3)]), lambda: squared_distance(torch.ones(2), torch.ones(3))):
        with pytest.raises(ValueError, match=r"\[3\]"):
            take()
    with pytest.raises(ValueError, match="shapes"):
        sign_agreement([[torch.ones(2), torch.ones(3)]])
