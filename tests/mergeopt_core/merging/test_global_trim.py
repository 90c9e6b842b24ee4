"""Thresholds over a whole model: exact, in two passes, whatever the order and the split into tensors."""

import numpy as np
import pytest
import torch
from golden_calls import merge_model
from mergekit.merge_methods.api import merge_state_dicts

from mergeopt_core.merging import merge_tensor, prepare, trimming
from mergeopt_core.merging.ties import kept_globally, largest_agreeing
from mergeopt_core.merging.trimming import global_thresholds, kth_by_bits, kth_by_sample, kth_largest


def model(shapes, seed, dtype=torch.float32, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return {f"t{k}": (scale * torch.randn(s, generator=g)).to(dtype) for k, s in enumerate(shapes)}


SHAPES = [(40, 30), (7,), (1, 1), (500,), (3, 4, 5)]


def flat(tensors):
    return np.concatenate([t.float().numpy().ravel() for t in tensors.values()])


def thresholds(base, experts, kept, visits=None):
    ids = [f"e{k}" for k in range(len(experts))]

    def models():
        return ((name, base[name], [e[name] for e in experts]) for name in visits or base)

    return list(global_thresholds(models, ids, lambda n, key: kept, dict.fromkeys(ids, "")).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [1, 2, 100, 1000, 1767, 1768])
def test_the_threshold_is_the_kth_largest_magnitude(kept, dtype):
    base = model(SHAPES, 0, dtype)
    experts = [model(SHAPES, s, dtype, 10.0**s) for s in (1, 2)]
    n = sum(t.numel() for t in base.values())
    assert n == 1768
    wanted = [np.sort(np.abs(flat(e) - flat(base)))[n - kept] for e in experts]
    assert thresholds(base, experts, kept) == [float(w) for w in wanted]
    assert thresholds(base, experts, kept, list(base)[::-1]) == [float(w) for w in wanted]


def test_extreme_magnitudes():
    base = {"a": torch.zeros(8)}
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-38, 3e38, -3e38, 1.0, 1.0])
    ranked = sorted(values.abs().tolist(), reverse=True)
    for kept in range(1, 9):
        assert thresholds(base, [{"a": values}], kept) == [ranked[kept - 1]]
    assert thresholds(base, [{"a": values}], 0) == [float("inf")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", ["random", "sorted"])
def test_an_accelerator_finds_the_same_magnitude_by_its_own_ways(dtype, order, monkeypatch):
    monkeypatch.setattr(trimming, "SAMPLE", 100)
    values = torch.tensor([0.0, 1e-45, 1e-38, 3e38, 1.0, 1.0, 0.75, 2.0], dtype=dtype)
    values = torch.cat([values, torch.randn(5000, dtype=dtype, generator=torch.Generator().manual_seed(0)).abs()])
    values = torch.cat([values, values.bfloat16().to(dtype)])  # many are equal
    if order == "sorted":  # of which no regular sample is random
        values = torch.cat([values[::2].sort().values, values[1::2].sort(descending=True).values])
    ranked = sorted(values.tolist(), reverse=True)
    for k in (1, 2, 3, 10, 1000, 5000, 10014, 10016):
        expected = kth_largest(values.clone(), k)
        assert kth_by_bits(values, k) == kth_by_sample(values, k) == expected == ranked[k - 1]


def test_counts_follow_each_convention():
    assert kept_globally(1000, 0.2, "official") == 201
    assert kept_globally(1000, 0.2, "exact") == 200
    assert kept_globally(1000, 0.2, "mergelm") == 201
    assert kept_globally(1001, 0.2, "mergelm") == 1001 - 800 + 1
    assert [kept_globally(10, d, "official") for d in (0.0, 1.0, 0.999)] == [0, 10, 10]


def ties_by_hand(base, experts, density, merge, zero_sign):
    delta = np.stack([flat(e).astype(np.float64) - flat(base) for e in experts])
    n = delta.shape[1]
    kept = int(density * n) + 1
    for row in delta:
        row[np.abs(row) < np.sort(np.abs(row))[n - kept]] = 0
    elected = np.sign(delta.sum(0))
    majority = np.sign(elected.sum()) if zero_sign == "majority" else 1
    elected[elected == 0] = majority
    agree = np.where(np.sign(delta) == elected, delta, 0)
    if merge == "max":
        return np.abs(agree).max(0) * elected
    return agree.sum(0) / (np.maximum((agree != 0).sum(0), 1) if merge == "mean" else 1)


@pytest.mark.parametrize("merge", ["mean", "sum", "max"])
@pytest.mark.parametrize("zero_sign", ["positive", "majority"])
def test_ties_global_by_hand(merge, zero_sign):
    base = {k: torch.zeros_like(v) for k, v in model(SHAPES, 0).items()}
    experts = [{k: v - 0.3 for k, v in model(SHAPES, s).items()} for s in (1, 2, 3)]
    experts[1]["t3"][:40] = -experts[0]["t3"][:40]
    experts[2]["t3"][:40] = 0.0
    given = {"density": 0.6, "merge": merge, "zero_sign": zero_sign}
    merged = merge_model("ties_global", base, experts, given)
    wanted = ties_by_hand(base, experts, 0.6, merge, zero_sign)
    np.testing.assert_allclose(flat(merged), wanted, rtol=1e-5, atol=1e-6)


def test_zero_signs_differ_where_sums_cancel():
    base = {"a": torch.zeros(6)}
    experts = [{"a": torch.tensor([1.0, -9, -9, -9, 0, 0])}, {"a": torch.tensor([-1.0, -9, -9, -9, 0, 0])}]
    for sign, value in (("positive", 1.0), ("majority", -1.0)):
        assert merge_model("ties_global", base, experts, {"density": 1.0, "zero_sign": sign})["a"][0] == value


def test_a_density_for_each_expert_and_thresholds_from_the_cache():
    base, experts = model(SHAPES, 0), [model(SHAPES, s) for s in (1, 2)]
    cache: dict = {}
    given = {"density": {"x": 0.1, "y": 0.5}}
    one = merge_model("ties_global", base, experts, given, ids=["x", "y"], cache=cache)
    passes = []

    def models():
        passes.append(1)
        return ((name, base[name], [e[name] for e in experts[::-1]]) for name in base)

    prepare("ties_global", models, given, ["y", "x"], cache=cache)
    assert len(passes) == 0
    prepare("ties_global", models, {"density": 0.2}, ["y", "x"], cache=cache)
    assert len(passes) == 2
    again = merge_model("ties_global", base, experts[::-1], given, ids=["y", "x"], cache=cache)
    assert all(torch.equal(one[name], again[name]) for name in base)


def test_without_the_passes_it_says_so():
    base, experts = model([(5,)], 0), [model([(5,)], 1)]
    call = {"tensor_name": "w", "ids": ["e"], "parameters": {}, "seed": 0}
    with pytest.raises(ValueError, match="w: ties_global needs the thresholds"):
        merge_tensor("ties_global", base["t0"], [experts[0]["t0"]], **call)


def test_mergekits_own_call_gets_the_passes_over_the_model_it_was_given():
    base, experts = model(SHAPES, 0), [model(SHAPES, s) for s in (1, 2)]
    models = {"base": base, "e00": experts[0], "e01": experts[1]}
    own = merge_state_dicts(models, "ties_global", parameters={"density": 0.3}, base="base")
    ours = merge_model("ties_global", base, experts, {"density": 0.3})
    assert all(torch.equal(own[name], ours[name]) for name in base)


def test_largest_agreeing():
    deltas = torch.tensor([[1.0, -5.0, 2.0], [3.0, 1.0, -2.0]])
    assert largest_agreeing(deltas).tolist() == [3.0, -5.0, 2.0]
    assert largest_agreeing(deltas, -1).tolist() == [3.0, -5.0, -2.0]
