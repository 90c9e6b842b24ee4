"""The data-free methods of 2024 to 2026 against float64 transcriptions of the published codes, written apart from ours.

Codes and commits: wang-kee/LiNeS 04858ad, lyymuwu/SVC 8f46f89, nik-dim/tall_masks 088dc81, danielm1405/magmax 4f49f18,
yifei-he/Localize-and-Stitch b583e3d, duguodong7/pcb-merging 31fa2dc, tanganke/fusion_bench 1066030 (DOGE),
Sphere-AI-Lab/OrthoMerge 3126f94, unravel-xu/ACE-Merging 22d9dfe.
"""

import numpy as np
import pytest
import torch
from golden_calls import merge_model
from numpy.linalg import norm, svd

Q0, UP1, NORM = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"


def world(count=3, shape=(30, 18), seed=0, size=0.1):
    g = torch.Generator().manual_seed(seed)
    shapes = {Q0: shape, UP1: (12, shape[1]), NORM: (shape[1],)}
    base = {k: torch.randn(s, generator=g) for k, s in shapes.items()}
    common = {k: torch.randn(s, generator=g) for k, s in shapes.items()}
    experts = [
        {k: v + size * (torch.randn(v.shape, generator=g) + common[k]) for k, v in base.items()} for _ in range(count)
    ]
    return base, experts


def deltas_of(base, experts):
    return {k: [(e[k].double() - base[k].double()).numpy() for e in experts] for k in base}


def updates_of(method, base, experts, parameters=None):
    merged = merge_model(method, base, experts, parameters or {})
    return {k: (merged[k].double() - base[k].double()).numpy() for k in base}


def close(got, wanted, tol=5e-6):
    for k in wanted:
        assert norm(got[k] - wanted[k]) <= tol * norm(wanted[k]), k


def flat(deltas):
    return np.stack([np.concatenate([deltas[k][i].ravel() for k in deltas]) for i in range(len(deltas[Q0]))])


def unflat(vector, like):
    ends = np.cumsum([like[k][0].size for k in like])[:-1]
    return {k: part.reshape(like[k][0].shape) for k, part in zip(like, np.split(vector, ends))}


@pytest.mark.parametrize("ties", [False, True])
def test_lines(ties):
    base, experts = world()
    d = deltas_of(base, experts)
    given = {"base_method": "ties", "base_parameters": {"density": 0.3}} if ties else {}
    plain = updates_of("ties", base, experts, {"density": 0.3}) if ties else {k: sum(v) for k, v in d.items()}
    alpha = np.abs(flat(d).sum(0)).sum() / sum(np.abs(v).sum() for v in plain.values()) / 3
    scaled = {Q0: alpha, UP1: alpha + 0.7, NORM: alpha}
    close(updates_of("lines", base, experts, given | {"beta": 0.7}), {k: scaled[k] * v for k, v in plain.items()})
    fixed = updates_of("lines", base, experts, given | {"alpha": 0.2, "beta": 0.7, "lambda": 2.0})
    close(fixed, {k: 2 * {Q0: 0.2, UP1: 0.9, NORM: 0.2}[k] * v for k, v in plain.items()})


@pytest.mark.parametrize(("scale", "alpha"), [(1.0, None), (0.3, None), (1.0, 2.0)])
def test_svc(scale, alpha):
    base, experts = world()
    wanted = {}
    for k, ds in deltas_of(base, experts).items():
        wanted[k] = merged = scale * sum(ds)
        if merged.ndim == 2:
            u, s, vh = svd(merged, full_matrices=False)
            eta = np.ones(len(s))
            for j in range(len(s)):
                rows = [u[:, j] @ d for d in ds]
                share = np.array([(u[:, j] @ merged) @ a / (a @ a) for a in rows])
                if (share > 0).all():
                    eta[j] = max(share.mean(), 1 / 3 if alpha is None else alpha)
            assert (eta != 1).any()
            wanted[k] = (u * (s / eta)) @ vh
    close(updates_of("svc", base, experts, {"base_parameters": {"lambda": scale}, "alpha": alpha}), wanted, 1e-5)


def test_svc_counts_what_all_share_once():
    base, experts = world(1)
    close(updates_of("svc", base, experts * 3), {k: v[0] if v[0].ndim == 2 else 3 * v[0]
                                                 for k, v in deltas_of(base, experts).items()})  # fmt: skip


def test_consensus():
    base, experts = world()
    d = deltas_of(base, experts)
    wanted = {}
    for k, ds in d.items():
        held = sum((np.abs(x) > np.abs(sum(ds) - x) * 0.4).astype(int) for x in ds)
        wanted[k] = 0.5 * sum(ds) * (held >= 2)
        assert (held < 2).any()
    close(updates_of("consensus", base, experts, {"lambda": 0.5}), wanted)
    close(updates_of("consensus", base, experts, {"agreeing": 0}), {k: sum(ds) for k, ds in d.items()})
    with pytest.raises(ValueError, match="agreeing is 4, with 3 experts"):
        updates_of("consensus", base, experts, {"agreeing": 4})


