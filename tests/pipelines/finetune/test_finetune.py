"""Experts trained end to end on a tiny base."""

import json
import random
import time

import numpy as np
import pytest
import torch

from conf.schema import Lora, Optimizer, Task
from pipelines.finetune import finetune
from pipelines.finetune.trainer import PeakMemory

METHODS = ["plain", "mergopt", "sam", "asam", "tangent"]


def test_same_inputs_give_the_same_bits_and_another_seed_does_not(train, same):
    a, b, c = (train(name, "mergopt", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert same(a, b)
    assert not same(a, c)


def test_random_state_is_left_as_found_and_nothing_is_printed(train, capfd):
    state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), torch.get_num_threads()
    train("a", "mergopt")
    assert random.getstate() == state[0]
    assert (np.random.get_state()[1] == state[1]).all()
    assert torch.equal(torch.get_rng_state(), state[2])
    assert torch.get_num_threads() == state[3]
    assert capfd.readouterr() == ("", "")


def test_the_expert_is_an_ordinary_checkpoint(base, train, weights):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = train("a")
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("odd a b =", return_tensors="pt")["input_ids"]
    assert model(input_ids=ids).logits.shape == (1, 4, len(tokenizer))
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert json.loads((out / "config.json").read_text())["use_cache"] is True
    assert weights(out).keys() == weights(base).keys()


def test_metrics_and_summary(train):
    out = train("a", "mergopt", steps=4)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert all(
        {"loss", "lr", "grad_norm", "tokens", "seconds", "alpha", "tasks", "offset_seed"} <= r.keys() for r in rows
    )
    assert train.summary["steps"] == 4
    assert train.summary["loss"] == rows[-1]["loss"]
    assert train.summary["tokens"] == rows[-1]["tokens"] > rows[0]["tokens"]


def test_the_card_names_task_method_parameters_seed_and_versions(train):
    card = (train("my expert", "mergopt", seed=5, name="my expert") / "README.md").read_text()
    for text in ("# my expert", "task: odd", "method: mergopt", "seed: 5", "| scale | 0.0005 |", "| max_tasks | 7 |"):
        assert text in card
    assert f"| torch | {torch.__version__} |" in card


class Listener:
    """Keeps what it is told."""

    def __init__(self, fail_at=None):
        self.told, self.total, self.fail_at, self.count = [], None, fail_at, 0

    def step(self, label, total=None):
        self.total = total
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def advance(self, n=1, **fields):
        self.count += n
        self.told.append(fields)
        if self.count == self.fail_at:
            raise KeyboardInterrupt

    def note(self, text, level="info"):
        pass


def test_progress_is_live(train):
    listener = Listener()
    train("a", progress=listener)
    assert listener.total == listener.count == 3
    for fields in listener.told:
        assert fields.keys() == {"loss", "lr", "tokens_per_second", "eta", "memory"}
        assert fields["tokens_per_second"] > 0
        assert fields["memory"] > 1e6
    assert listener.told[-1]["eta"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls(train, method):
    out = train("a", method, steps=30, batch_size=16, optimizer=Optimizer(lr=3e-3))
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert train.summary["loss"] < first["loss"] - 0.5


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": Lora(rank=4, dropout=0.1)}, {"packing": True, "max_length": 64}, {"precision": "bf16_masters"}],
    ids=["whole", "lora", "packing", "masters"],
)
@pytest.mark.parametrize(
    "method", [{"method": "mergopt", "scale": "fitted"}, {"method": "sam"}], ids=["mergopt", "sam"]
)
def test_an_interrupted_run_resumes_to_the_same_bits(base, train, tmp_path, method, options, same):
    options = {"steps": 6, "save_steps": 2, "accumulation": 2, **options}
    whole = train("whole", method, **options)
    with pytest.raises(KeyboardInterrupt):
        train("parts", method, progress=Listener(fail_at=5), **options)
    kept = tmp_path / "parts.checkpoints"
    assert (kept / "checkpoint-4" / "trainer_state.json").is_file()
    listener = Listener()
    parts = train("parts", method, progress=listener, **options)
    assert len(listener.told) == 3  # four steps at once, then the fifth and sixth
    assert same(whole, parts)
    rows = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds), "the interrupted run's time counts"
    assert train.summary["seconds"] >= seconds[-1]
    assert not kept.exists()


