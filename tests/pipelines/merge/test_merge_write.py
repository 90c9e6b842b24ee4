"""The folder that a merge is written to."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from contextlib import contextmanager

import pytest
import torch
import yaml
from merge_helpers import assert_same, merge_of, weights
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from conf.errors import UserError
from pipelines.checkpoints.hold import hold
from pipelines.merge.live import merge_into
from pipelines.merge.recipe import Recipe
from pipelines.merge.write import write_merge


def test_shards_with_an_index_hold_the_same_tensors(pool, tmp_path):
    base, experts = pool
    write_merge(merge_of(base, experts, "linear"), tmp_path / "one")
    write_merge(merge_of(base, experts, "linear"), tmp_path / "many", shard_bytes=3000)
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "many"))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert sorted(set(index["weight_map"].values())) == [file.name for file in files]
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in weights(base).values())
    for file in files:
        with safe_open(file, "pt") as opened:
            assert set(opened.keys()) == {n for n, where in index["weight_map"].items() if where == file.name}
            assert opened.metadata() == {"format": "pt"}
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("one", "many"))
    assert_same(dict(a), dict(b))


def test_what_lies_beside_the_weights(pool, tmp_path):
    base, experts = pool
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    (copy / "generation_config.json").write_text('{"temperature": 0.25, "do_sample": true}')
    write_merge(merge_of(copy, experts, "ties", {"density": 0.25}, seed=9, dtype="bfloat16"), tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.25
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages[0].content }}"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    record = json.loads((tmp_path / "out" / "mergebench_recipe.json").read_text())
    recipe = Recipe(**record["recipe"])
    assert (recipe.seed, recipe.parameters["density"], recipe.experts) == (9, 0.25, tuple(map(str, experts)))
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    inside = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert inside["merge_method"] == "ties"
    assert inside["base_model"] == str(copy)
    assert [m["model"] for m in inside["models"]] == [str(e) for e in experts]
    assert inside["parameters"]["density"] == 0.25
    assert inside["out_dtype"] == "bfloat16"


def test_the_recipe_makes_the_same_bits_again(pool, tmp_path):
    base, experts = pool
    write_merge(merge_of(base, experts, "dare_ties", {"density": 0.4}, seed=4), tmp_path / "a")
    fields = json.loads((tmp_path / "a" / "mergebench_recipe.json").read_text())["recipe"]
    recipe = Recipe(**fields)
    again = merge_of(base, experts, recipe.method, recipe.parameters, seed=recipe.seed, dtype=recipe.dtype)
    assert_same(weights(tmp_path / "a"), dict(again.tensors()))


def test_a_foreign_folder_is_left_alone(pool, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        write_merge(merge_of(*pool, "linear"), tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        write_merge(merge_of(*pool, "linear"), tmp_path / "file")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]


def test_an_empty_folder_and_an_earlier_merge_are_written_over(pool, tmp_path):
    (tmp_path / "out").mkdir()
    write_merge(merge_of(*pool, "linear"), tmp_path / "out")
    write_merge(merge_of(*pool, "ties"), tmp_path / "out")
    assert_same(weights(tmp_path / "out"), dict(merge_of(*pool, "ties").tensors()))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_told_before_anything_is_written(pool, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="GB free"):
        write_merge(merge_of(*pool, "linear"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_merge_that_breaks_off_leaves_nothing(pool, tmp_path, monkeypatch):
    from mergeopt_core import merging

    right, calls = merging.BoundMethod.merge, []

    def breaks(*args, **options):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return right(*args, **options)

    monkeypatch.setattr(merging.BoundMethod, "merge", breaks)
    with pytest.raises(KeyboardInterrupt):
        write_merge(merge_of(*pool, "linear"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_attempt_and_a_living_ones_stays(pool, tmp_path):
    dead, alive = tmp_path / ".out.1.part", tmp_path / ".out.2.part"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    lock = hold(alive)
    write_merge(merge_of(*pool, "linear"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.2.part", "out"]
    os.close(lock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EBADF])
def test_a_file_system_without_locks_is_written_to(pool, tmp_path, monkeypatch, number):
    def without(descriptor, how):
        raise OSError(number, "no locks")

    (tmp_path / ".out.1.part").mkdir()
    monkeypatch.setattr(fcntl, "flock", without)
    write_merge(merge_of(*pool, "linear"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.1.part", "out"]


def test_progress_counts_tensors_and_tells_the_speed(pool, tmp_path):
    seen = []

    class Listener:
        @contextmanager
        def step(self, label, total=None):
            seen.append((label, total))
            yield self

        def advance(self, n=1, **fields):
            seen.append(fields)

        def note(self, text, level="info"):
            seen.append(text)

    write_merge(merge_of(*pool, "linear"), tmp_path / "out", Listener())
    names = sorted(weights(pool[0]))
    assert seen[0] == ("merge", len(names))
    assert [fields["tensor"] for fields in seen[1:]] == names
    assert all(fields["gb_s"] >= 0 for fields in seen[1:])
    assert seen[-1]["eta"] == 0 < seen[1]["eta"]


WRONG = {
    "weights": ("linear", {"weight": [1.0, -1.0]}, "float32", r"weight: the merge holds .* the weights sum to zero"),
    "overflow": (
        "task_arithmetic",
        {"lambda": 1e7},
        "float16",
        r"overflows float16: \|max\| = \d+",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_finite_is_not_written(pool, tmp_path, case):
    base, experts = pool
    method, parameters, dtype, said = WRONG[case]
    merge = merge_of(base, experts[:2], method, parameters, dtype=dtype)
    with pytest.raises(UserError, match=said):
        write_merge(merge, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=said):
        merge_into(AutoModelForCausalLM.from_pretrained(base), merge)


def test_what_overflows_the_live_models_dtype_is_told(pool):
    base, experts = pool
    merge = merge_of(base, experts[:2], "task_arithmetic", {"lambda": 1e7})
    with pytest.raises(UserError, match=r"overflows float16: \|max\| = ") as told:
        merge_into(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16), merge)
    assert "suite.dtype" in str(told.value.do)
    merge_into(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), merge)