def test_wrappers_nest_and_check_what_they_wrap():
    base, experts = world()
    inner = {"base_method": "ties", "base_parameters": {"density": 0.5}}
    both = updates_of("svc", base, experts, {"base_method": "lines", "base_parameters": inner})
    lined = merge_model("lines", base, experts, inner)
    again = merge_model("svc", base, experts, {"base_method": "lines", "base_parameters": inner | {"beta": 0.0}})
    assert norm(both[NORM] - (lined[NORM].double() - base[NORM].double()).numpy()) < 1e-6
    assert not torch.equal(again[UP1], base[UP1])
    for name in ("lines", "svc", "consensus"):
        with pytest.raises(ValueError, match=f"{name}: base_method cannot be {name}"):
            updates_of(name, base, experts, {"base_method": name})
    with pytest.raises(ValueError, match="svc: base_method cannot be knots"):  # it would not see the adapters
        updates_of("svc", base, experts, {"base_method": "knots"})
    with pytest.raises(ValueError, match="did you mean density"):
        updates_of(
            "svc",
            base,
            experts,
            {"base_method": "lines", "base_parameters": inner | {"base_parameters": {"densty": 1}}},
        )


def test_adamerging():
    base, experts = world()
    d = deltas_of(base, experts)
    given = {"weight": [0.1, 0.2, 0.3], "blocks": {"1": [1.0, 0.0, -0.5]}, "lambda": 2.0}
    wanted = {k: 2 * (0.1 * v[0] + 0.2 * v[1] + 0.3 * v[2]) for k, v in d.items()}
    wanted[UP1] = 2 * (d[UP1][0] - 0.5 * d[UP1][2])
    close(updates_of("adamerging", base, experts, given), wanted)


def test_magmax():
    base, experts = world()
    wanted = {}
    for k, ds in deltas_of(base, experts).items():
        stack = np.stack(ds)
        wanted[k] = 0.5 * np.take_along_axis(stack, np.abs(stack).argmax(0)[None], 0)[0]
    close(updates_of("magmax", base, experts, {"lambda": 0.5}), wanted)


def test_localize_and_stitch():
    base, experts = world()
    d = deltas_of(base, experts)
    vectors = flat(d)
    n = vectors.shape[1]
    masks = np.stack([np.abs(v) >= np.sort(np.abs(v))[n - int(0.3 * n)] for v in vectors])
    stitched = (vectors * masks / np.maximum(masks.sum(0), 1)).sum(0)
    assert (masks.sum(0) > 1).any()
    close(updates_of("localize_stitch", base, experts, {"density": 0.3}), unflat(stitched, d))


@pytest.mark.parametrize("density", [0.1, 0.4])
def test_pcb(density):
    base, experts = world(shape=(90, 60), size=0.5)

    def normal(x):
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        return (x - low) / (high - low)

    def clamped(x, least, most):
        ordered, n = np.sort(x, axis=1), x.shape[1]
        return np.clip(x, ordered[:, int(n * least), None], ordered[:, int(n * (1 - most) - 1), None])

    d = deltas_of(base, experts)
    v = flat(d)
    size = clamped(np.abs(v), 0.0001, 0.0001)
    balance = np.exp(len(v) * normal(size) ** 2) * np.tanh(v * v.sum(0))
    score = normal(clamped(balance, 1 - density, 0))
    merged = (np.sign(v) * size * score).sum(0) / np.maximum(score.sum(0), 1e-12)
    close(updates_of("pcb", base, experts, {"density": density}), unflat(merged, d), 2e-5)


def test_doge():
    base, experts = world(2)
    d = {k: v for k, v in deltas_of(base, experts).items() if k != NORM}
    vectors = flat(d)
    n = vectors.shape[1]
    kept = [np.abs(v) >= np.sort(np.abs(v))[n - int(0.3 * n) - 1] for v in vectors]
    masks = {k: [unflat(m, d)[k] for m in kept] for k in d}
    wanted = {NORM: sum(deltas_of(base, experts)[NORM]) / 2}
    for k, ds in d.items():
        lam = [0.07 / norm(x) for x in ds]
        each = min(ds[0].shape) // 2
        left = svd(np.concatenate([svd(x)[0][:, :each] for x in ds], 1))[0][:, : int(min(ds[0].shape) / 6)]
        delta, first, second = np.zeros(ds[0].shape), 0.0, 0.0
        tv, project = torch.tensor(np.stack(ds)), left @ left.T
        for t in range(1, 26):
            leaf = torch.tensor(delta, requires_grad=True)
            total = sum(w * (v + leaf) for w, v in zip(lam, tv))
            sum((v * (v - total)).sum(1).pow(2).sum() for v in tv).backward()
            grad = leaf.grad.numpy() - project @ leaf.grad.numpy()
            first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
            delta -= 1e-3 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        assert norm(delta) > 1e-3
        wanted[k] = sum(w * (x + delta) * m for w, x, m in zip(lam, ds, masks[k]))
    close(updates_of("doge", base, experts, {"iterations": 25, "lr": 1e-3}), wanted, 1e-4)