def test_the_peak_of_memory_is_what_was_allocated_at_once():
    with PeakMemory("cpu") as small:
        pass
    with PeakMemory("cpu") as peak:
        for _ in range(2):
            block = np.ones(25_000_000)  # 200 MB
            time.sleep(3 * PeakMemory.EVERY)
            del block
    assert 180e6 < peak.host - small.host < 300e6
    assert peak.describe() == {"memory": peak.host}


def test_another_runs_checkpoint_is_not_resumed(train, tmp_path, same):
    with pytest.raises(KeyboardInterrupt):
        train("a", progress=Listener(fail_at=3), save_steps=2, steps=4, checkpoints=tmp_path / "kept")
    listener = Listener()
    b = train("b", seed=1, progress=listener, save_steps=2, steps=4, checkpoints=tmp_path / "kept")
    assert len(listener.told) == 4
    assert same(b, train("c", seed=1, steps=4))


def test_released_is_plain_training_at_a_constant_rate(train, same):
    options = {"steps": 5, "warmup_steps": 2}
    released = train("released", {"method": "mergopt", "mode": "released"}, **options)
    assert same(released, train("constant", "plain", schedule="constant", **options))
    assert not same(released, train("cosine", "plain", **options))
    assert "as released" in (released / "README.md").read_text()


def test_a_half_precision_base_gives_a_half_precision_expert(base, train, tmp_path, weights):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(base).save_pretrained(half)
    for precision in ("float32", "bf16_masters"):
        out = train(precision, folder=half, precision=precision)
        assert {t.dtype for t in weights(out).values()} == {torch.bfloat16}
        assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_base_optimizers(base, train, name, same):
    out = train("a", "mergopt", optimizer=Optimizer(name=name, lr=1e-2, momentum=0.9))
    assert not same(out, base)


def test_epochs_of_the_task_come_first(train, rows):
    rows.epochs = 1.5
    train("a", task=rows, batch_size=5, steps=50)
    assert train.summary["steps"] == 5  # three batches an epoch
    assert train.summary["examples"] == 12


def test_a_file_with_other_column_names_trains(train, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"q": f"add {a} 1 =", "a": f" {a + 1}"}) + "\n" for a in range(9)))
    train("a", task=Task(name="file", path=str(file), prompt="q", completion="a"))
    assert train.summary["examples"] == 9


def test_finetune_is_importable_without_loading_torch():
    import subprocess
    import sys

    code = "import sys, pipelines.finetune as f; f.check_finetuning({}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert callable(finetune)


def test_adamw_in_eight_bits(base, train, same):
    pytest.importorskip("bitsandbytes")
    eight = train("eight", "mergopt", optimizer=Optimizer(name="adamw_8bit", lr=1e-2))
    assert not same(eight, base)
    assert not same(eight, train("whole", "mergopt", optimizer=Optimizer(name="adamw", lr=1e-2)))


def test_tensorboard_writes_beside_the_expert(train):
    pytest.importorskip("tensorboard")
    out = train("a", reporters=["tensorboard"])
    assert list((out / "tensorboard").rglob("events.out.tfevents.*"))


def test_the_callback_works_in_any_trainer(base, tmp_path):
    """What a user of the plain transformers Trainer does: the callback, and the same optimizer."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from mergeopt_core import MergOPT
    from pipelines.finetune.trainer import PerturbationCallback

    model, seen = AutoModelForCausalLM.from_pretrained(base), []
    opt = MergOPT(torch.optim.AdamW(model.parameters(), lr=1e-3), scale=0.05)
    rows = [{"input_ids": torch.tensor([5, 6, 7 + i]), "labels": torch.tensor([-100, 6, 7 + i])} for i in range(6)]
    weight = model.lm_head.weight

    class Watching(Trainer):
        def compute_loss(self, model, *args, **kwargs):
            seen.append(weight.detach().clone())
            return super().compute_loss(model, *args, **kwargs)

    args = TrainingArguments(str(tmp_path), max_steps=3, use_cpu=True, report_to="none", save_strategy="no")
    before = weight.detach().clone()
    trainer = Watching(model, args, train_dataset=rows, optimizers=(opt, None), callbacks=[PerturbationCallback(opt)])
    trainer.train()
    assert opt.steps == 3
    place = next(i for i, m in enumerate(opt.perturbation.moved) if m.parameters[0] is weight)
    expected = before + opt.draw(0).coefficient * opt.noise(opt.draw(0))[place]
    torch.testing.assert_close(seen[0], expected)
