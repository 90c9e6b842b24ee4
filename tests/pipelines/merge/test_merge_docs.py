"""The example of the guide runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from merge_helpers import assert_same, merge_of, weights
from transformers import AutoModelForCausalLM

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "merging.md"


def test_the_example_from_python(pool, tmp_path, monkeypatch, capsys):
    base, experts = pool
    monkeypatch.chdir(tmp_path)
    for source, name in zip((base, *experts), ("base", "math", "code")):
        shutil.copytree(source, tmp_path / name)
    model = AutoModelForCausalLM.from_pretrained("base")
    capsys.readouterr()
    exec(re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.S)[1], {"model": model})
    assert capsys.readouterr().out == ""
    expected = dict(merge_of(base, experts[:2], "ties", {"density": 0.2}).tensors())
    assert_same(weights(tmp_path / "merged"), expected)
    assert torch.equal(model.lm_head.weight, expected["lm_head.weight"])
