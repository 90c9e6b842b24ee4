"""The noise: its distribution, its independence, and that its bits depend on nothing but key and place."""

import numpy as np
import pytest
import torch
from scipy import stats

from mergeopt_core.finetuning import sampling
from mergeopt_core.finetuning.sampling import Noise, add_noise, add_noise_compiled, noise_like

LAW = {"laplace": stats.laplace(), "gaussian": stats.norm(scale=2**0.5)}


@pytest.mark.parametrize("name", ["laplace", "gaussian"])
def test_distribution(name):
    z = noise_like(torch.empty(400_000), Noise(11, name)).double().numpy()
    assert stats.kstest(z, LAW[name].cdf).pvalue > 1e-3
    assert abs(z.mean()) < 5 * (2 / z.size) ** 0.5
    assert abs(z.var() - 2) < 0.05
    assert np.isfinite(z).all()


def test_location_and_scale():
    z = noise_like(torch.empty(200_000), Noise(5), loc=0.3, scale=0.01)
    assert abs(z.median() - 0.3) < 1e-3
    assert abs((z - 0.3).abs().mean() - 0.01) < 1e-4


def test_neighbours_and_streams_are_uncorrelated():
    n = 200_000
    a, b = noise_like(torch.empty(n), Noise(1)).double(), noise_like(torch.empty(n), Noise(2)).double()
    for u, v in ((a, b), (a[:-1], a[1:]), (a[:-64], a[64:]), (a.abs() - 1, b.abs() - 1)):
        r = float((u * v).sum() / (u.norm() * v.norm()))
        assert abs(r) < 5 / n**0.5


@pytest.mark.parametrize("name", ["laplace", "gaussian"])
def test_bits_do_not_depend_on_pieces_or_threads(name, monkeypatch):
    weight = torch.linspace(-1, 1, 100_003)
    whole = add_noise(weight, torch.empty_like(weight), -0.3, Noise(9, name))
    monkeypatch.setattr(sampling, "PIECE", 1000)
    pieces = add_noise(weight, torch.empty_like(weight), -0.3, Noise(9, name))
    assert torch.equal(whole, pieces)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert torch.equal(whole, add_noise(weight, torch.empty_like(weight), -0.3, Noise(9, name)))
    finally:
        torch.set_num_threads(threads)


def test_laplace_equals_the_inverse_distribution_function():
    """The same random bits, put through numpy's logarithm in double precision."""
    n, key = 5000, 123456789012345
    counter, x, t = (
        torch.arange(n, dtype=torch.int32),
        torch.empty(n, dtype=torch.int32),
        torch.empty(n, dtype=torch.int32),
    )
    bits = sampling._hash(counter, sampling._words(key, 0), 0, x, t).numpy().astype(np.int64)
    u = ((bits & 0x7FFFFFFF) | 1) / 2.0**31
    expected = np.where(bits < 0, -1.0, 1.0) * np.log(u)
    np.testing.assert_allclose(noise_like(torch.empty(n), Noise(key)).numpy(), expected, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_get_the_same_noise(dtype):
    weight = torch.linspace(-1, 1, 999).to(dtype)
    out = add_noise(weight, torch.empty_like(weight), 0.5, Noise(4))
    expected = weight.double() + noise_like(torch.empty(999), Noise(4)).double() * 0.5
    torch.testing.assert_close(
        out.double(), expected.to(dtype).double(), rtol=0, atol=1e-6 if dtype == torch.float64 else 0.02
    )


def test_compiled_kernel_falls_back_where_it_cannot_compile(monkeypatch):
    def fails(_):
        raise RuntimeError("no compiler")

    fails.cache_clear = lambda: None
    monkeypatch.setattr(sampling, "_kernel", fails)
    weight = torch.linspace(-1, 1, 1000)
    fast = add_noise_compiled(weight, torch.empty_like(weight), 0.5, Noise(4))
    assert torch.equal(fast, add_noise(weight, torch.empty_like(weight), 0.5, Noise(4)))


@pytest.mark.parametrize("name", ["laplace", "gaussian"])
def test_a_weights_noise_is_its_stretch_of_the_stream(name, monkeypatch):
    """Small neighbours share pieces, in any order, also across the bound of a block of counters."""
    monkeypatch.setattr(sampling, "PIECE", 64)
    monkeypatch.setattr(sampling, "BLOCK", 512)
    whole = noise_like(torch.empty(1100), Noise(3, name, 1100))
    shared = Noise(3, name, 1100)
    for place, n in ((0, 5), (5, 100), (500, 30), (1000, 100), (40, 1)):
        assert torch.equal(noise_like(torch.empty(n), shared, place), whole[place : place + n])
    assert len(torch.unique(whole)) > 1090
