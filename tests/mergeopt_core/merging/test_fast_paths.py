"""Our faster kernels under mergekit's names: the same values, and the cache changes no bit."""

import itertools

import pytest
import torch
from golden_calls import merge_model
from mergekit.merge_methods.api import merge_tensors

from mergeopt_core.merging import dare, describe, names
from mergeopt_core.merging.updates import BLOCK
from mergeopt_core.randomness import one_thread
from mergeopt_core.spectral import spectrum as spectral_factors

NAME = "model.layers.0.self_attn.v_proj.weight"
SHAPES = [(BLOCK * 2 + 17,), (300, 500), (33,), (2, 3, 5)]


def world(count, shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=g) * 1e-4  # small, so that float32 differences hardly ever tie
    return base.to(dtype), [(base + 1e-3 * torch.randn(shape, generator=g)).to(dtype) for _ in range(count)]


def merge(name, base, experts, parameters=None, ids=None, **more):
    return merge_model(name, {NAME: base}, [{NAME: e} for e in experts], parameters or {}, ids=ids, **more)[NAME]


def grid(**choices):
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


TIES = [
    *grid(density=[0.0, 1e-9, 0.2, 0.77, 1.0], normalize=[True, False], weight=[1.0, 0.3]),
    {"lambda": 0.3, "density": 0.5},
    {"rescale": True, "density": 0.5},  # left to mergekit's kernel
]


@pytest.mark.parametrize("parameters", TIES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ties_has_the_bits_of_mergekit(shape, parameters):
    base, experts = world(3, shape)
    with one_thread():
        own = merge_tensors([base, *experts], "ties", parameters={"weight": 1.0, **parameters}, base_index=0)
    assert torch.equal(merge("ties", base, experts, parameters), own)
    assert torch.equal(merge("ties", base, experts, {**parameters, "reference": True}), own)


@pytest.mark.parametrize("count", [1, 2, 5, 12, 24])
def test_ties_has_the_bits_of_mergekit_for_any_number_of_experts(count):
    base, experts = world(count, (200, 100))
    weights = [1.0, -0.5, 0.25, 2.0] * 6
    for weight in (1.0, weights[:count]):
        given = {"weight": weight, "density": 0.3, "lambda": 0.7}
        own = merge_tensors([base, *experts], "ties", parameters=given, base_index=0)
        assert torch.equal(merge("ties", base, experts, given), own)


def test_ties_keeps_as_many_entries_as_mergekit_where_magnitudes_tie():
    base, experts = world(1, (400, 300), dtype=torch.bfloat16)
    base, experts = base.float() * 20, [e.float() * 20 for e in experts]
    merged = merge("ties", base, experts, {"density": 0.1})
    changed = merged != base
    delta = (experts[0] - base).abs()
    threshold = delta[changed].min()
    assert int(changed.sum()) == 12000
    assert int((delta > threshold).sum()) < 12000 < int((delta >= threshold).sum())
    tied = (delta == threshold).flatten()
    places = torch.nonzero(tied).flatten()
    kept = changed.flatten()[places]
    assert torch.equal(kept, torch.arange(len(kept)) < kept.sum())  # the lowest indices


@pytest.mark.parametrize("name", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 3, 12])
def test_linear_and_task_arithmetic_have_the_bits_of_mergekit(name, shape, count):
    for dtype in (torch.float32, torch.bfloat16):
        base, experts = world(count, shape, dtype=dtype)
        for given in grid(weight=[1.0, [0.1 * k + 0.2 for k in range(count)]], normalize=[True, False]):
            inputs = [base, *experts] if name == "task_arithmetic" else experts
            index = 0 if name == "task_arithmetic" else None
            own = merge_tensors(inputs, name, parameters=given, base_index=index, dtype=torch.float32)
            assert torch.equal(merge(name, base, experts, given), own)


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("shape", [(300, 500), (33,), (BLOCK + 9,), (4, 3, 5)], ids=str)
@pytest.mark.parametrize("count", [2, 5])
def test_model_stock_has_the_values_of_mergekit(count, shape, filter_wise):
    if filter_wise and len(shape) == 3:
        pytest.skip("mergekit takes rows of the last axis there")
    base, experts = (
        t.double() if isinstance(t, torch.Tensor) else [x.double() for x in t] for t in world(count, shape)
    )
    given = {"filter_wise": filter_wise}
    own = merge_tensors([base, *experts], "model_stock", parameters=given, base_index=0)
    torch.testing.assert_close(merge("model_stock", base, experts, given), own, rtol=1e-9, atol=1e-14)
    single = merge("model_stock", base.float(), [e.float() for e in experts], given)
    assert (single.double() - own).norm() < 1e-6 * own.norm()


