"""One expert, equal experts, zero and rank-deficient task vectors, odd shapes."""

import pytest
import torch
from golden_calls import merge_model

from mergeopt_core.merging import describe, names
from mergeopt_core.merging.trimming import agreeing_, trim, trim_, trim_bounds

NAME = "model.layers.0.mlp.down_proj.weight"
OURS = [n for n in names() if describe(n).ours]
SYMMETRIC = [n for n in names() if describe(n).max_experts is None]
EXACT_FOR_ONE = [
    "tsv_m",
    "ties_global",
    "mixup",
    "fisher",
    "regmean",
    "linear",
    "task_arithmetic",
    "wudi",
    "magmax",
    "svc",
    "lines",
]
NO_MEAN = ("adamerging", "iso_c", "iso_cts", "tsv_m", "dare", "wudi", "ace", "doge", "orthomerge", "pcb", "lora_linear")
FREE = {
    "ties_global": {"density": 1.0},
    "adamerging": {"weight": 1.0},
    "dare": {"drop_rate": 0.0},
    "ties": {"density": 1.0},
    "ties_sb": {"density": 1.0, "beta": 1.0},
    "task_arithmetic_sb": {"beta": 1.0},
    "subspace_boosting": {"beta": 1.0},
    "localize_stitch": {"density": 1.0},
    "consensus": {"agreeing": 0},
    "core_space": {"base_parameters": {"density": 1.0}},
    "knots": {"base_parameters": {"density": 1.0}},
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


@pytest.mark.parametrize("name", [n for n in OURS if n not in NO_MEAN])
def test_equal_experts_under_a_mean_give_that_expert(name):
    base, expert = pair()
    given = dict(FREE.get(name, {}))
    if name in ("subspace_boosting", "consensus"):
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


SHAPES = [(), (0,), (0, 4), (4, 0), (1,), (7,), (1, 1), (1, 9), (9, 1), (4, 3, 5), (2, 1, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", names())
def test_any_shape(name, shape):
    info = describe(name)
    base, _ = pair(shape)
    experts = [pair(shape, seed=1 + k)[1] for k in range(info.max_experts or 3)]
    ways = [{}, {"reference": True}] if "reference" in {p.name for p in info.parameters} else [{}]
    for given in ways + ([{"filter_wise": True}] if name == "model_stock" else []):
        merged = merge(name, base, experts, given)
        assert merged.shape == base.shape
        assert torch.isfinite(merged).all()
        for drop in ({"drop_rate": 0.0}, {"density": 1.0}) if base.numel() and info.random else ():
            if set(drop) <= {p.name for p in info.parameters}:
                assert not torch.equal(merge(name, base, experts, given | drop), base)


def test_statistics_of_a_scalar():
    base, experts = torch.tensor(1.0), [torch.tensor(2.0), torch.tensor(4.0)]
    merged = merge("fisher", base, experts, {}, statistics=[torch.tensor(3.0), torch.tensor(1.0)])
    torch.testing.assert_close(merged, torch.tensor(2.5))


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_the_only_entry_of_a_row_is_kept_with_its_density(method):
    base, expert = pair((4000, 1), scale=1.0)
    kept = merge(method, base, [expert], {"density": 0.3, "epsilon": 0.1, "rescale": False})
    share = float((kept != base).float().mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    changed = kept != base
    torch.testing.assert_close(kept[changed], expert[changed])


@pytest.mark.parametrize("shape", [(6,), (6, 5), (4, 3, 5), (2, 3, 2, 5)])
@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_is_mergekits_in_any_number_of_dimensions(shape, filter_wise):
    base, _ = pair(shape)
    experts = [base + 0.3 * (pair(shape, seed=9, scale=1.0)[1] - base) + pair(shape, seed=k)[1] for k in range(3)]
    ours, theirs = (
        merge("model_stock", base, experts, {"filter_wise": filter_wise, "reference": reference})
        for reference in (False, True)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class TestNotFinite:
    """Results that are not finite though every input is."""

    @pytest.mark.parametrize("name", ["linear", "multislerp", "iso_c"])
    def test_weights_that_sum_to_zero(self, name):
        base, expert = pair()
        given = {"weight": [1.0, -1.0]}
        if name == "iso_c":  # weights that cancel divide nothing there
            assert torch.isfinite(merge(name, base, [expert, pair(seed=1)[1]], given | {"normalize": True})).all()
            return
        with pytest.raises(ValueError, match=rf"{NAME}.*(not finite: the weights sum to zero|cannot merge it)"):
            merge(name, base, [expert, pair(seed=1)[1]], given)

    @pytest.mark.parametrize("name", ["task_arithmetic", "ties", "breadcrumbs", "iso_c"])
    def test_a_scale_that_overflows(self, name):
        base, expert = pair()
        with pytest.raises(ValueError, match=rf"{NAME}: the merge holds \d+ values .*: values, weights or scale"):
            merge(name, base, [expert, pair(seed=1)[1]], {"lambda": 1e38, "weight": [1e10, 1e10]})


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
    bounds = trim_bounds(lambda out, start: out.copy_(delta[start:].abs()), len(delta), 3, delta)
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