def procrustes(w0, w1):
    """The rotation nearest to W0 → W1, and on the null space that a wide layer leaves, to the identity."""
    u, s, vh = svd(w0.T @ w1)
    r = int((s > 1e-9 * s[0]).sum())
    rest = u[:, r:] @ u[:, r:].T @ vh[r:].T @ vh[r:]
    a, _, b = svd(rest)
    return u[:, :r] @ vh[:r] + a[:, : len(s) - r] @ b[: len(s) - r]


@pytest.mark.parametrize("spectral", ["gram", "svd64"])
def test_orthomerge(spectral):
    base, experts = world(3, size=0.05)  # UP1 is wider than high
    wanted = {NORM: sum(deltas_of(base, experts)[NORM]) / 3}
    for k in (Q0, UP1):
        w0, ws = base[k].double().numpy(), [e[k].double().numpy() for e in experts]
        eye = np.eye(w0.shape[1])
        turns = [procrustes(w0, w) for w in ws]
        skews = [np.linalg.solve(r + eye, r - eye) for r in turns]
        summed = sum(skews)
        merged = summed / norm(summed) * np.mean([norm(a) for a in skews])
        turned = w0 @ np.linalg.solve(eye - merged, eye + merged)
        wanted[k] = turned + 0.2 * sum(w - w0 @ r for w, r in zip(ws, turns)) - w0
    close(updates_of("orthomerge", base, experts, {"spectral": spectral}), wanted, 1e-5)


def test_orthomerge_of_one_expert_is_that_expert_and_of_a_rotated_base_its_rotation():
    base, experts = world(1)
    whole = {k: v[0] for k, v in deltas_of(base, experts).items()}
    close(updates_of("orthomerge", base, experts, {"residual": 1.0}), whole)
    skew = np.triu(0.02 * np.random.default_rng(0).standard_normal((18, 18)), 1)
    turn = torch.linalg.matrix_exp(torch.tensor(skew - skew.T))
    turned = {k: (v.double() @ turn).float() if k == Q0 else v for k, v in base.items()}
    got = merge_model("orthomerge", base, [turned], {"residual": 0.0})[Q0]
    torch.testing.assert_close(got, turned[Q0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("apart", [False, True])
def test_ace(apart):
    base, experts = world()
    if apart:  # one expert that moved far, one that hardly moved
        for k in base:
            experts[0][k] = base[k] + 40 * (experts[0][k] - base[k])
            experts[1][k] = base[k] + 0.3 * (experts[1][k] - base[k])
    wanted = {NORM: sum(deltas_of(base, experts)[NORM]) / 3}
    for k in (Q0, UP1):
        ds = deltas_of(base, experts)[k]
        n = ds[0].shape[1]
        traces = np.array([np.trace(x.T @ x) for x in ds])
        logs = np.log(traces + 1e-12)
        flag = logs.var(ddof=1) / (logs.mean() ** 2 + 1e-12) > 0.3
        assert flag == apart
        sigmas, a, b = [], np.zeros((n, n)), 0
        for x in ds:
            c = x - x.mean(0, keepdims=True)
            raw = c.T @ c
            scale = np.trace(raw) + 1e-12 if flag else 1.0
            sigmas.append(raw / scale)
            regular = raw / scale + 0.01 / scale * np.eye(n)
            a, b = a + regular, b + c @ regular
        prior = sum(sigmas).mean(0, keepdims=True) / (traces.mean() + 1e-12 if flag else 1.0)
        merged = b @ np.linalg.inv(a + prior)
        if flag:
            fused = merged + sum(x @ (s - a / 3) for x, s in zip(ds, sigmas))
            u, s, vh = svd(fused, full_matrices=False)
            p = int(len(s) * 0.3)
            merged = merged + s[:p].mean() * u[:, :p] @ vh[:p]
        wanted[k] = merged
    close(updates_of("ace", base, experts), wanted, 1e-5)


@pytest.mark.parametrize("name", ["localize_stitch", "pcb", "doge"])
def test_what_is_counted_over_a_model_does_not_depend_on_the_order_of_experts(name):
    base, experts = world()
    one = merge_model(name, base, experts, {}, ids=["a", "b", "c"])
    other = merge_model(name, base, experts[::-1], {}, ids=["c", "b", "a"])
    assert all(torch.equal(one[k], other[k]) for k in base)