def test_model_stock_without_a_clamp_is_free_of_scale():
    base, experts = world(3, (64,))
    base, experts = base.double(), [e.double() for e in experts]
    tiny = [base + (e - base) * 1e-3 for e in experts]
    free = [merge("model_stock", base, x, {"clamp": 0.0}) - base for x in (experts, tiny)]
    own = [merge("model_stock", base, x) - base for x in (experts, tiny)]
    torch.testing.assert_close(free[0], free[1] * 1e3, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(own[0], own[1] * 1e3, rtol=0.1, atol=0)


def test_the_reference_has_no_parameters_of_ours():
    base, experts = world(3, (64,))
    with pytest.raises(ValueError, match="has no clamp"):
        merge("model_stock", base, experts, {"clamp": 0.0, "reference": True})


CACHED = ["ties", "model_stock", "tsv_m", "ties_global"]


@pytest.mark.parametrize("name", CACHED)
def test_a_cache_changes_no_bit_of_any_subset(name):
    base, experts = world(6, (90, 70))
    cache: dict = {}
    for size in (2, 3, 5, 6):
        for subset in list(itertools.combinations(range(6), size))[:4]:
            ids = [f"e{k}" for k in subset]
            chosen = [experts[k] for k in subset]
            assert torch.equal(merge(name, base, chosen, ids=ids, cache=cache), merge(name, base, chosen, ids=ids))
    assert cache
    assert all(isinstance(key, tuple) and all(isinstance(part, str) for part in key) for key in cache)


def test_an_expert_is_decomposed_once_over_all_subsets(monkeypatch):
    base, experts = world(6, (60, 50))
    made = []
    plain = spectral_factors.decompose
    monkeypatch.setattr(spectral_factors, "decompose", lambda *a: made.append(1) or plain(*a))
    cache: dict = {}
    for size in (2, 3, 4, 6):
        for subset in itertools.combinations(range(6), size):
            merge("tsv_m", base, [experts[k] for k in subset], ids=[f"e{k}" for k in subset], cache=cache)
    assert len(made) == 6


@pytest.mark.parametrize("name", names())
def test_bfloat16_inputs_are_merged_in_float32(name):
    if describe(name).statistics or name == "multislerp":
        pytest.skip("covered elsewhere")
    count = min(describe(name).max_experts or 3, 3)
    base, experts = world(count, (40, 30), dtype=torch.bfloat16)
    merged = merge(name, base, experts)
    assert merged.dtype == torch.float32
    wide = merge(name, base.float(), [e.float() for e in experts])
    assert torch.equal(merged, wide)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_has_the_arithmetic_of_mergekit_on_its_own_masks(name, rescale, monkeypatch):
    base, experts = world(3, (60, 50))
    masks = [dare.keep_mask(5, f"e{k:02d}", NAME, base.shape, 0.7) for k in range(3)]
    drawn = iter(masks)
    monkeypatch.setattr(torch, "bernoulli", lambda probabilities: next(drawn))
    given = {"weight": [0.5, 1.0, 2.0], "density": 0.3, "rescale": rescale, "lambda": 0.6, "normalize": True}
    own = merge_tensors([base, *experts], name, parameters=given, base_index=0)
    ours = merge(name, base, experts, given, seed=5)
    assert (ours - own).norm() < 1e-6 * (own - base).norm()
    for share, wanted in ((1.0, experts[0]), (0.0, base)):
        one = {"weight": 1.0, "density": share, "rescale": rescale}
        torch.testing.assert_close(merge(name, base, experts[:1], one), wanted, rtol=1e-6, atol=1e-9)
