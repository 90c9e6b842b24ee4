"""Every golden merge, through the same entry points as a real one."""

import pytest
import torch
from golden_calls import call, compare, golden_masks, merge_model

from mergeopt_core.merging import dare, mixup
from tests.conftest import SHARED

ROWS = (
    [row for row in compare(SHARED).manifest() if "inputs" in row and row["method"] != "tangent"]
    if (SHARED / "golden").is_dir()
    else []
)


@pytest.mark.skipif(not ROWS, reason="no folder of golden vectors beside the checkout")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_golden(row, monkeypatch):
    golden = compare(SHARED)
    base, experts = golden.inputs("cases", row)
    expected = golden.expected("cases", row)
    masks = golden_masks(expected, row)
    if masks:

        def given(seed, expert, tensor, shape, rate):
            return masks[str(expert), tensor] if rate > 0 else torch.ones(shape, dtype=torch.bool)

        def pieces(seed, expert, tensor, count, rate):
            return given(seed, expert, tensor, torch.Size([count]), rate).flatten().split(dare.BLOCK)

        monkeypatch.setattr(dare, "mask_pieces", pieces)
        monkeypatch.setattr(mixup, "keep_mask", given)
    name, parameters = call(row)
    merged = merge_model(name, base, experts, parameters)
    assert golden.check(row, base, merged, expected) == []
    assert set(row["tensor_tol"]) | set(row["ill_posed_tensors"]) == set(base)


@pytest.mark.skipif(not ROWS, reason="no folder of golden vectors beside the checkout")
def test_every_method_with_golden_rows_is_covered():
    assert {call(row)[0] for row in ROWS} == {
        "linear", "task_arithmetic", "ties", "ties_global", "model_stock", "tsv_m", "iso_c", "iso_cts",
        "task_arithmetic_sb", "ties_sb", "wudi", "dare", "mixup",
    }  # fmt: skip
    assert len(ROWS) == 246
