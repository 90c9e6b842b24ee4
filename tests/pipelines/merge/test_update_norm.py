"""The norm of a merge's update, taken as it is merged, is that of the weights on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from merge_helpers import SMALL, merge_of, perturbed, save, weights
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.merge import stream
from pipelines.merge.stream import single_model
from pipelines.merge.write import write_merge
from pipelines.store.results import result_rows
from pipelines.store.store import Store
from pipelines.study.sweep import run_study


def distance(a, b) -> float:
    """‖a − b‖₂ of two folders, in float64 numpy over the whole vectors."""
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return float(np.linalg.norm(np.concatenate([(a[n].double() - b[n].double()).numpy().ravel() for n in a])))


def norm_of(merge, origin=None) -> float | None:
    merge.origin = origin or merge.base
    for _ in merge.tensors():
        pass
    return merge.update_norm


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_the_written_merge(make_pool, tmp_path, dtype, threads, monkeypatch):
    base, experts = make_pool(3, dtype, tie_word_embeddings=True)
    monkeypatch.setattr(stream, "WORTH_THREADS", 0 if threads > 1 else 1 << 60)
    for method in ("ties", "dare_linear", "iso_c"):
        write_merge(merge_of(base, experts, method, seed=1), tmp_path / method)
        found = norm_of(merge_of(base, experts, method, seed=1))
        assert found == pytest.approx(distance(tmp_path / method, base), rel=1e-12)
        assert f"over all weights: {found:.6g}." in (tmp_path / method / "README.md").read_text()


def test_an_expert_and_what_cannot_be_compared(pool, tmp_path):
    base, expert = map(open_checkpoint, map(str, (pool[0], pool[1][0])))
    assert norm_of(single_model(base, expert), base) == pytest.approx(distance(pool[1][0], pool[0]), rel=1e-12)
    assert norm_of(single_model(base, base), base) == 0
    merge = single_model(base, expert)
    list(merge.tensors())
    assert merge.update_norm is None, "nothing was asked for"
    torch.manual_seed(0)
    other = LlamaForCausalLM(LlamaConfig(**{**SMALL, "vocab_size": 38}))
    wider = open_checkpoint(str(save(perturbed(other, 1), tmp_path / "other")))
    assert norm_of(single_model(base, wider), base) is None, "another vocabulary"


SEAL = ("format", "files", "checksum")


def test_results_hold_the_norm_and_older_ones_are_unknown(small_study):
    config = small_study()
    run_study(config)
    rows = {row["key"]: row for row in result_rows(Store(config.store))}
    for row in rows.values():
        assert (row["update_norm"] is None) == (row["kind"] == "base"), row["kind"]
    linear = next(row for row in rows.values() if row["method"] == "linear")
    entry = Store(config.store).entry("results", linear["key"])
    about = entry.describe()
    paths = [about["base"]["path"], *(e["path"] for e in about["experts"])]
    base, one, other = (weights(open_checkpoint(path).folder) for path in paths)
    vectors = [(one[n].double() + other[n].double()) / 2 - base[n].double() for n in base]
    norm = np.linalg.norm(np.concatenate([v.numpy().ravel() for v in vectors]))
    assert linear["update_norm"] == pytest.approx(float(norm), rel=1e-5)
    about = {name: value for name, value in about.items() if name not in ("update_norm", *SEAL)}  # an older entry
    (entry.folder / "entry.json").write_text(json.dumps(about))
    assert [r["update_norm"] for r in result_rows(Store(config.store)) if r["key"] == linear["key"]] == [None]
    assert run_study(config).outcome.done == 0, "the key does not depend on it"
