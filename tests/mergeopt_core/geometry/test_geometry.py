import math

import numpy as np
import pytest
import torch
from scipy import stats

from mergeopt_core.geometry import cosines, gram, ks_laplace, ks_normal, laplace_fit, norms, sign_agreement


def test_laplace_fit_equals_scipy_on_laplace_and_normal_elements():
    rng = np.random.default_rng(0)
    for draw in (rng.laplace(0.001, 0.004, 4001), rng.normal(0, 0.01, 4000)):
        fit = laplace_fit(torch.from_numpy(draw).reshape(-1, 1))
        location, scale = stats.laplace.fit(draw)
        assert (fit.location, fit.scale) == pytest.approx((location, scale), rel=1e-9)
        assert fit.ks_laplace == pytest.approx(stats.kstest(draw, "laplace", (location, scale)).statistic, abs=1e-9)
        normal = (draw.mean(), draw.std())
        assert fit.ks_normal == pytest.approx(stats.kstest(draw, "norm", normal).statistic, abs=1e-9)
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


def groups():
    torch.manual_seed(0)
    return [[torch.randn(3, 4) for _ in range(3)], [torch.randn(7) for _ in range(3)]]


def test_cosines_equal_those_of_the_concatenated_vectors():
    parts = groups()
    flat = torch.stack([torch.cat([p[k].flatten() for p in parts]) for k in range(3)]).double()
    torch.testing.assert_close(gram(parts), flat @ flat.T)
    want = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    torch.testing.assert_close(cosines(parts), want)
    assert norms([p[1] for p in parts]).l2 == pytest.approx(float(flat[1].norm()))
    assert norms([p[1] for p in parts]).l1 == pytest.approx(float(flat[1].abs().sum()))
    assert norms([p[1] for p in parts]).largest == float(flat[1].abs().max())


def test_a_zero_vector_has_no_direction():
    values = cosines([[torch.ones(2), torch.zeros(2)]])
    assert values[0, 0] == 1
    assert values[0, 1].isnan()


def test_signs_by_hand():
    a, b, c = torch.tensor([1.0, 1, 0, -2, 0]), torch.tensor([2.0, -1, 0, -1, 3]), torch.tensor([0.0, 1, 0, -4, 0])
    seen = sign_agreement([[a, b, c]])
    assert (seen.elements, seen.all_zero, seen.single, seen.agree, seen.conflict) == (5, 1, 1, 2, 1)


def test_shapes_must_match():
    with pytest.raises(ValueError, match="shapes"):
        gram([[torch.ones(2), torch.ones(3)]])
