"""What is said of a merge before it is made, on checkpoints whose relation is known, against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_measure import FILE, deltas, save_models

from conf.errors import UserError
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.geometry.diagnose import diagnose


def told(base, experts, **match):
    return diagnose(open_checkpoint(str(base)), {n: open_checkpoint(str(f)) for n, f in experts.items()}, **match)


def change(folder, edit):
    """Edit a checkpoint's weights in place."""
    state = load_file(folder / FILE)
    save_file({name: edit(name, tensor) for name, tensor in state.items()}, folder / FILE, metadata={"format": "pt"})


def test_numbers_are_numpys(tmp_path):
    base, experts = save_models(tmp_path, 3)
    findings, numbers = told(base, experts)
    layers = deltas(base, experts)
    whole = np.concatenate(list(layers.values()), axis=1)
    assert list(numbers["norm"].values()) == pytest.approx(np.linalg.norm(whole, axis=1), rel=1e-5)
    share = 1 - np.abs(whole.sum(0)).sum() / np.abs(whole).sum()
    assert numbers["cancelled_share"] == pytest.approx(share, rel=1e-5)
    assert list(numbers["unchanged_share"].values()) == pytest.approx((whole == 0).mean(axis=1), abs=2e-3)

    def largest(row):
        kept = max(1, int(0.2 * row.size))
        return np.sign(row) * (np.abs(row) >= np.sort(np.abs(row))[-kept]) if row.any() else row

    signs = np.concatenate([np.stack([largest(row) for row in rows]) for rows in layers.values()], axis=1)
    for pair, (i, j) in zip(numbers["pairs"], [(0, 1), (0, 2), (1, 2)]):
        cosine = whole[i] @ whole[j] / np.linalg.norm(whole[i]) / np.linalg.norm(whole[j])
        assert pair["cosine"] == pytest.approx(cosine, abs=1e-5)
        both = signs[i] * signs[j]
        assert pair["sign_conflict"] == pytest.approx((both < 0).sum() / (both != 0).sum(), rel=1e-2)
    assert [f.subject for f in findings if "orthogonal" in f.what] == ["e1 and e2", "e1 and e3", "e2 and e3"]


def test_leading_directions_of_low_ranks(tmp_path):
    base, experts = save_models(tmp_path, 2, hidden_size=48, intermediate_size=64)
    start = load_file(base / FILE)
    g = torch.Generator().manual_seed(3)
    shared = {name: torch.randn(len(t), 2, generator=g) for name, t in start.items()}

    def low(name, tensor):  # both experts move along the same two columns
        if tensor.ndim != 2:
            return start[name]
        return start[name] + 0.01 * shared[name] @ torch.randn(2, tensor.shape[1], generator=g)

    for folder in experts.values():
        change(folder, low)
    findings, numbers = told(base, experts)
    assert list(numbers["leading_energy"].values()) == pytest.approx([1.0, 1.0], abs=1e-4)
    assert sum("16 directions at most" in f.what for f in findings) == 2
    assert numbers["pairs"][0]["subspace_overlap"] == pytest.approx(1.0, abs=1e-3)
    assert any("leading directions (100% beyond chance)" in f.what for f in findings)


def test_what_speaks_against(tmp_path):
    base, experts = save_models(tmp_path, 3)
    start = load_file(base / FILE)
    change(experts["e2"], lambda name, t: start[name])
    twin = load_file(experts["e1"] / FILE)
    change(experts["e3"], lambda name, t: start[name] - 5 * (twin[name] - start[name]))
    findings, _ = told(base, experts)
    against = {f"{f.subject}: {f.what}" for f in findings if f.state == "against"}
    assert any("e2: is the base itself" in line for line in against)
    assert any("norms: e3 changed 5.0 times as much as e1" in line for line in against)
    assert "e1 and e3: point against each other (cosine -1.00)" in against
    assert "100%" in next(f.what for f in findings if "differ in sign" in f.what)
    assert [f.state for f in findings] == sorted((f.state for f in findings), key=["against", "for", "note"].index)


def test_what_cannot_be_merged_is_told_from_headers(tmp_path):
    base, _ = save_models(tmp_path / "a", 1)
    _, others = save_models(tmp_path / "b", 1, hidden_size=32)
    findings, numbers = told(base, others)
    assert numbers == {}
    assert findings
    assert all(finding.state == "against" for finding in findings)
    assert len({(f.subject, f.what.partition(" ")[2], f.do) for f in findings}) == len(
        findings
    )  # tensors stand together
    with pytest.raises(UserError, match="nothing to diagnose"):
        told(base, {})


def test_many_pairs_that_show_the_same_are_one_finding(tmp_path):
    base, experts = save_models(tmp_path, 4)
    findings, numbers = told(base, experts)
    found = [f for f in findings if "orthogonal" in f.what]
    most = max(numbers["pairs"], key=lambda pair: abs(pair["cosine"]))
    assert [f.subject for f in found] == [f"6 of 6 pairs, most {' and '.join(most['experts'])}"]
    assert f"(cosine {most['cosine']:.2f})" in found[0].what
    assert not any("differ in sign" in f.what for f in findings)  # half of the signs differ by chance
