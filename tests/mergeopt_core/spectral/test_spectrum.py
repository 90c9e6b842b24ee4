"""Spectral functions against plain decompositions in float64."""

import pytest
import torch

from mergeopt_core.spectral import decompositions
from mergeopt_core.spectral.decompositions import by_gram, lower_gram, newton_schulz, norm_bound
from mergeopt_core.spectral.spectrum import cross, cut, decompose, factors, orthonormal, polar, spectrum


def matrix(m, n, sigma=None, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(m, n, generator=g, dtype=torch.float64)
    if sigma is None:
        return x.to(dtype)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return ((u * sigma) @ vh).to(dtype)


def error(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50), (7, 1), (1, 7), (1, 1)])
@pytest.mark.parametrize("path", ["gram", "svd", "svd64"])
def test_replaced_values(shape, path):
    x = matrix(*shape)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    found = spectrum(x, path)
    torch.testing.assert_close(found.sigma, s)
    assert error(found.replaced(s), x) < 1e-12
    assert error(found.replaced(s**0.5), (u * s**0.5) @ vh) < 1e-12
    assert error(polar(x, path), u @ vh) < 1e-12


def test_float32_results_have_float32_errors_where_a_float32_svd_loses_digits():
    sigma = torch.logspace(0, -5, 96, dtype=torch.float64)
    x = matrix(96, 96, sigma)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    assert error(polar(x.float(), "svd"), u @ vh) > 1e-4
    assert error(spectrum(x, dtype=torch.float32).replaced(torch.ones(96)), u @ vh) < 1e-6


@pytest.mark.parametrize("smallest", [1e-4, 1e-5, 1e-6, 1e-7, 1e-9, 1e-12])
@pytest.mark.parametrize("kind", ["one weak direction", "power law", "weak cluster"])
def test_weak_directions_are_kept_or_left_to_the_svd(smallest, kind):
    sigma = torch.linspace(1, 0.5, 64, dtype=torch.float64)
    if kind == "one weak direction":
        sigma[-1] = smallest
    elif kind == "power law":
        sigma = torch.logspace(0, torch.log10(torch.tensor(smallest)).item(), 64, dtype=torch.float64)
    else:
        sigma[-10:] = smallest * torch.linspace(2, 1, 10)
    x = matrix(80, 64, sigma)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    got = spectrum(x).replaced(torch.ones(64))
    if smallest > 1e-10:  # below, float64 itself does not know the directions
        assert error(got, u @ vh) < 1e-5
    assert error(got.mT @ got, torch.eye(64, dtype=torch.float64)) < 1e-5


def test_the_svd_takes_over_only_where_it_must(monkeypatch):
    calls = []
    plain = decompositions._svd
    monkeypatch.setattr(decompositions, "_svd", lambda *a: calls.append(1) or plain(*a))
    one_weak = torch.linspace(1, 0.5, 64, dtype=torch.float64)
    one_weak[-1] = 1e-7
    spectrum(matrix(64, 64, one_weak))
    spectrum(matrix(64, 64))
    assert not calls
    rank_4 = torch.zeros(64, dtype=torch.float64)
    rank_4[:4] = 1
    spectrum(matrix(64, 64, rank_4), floor=1e-4)
    assert not calls
    spectrum(matrix(64, 64, rank_4))
    assert calls == [1]


def test_rank():
    sigma = torch.tensor([1.0, 1e-2, 1e-6, 0.0], dtype=torch.float64)
    found = spectrum(matrix(6, 4, sigma), "svd64")
    assert [found.rank(t) for t in (1e-1, 1e-4, 1e-8)] == [1, 2, 3]
    assert spectrum(torch.zeros(3, 2)).rank(0.0) == 0


def test_lower_gram():
    for n in (1, 3, 10, 33):
        x = matrix(12, n)
        assert torch.equal(torch.tril(lower_gram(x)) != 0, torch.tril(torch.ones(n, n)) > 0)
        torch.testing.assert_close(torch.tril(lower_gram(x)), torch.tril(x.mT @ x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(40, 38), (40, 20)])
def test_orthonormal(shape, dtype):
    x = matrix(*shape, dtype=dtype)
    u, _, vh = torch.linalg.svd(x.double(), full_matrices=False)
    q, e = orthonormal(x, x.double().mT @ x.double())
    assert q.dtype == e.dtype == dtype
    assert error(q @ e.mT, u @ vh) < (1e-5 if dtype == torch.float32 else 1e-11)


def test_orthonormal_of_dependent_columns_is_the_partial_isometry():
    half = matrix(30, 6)
    half = polar(half)
    twice = torch.cat([half, half], dim=1)
    q, e = orthonormal(twice, twice.mT @ twice)
    assert error(q @ e.mT, twice / 2**0.5) < 1e-12


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
@pytest.mark.parametrize("path", ["gram", "svd"])
def test_decompose(shape, path):
    x = matrix(*shape)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    for k in (0, 5, 40):
        found = decompose(x, k, path)
        assert found["U"].shape == (shape[0], k)
        assert found["V"].shape == (shape[1], k)
        torch.testing.assert_close(found["S"], s)
        wanted = (u[:, :k] * s[:k]) @ vh[:k]
        torch.testing.assert_close((found["U"] * s[:k]) @ found["V"].mT, wanted)


def test_factors_come_from_the_cache_to_the_same_bits():
    x = matrix(30, 20, dtype=torch.float32)
    made = []

    def make():
        made.append(1)
        return x

    cache: dict = {}
    call = {"expert": "e", "tensor": "t"}
    first = factors(make, 5, cache=cache, **call)
    again = factors(make, 5, cache=cache, **call)
    fewer = factors(make, 3, cache=cache, **call)
    alone = factors(make, 3, **call)
    assert len(made) == 2
    for side in "USV":
        assert torch.equal(first[side], again[side])
        assert torch.equal(fewer[side], alone[side])
    factors(make, 15, cache=cache, **call)
    assert len(made) == 3


def test_cross_products_are_kept_by_size():
    a, b = (decompose(matrix(30, 20, seed=s), 8) for s in (1, 2))
    cache: dict = {}
    full = cross(a, b, experts=("a", "b"), tensor="t", cache=cache)
    torch.testing.assert_close(full["U"], a["U"].mT @ b["U"])
    assert cross(a, b, experts=("a", "b"), tensor="t", cache=cache) is full
    small = cross(cut(a, 3), cut(b, 4), experts=("a", "b"), tensor="t", cache=cache)
    torch.testing.assert_close(small["V"], (a["V"].mT @ b["V"])[:3, :4])


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
def test_newton_schulz_is_the_polar_factor_and_its_bound_holds(shape):
    for seed in range(5):
        x = matrix(*shape, seed=seed)
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        assert s[0] <= norm_bound(x) <= s[0] * min(shape) ** 0.125 * (1 + 1e-12)
        assert error(newton_schulz(x), u @ vh) < 1e-6
    assert error(newton_schulz(matrix(*shape).float()), polar(matrix(*shape))) < 1e-4


def test_by_gram_gives_up_where_directions_are_lost():
    x = matrix(20, 10)
    x[:, 0] = x[:, 1]
    assert by_gram(x, 10) is None
    assert by_gram(x, 5) is not None
    assert by_gram(x, 10, floor=1e-4) is not None
