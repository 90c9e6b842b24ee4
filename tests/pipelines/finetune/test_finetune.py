"""Experts trained end to end on a tiny base."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conf.schema import Optimizer, Task, Training
from pipelines.finetune import finetune

TASK = Task(name="odd", skill="odd")
SHORT = Training(steps=4, batch_size=8, warmup_steps=1)


def train(base, out, method=None, task=TASK, training=SHORT, seed=0, **more):
    return finetune(base, task, method or {"method": "plain"}, Optimizer(lr=1e-3), training, seed, out, **more)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_same_inputs_give_the_same_bits_and_another_seed_does_not(base, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(base, tmp_path / name, {"method": "mergopt"}, seed=seed)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def test_zero_scale_is_plain_training_bit_for_bit(base, tmp_path):
    train(base, tmp_path / "plain")
    train(base, tmp_path / "zero", {"method": "mergopt", "scale": 0})
    train(base, tmp_path / "moved", {"method": "mergopt", "scale": 0.01})
    assert same(tmp_path / "plain", tmp_path / "zero")
    assert not same(tmp_path / "plain", tmp_path / "moved")


def test_random_state_is_left_as_found_and_nothing_is_printed(base, tmp_path, capfd):
    state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), torch.get_num_threads()
    train(base, tmp_path / "a")
    assert random.getstate() == state[0]
    assert (np.random.get_state()[1] == state[1]).all()
    assert torch.equal(torch.get_rng_state(), state[2])
    assert torch.get_num_threads() == state[3]
    assert capfd.readouterr() == ("", "")


def test_the_expert_is_an_ordinary_checkpoint(base, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary = train(base, tmp_path / "a")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    ids = tokenizer("odd a b =", return_tensors="pt")["input_ids"]
    assert model(input_ids=ids).logits.shape == (1, 4, len(tokenizer))
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert summary["steps"] == 4
    assert summary["loss"] == rows[-1]["loss"]
    assert summary["tokens"] == rows[-1]["tokens"] > 0


def test_a_jsonl_file_with_other_column_names_trains(base, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"q": f"add {a} 1 =", "a": f" {a + 1}"}) + "\n" for a in range(9)))
    task = Task(name="file", path=str(file), prompt="q", completion="a")
    assert train(base, tmp_path / "a", task=task)["examples"] == 9


@pytest.mark.parametrize("method", [{"method": "plain"}, {"method": "mergopt"}])
def test_the_loss_falls(base, tmp_path, method):
    summary = train(base, tmp_path / "a", method, training=Training(steps=40, batch_size=16))
    first = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[0])
    assert summary["loss"] < first["loss"] - 0.5
