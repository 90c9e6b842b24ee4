"""Merges of low-rank factors against float64 transcriptions of KnOTS (01a940c) and Core Space (e66f357), and peft."""

import numpy as np
import pytest
import torch
from numpy.linalg import norm, svd

from mergeopt_core.merging import BoundMethod, check_parameters, merge_tensor
from mergeopt_core.spectral.low_rank import Low, side_by_side

NAME = "model.layers.0.self_attn.q_proj.weight"
IDS = ["a", "b", "c"]


def adapters(m=24, n=18, ranks=(2, 3, 2), seed=0):
    g = torch.Generator().manual_seed(seed)
    return [Low(torch.randn(m, r, generator=g), torch.randn(r, n, generator=g)) for r in ranks]


def product(low):
    return (low.b.double() @ low.a.double()).numpy()


def bound(method, parameters=None, ids=IDS):
    return BoundMethod(method, check_parameters(method, parameters or {}, len(ids)), ids)


def update(method, parts, parameters=None):
    """The merged update from factors: as ``merge`` and as ``factored`` give it, which have to agree."""
    base = torch.randn(parts[0].b.shape[0], parts[0].a.shape[1], generator=torch.Generator().manual_seed(9))
    made = bound(method, parameters)
    merged = made.merge(NAME, base, [base] * len(parts), factors=parts)
    low = made.factored(NAME, parts)
    assert low.b.shape[1] <= sum(part.b.shape[1] for part in parts)
    got = (merged.double() - base.double()).numpy()
    assert norm(got - product(low)) < 1e-5 * norm(got)
    return product(low)


def inside(method, cores, parameters=None):
    """A method over a base of zeros."""
    cores = [torch.tensor(core) for core in cores]
    given = {"tensor_name": NAME, "ids": IDS, "parameters": parameters or {}, "seed": 0}
    return merge_tensor(method, torch.zeros_like(cores[0]), cores, **given).numpy()


@pytest.mark.parametrize(("method", "given"), [("ties", {"density": 0.4}), ("tsv_m", {}), ("iso_c", {})])
def test_core_space(method, given):
    parts = adapters()
    u = svd(np.concatenate([part.b.double().numpy() for part in parts], 1), full_matrices=False)[0]
    v = svd(np.concatenate([part.a.double().numpy() for part in parts], 0), full_matrices=False)[2].T
    cores = [u.T @ product(part) @ v for part in parts]
    assert all(norm(u @ core @ v.T - product(part)) < 1e-10 for core, part in zip(cores, parts))  # lossless
    wanted = 0.5 * u @ inside(method, cores, given) @ v.T
    got = update("core_space", parts, {"base_method": method, "base_parameters": given, "lambda": 0.5})
    assert norm(got - wanted) < 1e-5 * norm(wanted)


@pytest.mark.parametrize(("method", "given"), [("ties", {"density": 0.4}), ("tsv_m", {})])
def test_knots(method, given):
    parts = adapters()
    u, s, vh = svd(np.concatenate([product(part) for part in parts], 1), full_matrices=False)
    keep = s > 1e-5
    assert keep.sum() == 7
    rows = np.split(s[keep, None] * vh[keep], 3, axis=1)
    wanted = u[:, keep] @ inside(method, rows, given)
    got = update("knots", parts, {"base_method": method, "base_parameters": given})
    assert norm(got - wanted) < 1e-5 * norm(wanted)


@pytest.mark.parametrize("method", ["core_space", "knots"])
def test_sums_commute_with_any_space(method):
    parts = adapters()
    got = update(method, parts, {"base_method": "task_arithmetic"})
    assert norm(got - sum(map(product, parts))) < 1e-5 * norm(got)
    backwards = bound(method, ids=IDS[::-1]).factored(NAME, parts[::-1])
    assert torch.equal(backwards.b, bound(method).factored(NAME, parts).b)


@pytest.mark.parametrize("method", ["core_space", "knots", "lora_linear", "task_arithmetic"])
def test_experts_without_an_update_of_a_tensor(method):
    none = Low(torch.zeros(24, 0), torch.zeros(0, 18))
    one = adapters(ranks=(2,))[0]
    given = {"base_method": "task_arithmetic"} if method in ("core_space", "knots") else {}
    got = product(bound(method, given).factored(NAME, [none, one, none]))
    assert norm(got - product(one)) < 1e-5 * norm(got)
    assert not product(bound(method, given).factored(NAME, [none] * 3)).any()


def test_lora_linear_adds_factors_as_peft_does():
    parts, weights = adapters(ranks=(2, 2, 2)), [0.5, 1.0, -0.3]
    b = sum(np.sqrt(abs(w)) * part.b.double().numpy() for w, part in zip(weights, parts))
    a = sum(np.sign(w) * np.sqrt(abs(w)) * part.a.double().numpy() for w, part in zip(weights, parts))
    got = product(bound("lora_linear", {"weight": weights}).factored(NAME, parts))
    assert norm(got - b @ a) < 1e-5 * norm(got)
    with pytest.raises(ValueError, match="adapters of one rank, these have 2, 3, 2"):
        bound("lora_linear").factored(NAME, adapters())


def test_truncation_is_that_of_the_product():
    low = side_by_side(adapters(), [1.0, 0.5, 2.0], 0.7)
    whole = 0.7 * sum(w * product(part) for w, part in zip([1.0, 0.5, 2.0], adapters()))
    u, s, vh = svd(whole)
    cut, lost, total = low.truncated(4)
    wanted = (u[:, :4] * s[:4]) @ vh[:4]
    assert norm(product(cut) - wanted) < 1e-5 * norm(wanted)
    assert lost == pytest.approx((s[4:] ** 2).sum(), rel=1e-5)
    assert total == pytest.approx((s**2).sum(), rel=1e-5)
    same, lost, _ = low.truncated(9)
    assert same.b.shape == (24, 9)
    assert norm(product(same) - whole) < 1e-5 * norm(whole)
    assert lost < 1e-9


def test_what_cannot_merge_inside_a_space_is_refused():
    for inner in ("linear", "ties_global", "fisher", "lines", "core_space"):
        with pytest.raises(ValueError, match=f"knots: base_method cannot be {inner}"):
            check_parameters("knots", {"base_method": inner}, 3)
