"""Every golden merge, through the same entry points as a real one."""

import pytest
import torch
from golden_calls import call, merge_model

from mergeopt_core.merging import dare
from tests.mergeopt_core.golden_cases import merge_cases

CASES = merge_cases()


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_golden(case, monkeypatch):
    base, experts = case.inputs()
    masks = case.masks(base)

    def given(seed, expert, tensor, count, rate):
        mask = masks[str(expert), tensor] if rate > 0 else torch.ones(count, dtype=torch.bool)
        return mask.flatten().split(dare.BLOCK)

    if masks:
        monkeypatch.setattr(dare, "mask_pieces", given)
    name, parameters = call(case.row)
    merged = merge_model(name, base, experts, parameters)
    assert case.beyond_tolerance(base, merged) == []


def test_every_method_and_variant_is_covered():
    for full in {case.full for case in CASES}:
        rows = [case.row for case in CASES if case.full == full]
        assert {call(row)[0] for row in rows} == {
            "linear", "task_arithmetic", "ties", "ties_global", "model_stock", "tsv_m", "iso_c", "iso_cts",
            "task_arithmetic_sb", "ties_sb", "wudi", "dare", "mixup",
        }  # fmt: skip
        assert len({(row["method"], row["variant"]) for row in rows}) == 36
        assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
        assert len(rows) == (246 if full else 47)


def test_the_full_set_leaves_no_tensor_out():
    for case in CASES:
        if case.full:
            assert set(case.row["tensor_tol"]) | set(case.row["ill_posed_tensors"]) == set(case.inputs()[0])
