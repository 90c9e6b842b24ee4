"""One expert, equal experts, zero and rank-deficient task vectors, odd shapes."""

import pytest
import torch
from golden_calls import merge_model

from mergeopt_core.merging import describe, names
from mergeopt_core.merging.trimming import agreeing_, trim, trim_, trim_bounds

NAME = "model.layers.0.mlp.down_proj.weight"
OURS = [n for n in names() if describe(n).ours]
SYMMETRIC = [n for n in names() if describe(n).max_experts is None and n != "multislerp"]
EXACT_FOR_ONE = ["tsv_m", "ties_global", "mixup", "fisher", "regmean", "linear", "task_arithmetic", "wudi"]
FREE = {
    "ties_global": {"density": 1.0},
    "dare": {"drop_rate": 0.0},
    "ties": {"density": 1.0},
    "ties_sb": {"density": 1.0, "beta": 1.0},
    "task_arithmetic_sb": {"beta": 1.0},
    "subspace_boosting": {"beta": 1.0},
}


def pair(shape=(30, 20), seed=0, scale=0.01):
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=g)
    return base, base + scale * torch.randn(shape, generator=g)


def merge(name, base, experts, parameters=None, tensor=NAME, **more):
    return merge_model(name, {tensor: base}, [{tensor: e} for e in experts], parameters or {}, **more)[tensor]


@pytest.mark.parametrize("name", [*EXACT_FOR_ONE, *FREE])
def test_one_expert_gives_that_expert(name):
    base, expert = pair()
    merged = merge(name, base, [expert], FREE.get(name))
    torch.testing.assert_close(merged, expert, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in OURS if n not in ("iso_c", "iso_cts", "tsv_m", "dare", "wudi")])
def test_equal_experts_under_a_mean_give_that_expert(name):
    base, expert = pair()
    given = dict(FREE.get(name, {}))
    if name == "subspace_boosting":
        given["base_parameters"] = {"normalize": True}
    merged = merge(name, base, [expert] * 3, given)
    torch.testing.assert_close(merged, expert, rtol=0, atol=1e-6)


def test_equal_experts_under_tsv_m_give_their_leading_part():
    base, expert = pair((60, 48))
    u, s, vh = torch.linalg.svd((expert - base).double(), full_matrices=False)
    leading = (u[:, :16] * s[:16]) @ vh[:16]
    merged = merge("tsv_m", base, [expert] * 3)
    torch.testing.assert_close((merged - base).double(), leading, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_zero_task_vectors_give_the_base(name):
    base, _ = pair()
    merged = merge(name, base, [base.clone() for _ in range(3)])
    torch.testing.assert_close(merged, base, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in OURS if n not in ("fisher", "regmean")])
def test_one_zero_task_vector_among_others_stays_finite(name):
    base, expert = pair()
    merged = merge(name, base, [expert, base.clone(), pair(seed=1)[1]])
    assert torch.isfinite(merged).all()
    assert not torch.equal(merged, base)


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (1, 1), (1, 9), (9, 1), (0, 4), (4, 3, 5), ()])
@pytest.mark.parametrize("name", [n for n in names() if describe(n).max_experts is None])
def test_any_shape(name, shape):
    ranked = name.startswith("della") and shape[-1:] == (1,)
    if ranked or (shape in ((), (0,), (0, 4)) and not describe(name).ours):
        pytest.skip("mergekit's own kernel does not take it")
    base, _ = pair(shape)
    merged = merge(name, base, [pair(shape, seed=s)[1] for s in range(3)])
    assert merged.shape == base.shape
    assert torch.isfinite(merged).all()


@pytest.mark.parametrize("name", ["iso_c", "task_arithmetic_sb", "tsv_m", "ties_sb"])
def test_low_rank_updates_are_reported_and_well_posed_inside_their_rank(name):
    g = torch.Generator().manual_seed(0)
    base = torch.randn(50, 40, generator=g)
    experts = [base + torch.randn(50, 2, generator=g) @ torch.randn(2, 40, generator=g) for _ in range(3)]
    report: dict = {}
    free = {"density": 1.0} if name == "ties_sb" else {}
    merge(name, base, experts, free, report=report)
    assert name == "ties_sb" or report
    assert all(found["rank"] < found["of"] for found in report.values())
    inside = {**free, "rank_tolerance": 1e-4}
    silent: dict = {}
    one = merge(name, base, experts, inside, report=silent)
    assert silent == {}
    nudged = [e + 1e-6 * torch.randn(50, 40, generator=g) for e in experts]
    other = merge(name, base, nudged, inside)
    if name != "ties_sb":
        assert torch.linalg.matrix_rank((one - base).double(), tol=1e-2) == 6
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def test_opposing_experts_cancel():
    base, expert = pair()
    opposite = base - (expert - base)
    for name in ("task_arithmetic", "iso_c", "task_arithmetic_sb"):
        merged = merge(name, base, [expert, opposite])
        assert (merged - base).abs().max() < 1e-5, name


def test_embeddings_and_head_take_the_rest_rule():
    base, expert = pair()
    other = pair(seed=1)[1]
    mean = (expert + other) / 2
    for tensor in ("model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight"):
        for name in ("iso_c", "tsv_m", "iso_cts", "wudi"):
            torch.testing.assert_close(merge(name, base, [expert, other], tensor=tensor), mean, rtol=0, atol=1e-6)
        kept = merge("iso_c", base, [expert, other], {"rest": "base"}, tensor=tensor)
        assert torch.equal(kept, base)
        treated = merge("iso_c", base, [expert, other], {"tensors": "matrices"}, tensor=tensor)
        assert not torch.allclose(treated, mean, atol=1e-4)
    chosen = merge("iso_c", base, [expert, other], {"tensors": "self_attn"})
    torch.testing.assert_close(chosen, mean, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="regular expression"):
        merge("iso_c", base, [expert, other], {"tensors": "("})


def test_trim_keeps_the_lowest_index_among_equals():
    delta = torch.tensor([0.5, -1.0, 1.0, 1.0, -1.0, 0.2])
    assert trim(delta, 0.5).tolist() == [0.0, -1.0, 1.0, 1.0, 0.0, 0.0]
    bounds = trim_bounds(delta, 3)
    for start, end in ((0, 2), (2, 5), (5, 6)):
        assert torch.equal(trim_(delta[start:end].clone(), bounds, start), trim(delta, 0.5)[start:end])
    assert trim(delta, 0.0).count_nonzero() == 0
    assert trim(delta, 1e-9).count_nonzero() == 1
    assert torch.equal(trim(delta, 1.0), delta)


def test_sign_election_by_hand():
    deltas = torch.tensor([[1.0, -2.0, 3.0, 0.0], [1.0, 1.0, -3.0, 0.0], [0.0, 0.5, 1.0, 0.0]])
    summed, divisor = agreeing_(deltas, [1.0, 1.0, 1.0])
    assert summed.tolist() == [2.0, -2.0, 4.0, 0.0]
    assert divisor.tolist() == [2.0, 1.0, 2.0, 1.0]
    cancel = torch.tensor([[2.0], [-2.0]])
    assert agreeing_(cancel.clone(), [1.0, 1.0])[0].tolist() == [2.0]
    assert agreeing_(cancel.clone(), [1.0, 1.0], zero_sign=-1)[0].tolist() == [-2.0]
