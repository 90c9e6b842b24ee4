"""Our methods against plain float64 forms of their equations, written apart from them."""

import numpy as np
import pytest
import torch
from golden_calls import merge_model

from mergeopt_core.merging import dare, fisher_regmean, mixup, wudi
from mergeopt_core.randomness import tensor_seed

NAME = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


def world(count=3, m=40, n=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    base = {NAME: torch.randn(m, n, generator=g), NORM: torch.ones(n)}
    experts = [{k: v + 0.1 * torch.randn(v.shape, generator=g) for k, v in base.items()} for _ in range(count)]
    return base, experts


def updates(base, experts, name=NAME):
    return [(e[name] - base[name]).double().numpy() for e in experts]


def update(method, base, experts, parameters=None, name=NAME, **more):
    return (merge_model(method, base, experts, parameters or {}, **more)[name].double() - base[name].double()).numpy()


def close(got, wanted, tol=2e-6):
    assert np.linalg.norm(got - wanted) <= tol * np.linalg.norm(wanted)


def polar(x):
    u, _, vh = np.linalg.svd(x, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
@pytest.mark.parametrize("path", ["gram", "svd", "svd64"])
def test_iso_c(shape, path):
    base, experts = world(m=shape[0], n=shape[1])
    u, s, vh = np.linalg.svd(sum(updates(base, experts)), full_matrices=False)
    close(update("iso_c", base, experts, {"spectral": path, "lambda": 0.5}), 0.5 * s.mean() * u @ vh, 1e-5)
    close(update("iso_c", base, experts, {"spectral": path, "normalize": True}), s.mean() / 3 * u @ vh, 1e-5)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m"])
def test_norm_matching(method):
    base, experts = world()
    deltas = updates(base, experts)
    free = update(method, base, experts)
    for match, norm in (
        ("mean_vector", np.linalg.norm(sum(deltas) / 3)),
        ("mean_norm", np.mean([np.linalg.norm(d) for d in deltas])),
    ):
        matched = update(method, base, experts, {"norm_matched": match})
        close(matched, free * norm / np.linalg.norm(free), 1e-5)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
@pytest.mark.parametrize(("remainder", "count"), [("drop", 3), ("drop", 5), ("share", 5)])
@pytest.mark.parametrize("path", ["gram", "svd"])
def test_tsv_m(shape, remainder, count, path):
    base, experts = world(count, *shape)
    parts = [np.linalg.svd(d, full_matrices=False) for d in updates(base, experts)]
    kept = [24 // count] * count
    if remainder == "share":
        order = sorted(range(count), key=lambda k: -parts[k][1][24 // count])
        for k in order[: 24 % count]:
            kept[k] += 1
        assert sum(kept) == 24
    u = np.concatenate([p[0][:, :k] for p, k in zip(parts, kept)], axis=1)
    s = np.concatenate([p[1][:k] for p, k in zip(parts, kept)])
    v = np.concatenate([p[2][:k].T for p, k in zip(parts, kept)], axis=1)
    wanted = polar(u) @ np.diag(s) @ polar(v).T
    close(update("tsv_m", base, experts, {"remainder": remainder, "spectral": path}), wanted, 1e-4)


def test_tsv_m_weights_scale_singular_values():
    base, experts = world()
    alone = update("tsv_m", base, experts, {"weight": [1.0, 0.0, 0.0]})
    assert np.linalg.matrix_rank(alone, tol=1e-4) == 8


def test_iso_cts():
    base, experts = world()
    deltas = updates(base, experts)
    uc, sc, vch = np.linalg.svd(sum(deltas), full_matrices=False)
    each = round((24 - int(24 * 0.5)) / 3)
    c = 24 - 3 * each
    us, ss, vs = [uc[:, :c]], [sc[:c]], [vch[:c].T]
    for d in deltas:
        u, s, vh = np.linalg.svd(d - uc[:, :c] @ uc[:, :c].T @ d, full_matrices=False)
        us.append(u[:, :each])
        ss.append(s[:each])
        vs.append(vh[:each].T)
    wanted = np.concatenate(ss).mean() * polar(np.concatenate(us, 1)) @ polar(np.concatenate(vs, 1)).T
    close(update("iso_cts", base, experts, {"common_fraction": 0.5}), wanted, 1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("path", ["gram", "svd"])
def test_subspace_boosting_of_task_arithmetic(beta, path):
    base, experts = world()
    mean = sum(updates(base, experts)) / 3
    u, s, vh = np.linalg.svd(mean, full_matrices=False)
    j = min(int(np.searchsorted(np.cumsum(s) / s.sum(), beta - 1e-12)), len(s) - 1)
    wanted = u @ np.diag(np.maximum(s, s[j])) @ vh
    close(update("task_arithmetic_sb", base, experts, {"beta": beta, "spectral": path}), wanted, 1e-5)
    if beta == 1.0:
        close(update("task_arithmetic_sb", base, experts, {"beta": beta}), mean)


def test_subspace_boosting_of_any_method_is_that_of_its_update():
    base, experts = world()
    named = update("task_arithmetic_sb", base, experts, {"beta": 0.3})
    close(update("subspace_boosting", base, experts, {"beta": 0.3, "base_parameters": {"normalize": True}}), named)
    ties = update("ties_sb", base, experts, {"density": 0.4, "beta": 0.3})
    call = {"base_method": "ties", "base_parameters": {"density": [0.4] * 3}, "beta": 0.3}
    close(update("subspace_boosting", base, experts, call), ties, 1e-5)
    over_two_passes = {"base_method": "ties_global", "base_parameters": {"density": 0.4}, "beta": 1.0}
    plain = update("ties_global", base, experts, {"density": 0.4})
    close(update("subspace_boosting", base, experts, over_two_passes), plain)


def test_subspace_boosting_checks_its_base_method():
    base, experts = world()
    with pytest.raises(ValueError, match="did you mean density"):
        update("subspace_boosting", base, experts, {"base_method": "ties", "base_parameters": {"densty": 0.4}})
    with pytest.raises(ValueError, match="cannot be fisher"):
        update("subspace_boosting", base, experts, {"base_method": "fisher"})


@pytest.mark.parametrize("path", ["gram", "autograd"])
def test_wudi_follows_the_gradient_of_its_loss(path):
    base, experts = world(m=12, n=10)
    deltas = updates(base, experts)
    m, first, second = sum(deltas), 0.0, 0.0
    for t in range(1, 21):
        grad = sum(2 * (m - d) @ d.T @ d / (d * d).sum() for d in deltas)
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        m = m - 1e-3 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    close(update("wudi", base, experts, {"iterations": 20, "lr": 1e-3, "gradient": path}), m, 1e-5)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (4, 60)])
def test_wudi_gradient_paths_agree_in_float64(shape):
    deltas = [torch.from_numpy(d) for d in updates(*world(3, *shape))]
    deltas.append(torch.zeros_like(deltas[0]))
    a = wudi.descend(deltas, 50, 1e-3)
    b = wudi.descend(deltas, 50, 1e-3, gradient="autograd")
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_wudi_lowers_its_loss():
    deltas = [torch.from_numpy(d) for d in updates(*world())]
    after = wudi.descend(deltas, 200, 1e-3)
    assert wudi.interference(after, deltas) < 0.8 * wudi.interference(sum(deltas), deltas)


def test_dare_mask_has_the_stated_rate_and_belongs_to_expert_and_tensor():
    shape = torch.Size([1000, 1000])
    mask = dare.keep_mask(1, "a", "t", shape, 0.9)
    share = mask.double().mean().item()
    assert abs(share - 0.1) < 5 * (0.09 / 1e6) ** 0.5
    assert torch.equal(mask, dare.keep_mask(1, "a", "t", shape, 0.9))
    for other in (dare.keep_mask(2, "a", "t", shape, 0.9), dare.keep_mask(1, "b", "t", shape, 0.9)):
        both = (mask * other).double().mean().item()
        assert abs(both - 0.01) < 5 * (0.0099 / 1e6) ** 0.5  # independent
    assert mask.dtype == torch.bool
    rare = sum(int((~dare.keep_mask(s, "a", "t", shape, 2e-6)).sum()) for s in range(40))  # below what 16 bits tell
    assert abs(rare - 80) < 5 * 80**0.5
    assert dare.keep_mask(0, "a", "t", shape, 0.0).all()
    assert not dare.keep_mask(0, "a", "t", shape, 1.0).any()


def test_dare_has_the_moments_of_the_paper():
    base, experts = world(2, 20, 20)
    deltas = updates(base, experts)
    draws = np.stack([update("dare", base, experts, {"drop_rate": 0.5}, seed=s) for s in range(400)])
    wanted, variance = sum(deltas), sum(d**2 for d in deltas)  # p / (1 - p) = 1
    z = (draws.mean(0) - wanted) / np.sqrt(variance / 400)
    assert abs(z.mean()) < 0.2
    assert 0.8 < z.std() < 1.2
    assert abs(draws.var(0).sum() / variance.sum() - 1) < 0.1


def test_dare_by_hand_with_each_base_method():
    base, experts = world()
    ids = ["x", "y", "z"]
    masks = [dare.keep_mask(7, i, NAME, base[NAME].shape, 0.6).numpy() for i in ids]
    dropped = [d * m / 0.4 for d, m in zip(updates(base, experts), masks)]
    common = {"drop_rate": 0.6, "lambda": 0.7}
    close(update("dare", base, experts, common, seed=7, ids=ids), 0.7 * sum(dropped))
    close(update("dare", base, experts, {**common, "base_method": "average"}, seed=7, ids=ids), 0.7 * sum(dropped) / 3)
    stack = np.stack(dropped)
    agree = np.sign(stack) == np.where(stack.sum(0) >= 0, 1, -1)
    mean = (stack * agree).sum(0) / np.maximum(agree.sum(0), 1)
    given = {**common, "base_method": "ties", "normalize": True}
    close(update("dare", base, experts, given, seed=7, ids=ids), 0.7 * mean)


def test_mixing_weights():
    assert mixup.mixing_weights("p_series", 3, p=2.0) == pytest.approx([36 / 49, 9 / 49, 4 / 49])
    assert mixup.mixing_weights("auto", 4, p=0.0, alpha=0.0) == [1.0, 0.0, 0.0, 0.0]
    draws = np.array([mixup.mixing_weights("beta", 2, alpha=2.0, seed=s)[0] for s in range(3000)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(draws.var() - 1 / 20) < 0.005  # 1 / (4 (2a + 1))
    many = np.array([mixup.mixing_weights("dirichlet", 4, alpha=0.5, seed=s) for s in range(2000)])
    np.testing.assert_allclose(many.sum(1), 1.0)
    np.testing.assert_allclose(many.mean(0), 0.25, atol=0.02)


def test_mixup_draws_once_a_merge_and_follows_the_stated_order():
    base, experts = world(2)
    merged = merge_model("mixup", base, experts, {"scale": 1.5}, seed=3)
    first = mixup.mixing_weights("beta", 2, seed=3)[0]
    for name in base:
        d = updates(base, experts, name)
        got = (merged[name].double() - base[name].double()).numpy()
        close(got, 1.5 * (first * d[0] + (1 - first) * d[1]), 1e-5)
    ids = ["b", "a"]
    ranked = update("mixup", base, experts, {"weights": "p_series", "p": 1.0}, ids=ids)
    d = updates(base, experts)
    close(ranked, (2 * d[0] + d[1]) / 3)


def test_mixup_ties_interpolates_what_several_keep_and_takes_the_rest_whole():
    base, experts = world(2)
    given = {"weight": [0.8, 0.2], "base_method": "ties", "trim_scope": "tensor", "density": 0.5}
    d = [x * (np.abs(x) >= np.sort(np.abs(x), axis=None)[-480]) for x in updates(base, experts)]
    sign = np.where(d[0] + d[1] >= 0, 1, -1)
    kept = [np.where(np.sign(x) == sign, x, 0) for x in d]
    both = (kept[0] != 0) & (kept[1] != 0)
    wanted = np.where(both, 0.8 * kept[0] + 0.2 * kept[1], kept[0] + kept[1])
    assert both.any()
    assert (~both & (wanted != 0)).any()
    close(update("mixup", base, experts, given), wanted)
    one_sided = update("mixup", base, experts, {**given, "weight": [1.0, 0.0]})
    close(one_sided, np.where(both, kept[0], kept[0] + kept[1]))


def test_mixup_with_dare_and_a_global_trim_trims_what_was_not_dropped():
    base, experts = world(2)
    given = {"base_method": "dare_ties", "density": 0.5, "drop_rate": 0.2, "weight": [0.5, 0.5]}
    merged = merge_model("mixup", base, experts, given, seed=1)
    kept = sum(int((merged[n] != base[n]).sum()) for n in base)
    assert 0 < kept < 2 * 0.5 * sum(t.numel() for t in base.values()) + 4


def test_mixup_refuses_what_has_no_meaning():
    base, experts = world(3)
    with pytest.raises(ValueError, match="two experts"):
        update("mixup", base, experts, {"weights": "beta"})
    with pytest.raises(ValueError, match="no scale"):
        update("mixup", base, experts, {"base_method": "average", "scale": 2.0})


def merge_with_statistics(method, base, experts, statistics, parameters=None):
    return update(method, {NAME: base[NAME]}, [{NAME: e[NAME]} for e in experts], parameters, statistics=statistics)


def test_fisher():
    base, experts = world()
    f = [torch.rand(40, 24, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    f[0][0, 0] = f[1][0, 0] = f[2][0, 0] = 0.0
    d, w = updates(base, experts), [x.double().numpy().clip(1e-6) for x in f]
    wanted = sum(a * b for a, b in zip(w, d)) / sum(w)
    close(merge_with_statistics("fisher", base, experts, f), wanted)
    assert wanted[0, 0] == pytest.approx(np.mean([x[0, 0] for x in d]))
    equal = [torch.full((40, 24), 0.3)] * 3
    close(merge_with_statistics("fisher", base, experts, equal), sum(d) / 3)
    scaled = [f[0], f[1] * 100, f[2]]
    a = merge_with_statistics("fisher", base, experts, f, {"normalize": True, "floor": 0.0})
    close(merge_with_statistics("fisher", base, experts, scaled, {"normalize": True, "floor": 0.0}), a, 1e-5)


def test_regmean_solves_the_regression():
    base, experts = world()
    x = [torch.randn(100, 24, generator=torch.Generator().manual_seed(k)).double().numpy() for k in range(3)]
    grams = [torch.from_numpy(a.T @ a).float() for a in x]
    inputs = np.concatenate(x)
    outputs = np.concatenate([a @ e[NAME].double().numpy().T for a, e in zip(x, experts)])
    solved = np.linalg.lstsq(inputs, outputs, rcond=None)[0].T
    got = merge_with_statistics("regmean", base, experts, grams, {"off_diagonal": 1.0})
    close(got, solved - base[NAME].double().numpy(), 1e-5)
    diagonal = [np.diag(np.diag(a.T @ a)) for a in x]
    wanted = sum(d @ g for d, g in zip(updates(base, experts), diagonal)) @ np.linalg.inv(sum(diagonal))
    close(merge_with_statistics("regmean", base, experts, grams, {"off_diagonal": 0.0}), wanted, 1e-5)


def test_regmean_keeps_the_mean_where_no_inputs_were_seen():
    deltas = [torch.from_numpy(d) for d in updates(*world())]
    seen = torch.zeros(24, 24, dtype=torch.float64)
    seen[:5, :5] = torch.eye(5) * 2
    solved = fisher_regmean.regression_mean(deltas, [seen, seen * 0, seen * 0], [1.0] * 3, 1.0)
    torch.testing.assert_close(solved[:, 5:], sum(deltas)[:, 5:] / 3)
    torch.testing.assert_close(solved[:, :5], deltas[0][:, :5])


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_missing_statistics(method):
    base, experts = world()
    mean = sum(updates(base, experts)) / 3
    close(merge_with_statistics(method, base, experts, None), mean)
    close(merge_with_statistics(method, base, experts, [None] * 3), mean)
    shape = (40, 24) if method == "fisher" else (24, 24)
    one = torch.ones(shape)
    with pytest.raises(ValueError, match=rf"{NAME}.*expert e01 has no statistics"):
        merge_with_statistics(method, base, experts, [one, None, one])
    with pytest.raises(ValueError, match="have shape"):
        merge_with_statistics(method, base, experts, [one, torch.ones(3, 3), one])
    with pytest.raises(ValueError, match="expert e02 are not finite"):
        merge_with_statistics(method, base, experts, [one, one, one * float("nan")])


def test_tensor_seeds_differ_and_stay():
    assert tensor_seed(0, "a", "b") != tensor_seed(0, "ab", "") != tensor_seed(1, "a", "b")
    assert tensor_seed(0, "ties", "model.norm.weight") == tensor_seed(0, "ties", "model.norm.weight")
    assert all(0 <= tensor_seed(s, "x") < 2**63 for s in range(100))


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m", "task_arithmetic_sb"])
def test_products_alone_give_the_same_polar_factors(method):
    base, experts = world(3, 60, 40)
    exact = update(method, base, experts, {"spectral": "svd64"})
    close(update(method, base, experts, {"spectral": "newton_schulz"}), exact, 1e-4)


def test_iso_c_by_products_leaves_deficient_updates_to_the_gram_matrix():
    base, experts = world(1, 30, 20)
    experts[0][NAME] = base[NAME] + torch.outer(torch.arange(30.0), torch.ones(20))
    both = [update("iso_c", base, experts, {"spectral": path}) for path in ("newton_schulz", "gram")]
    assert np.array_equal(*both)
