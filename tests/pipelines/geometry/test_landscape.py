"""The landscape's loss is the Trainer's, at models built by hand."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainingArguments

from conf.errors import UserError
from conf.schema import Landscape, Task, Training
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.finetune.data import read_rows
from pipelines.finetune.models import load
from pipelines.finetune.tokens import Collator, encode
from pipelines.finetune.trainer import ExpertTrainer
from pipelines.geometry import Panel, write_landscape
from pipelines.geometry.landscape import mean_loss, task_batches

TASKS = (Task(name="add", skill="add"), Task(name="dist", skill="dist"))
SETTINGS = Landscape(points=3, low=0.0, high=1.0, examples=10, batch_size=4)


@pytest.fixture(scope="module")
def panel(tiny_pool):
    base, one, two = (open_checkpoint(path) for path in (tiny_pool.base, *tiny_pool.experts[:2]))
    return Panel("add & dist", base, (one, two), ("add", "dist"), TASKS)


def by_hand(panel, first, second):
    """θ0 + α1 Δ1 + α2 Δ2 in plain torch, loaded as any model."""
    base, one, two = (load_file(c.folder / "model.safetensors") for c in (panel.base, *panel.experts))
    model = AutoModelForCausalLM.from_pretrained(panel.base.folder, dtype=torch.float32)
    mixed = {n: t.double() + first * (one[n].double() - t) + second * (two[n].double() - t) for n, t in base.items()}
    model.load_state_dict({n: t.float() for n, t in mixed.items()}, strict=False)
    return model.eval()


def loss_by_hand(model, panel, task):
    """Mean over all completion tokens, one example at a time, from log-probabilities."""
    loaded = load(panel.base.folder, Training(), "plain", "cpu")
    rows = read_rows(Task(name=task.name, skill=task.skill, limit=SETTINGS.examples), 0)
    total, count = 0.0, 0
    for example in encode(rows, loaded.tokenizer, task, Training(), loaded.context):
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            scores = model(ids).logits[0, example.start - 1 : -1].double().log_softmax(-1)
        total -= float(scores.gather(1, ids[0, example.start :, None]).sum())
        count += len(example.ids) - example.start
    return total / count


def test_losses_are_those_of_models_built_by_hand(panel, tmp_path):
    panels = [panel, dataclasses.replace(panel, name="again")]
    made = write_landscape(panels, tmp_path, SETTINGS, device="cpu")
    frame = pd.read_csv(tmp_path / "losses.csv")
    pd.testing.assert_frame_equal(frame, made.frame)
    own, again = (frame[frame["panel"] == name].drop(columns="panel").reset_index(drop=True)
                  for name in ("add & dist", "again"))  # fmt: skip
    pd.testing.assert_frame_equal(own, again)
    assert sorted(set(zip(own["alpha_1"], own["alpha_2"]))) == [(a, b) for a in (0, 0.5, 1) for b in (0, 0.5, 1)]
    for first, second in ((0.0, 0.0), (0.5, 1.0), (1.0, 0.0)):
        row = own.query("alpha_1 == @first and alpha_2 == @second").iloc[0]
        expected = [loss_by_hand(by_hand(panel, first, second), panel, task) for task in TASKS]
        assert [row["loss_1"], row["loss_2"]] == pytest.approx(expected, rel=1e-5)
        assert row["loss"] == pytest.approx(sum(expected), rel=1e-5)
    summary = made.summary.iloc[0]
    assert (summary["base"], summary["least"]) == (own["loss"].iloc[0], own["loss"].min())
    assert summary["near_least"] == (own["loss"] <= 1.1 * own["loss"].min()).mean()
    drawn = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {f"landscape.{ending}" for ending in ("png", "svg", "csv")} <= drawn


def test_the_loss_is_the_trainers_on_the_same_examples(panel, tmp_path):
    """All examples in one optimizer step of micro-batches: the Trainer's loss of that step, before it steps."""
    loaded = load(panel.base.folder, Training(), "plain", "cpu")
    batches = task_batches(TASKS[0], loaded, SETTINGS, Training(), 0, None, True)
    rows = read_rows(Task(name="add", skill="add", limit=SETTINGS.examples), 0)
    data = encode(rows, loaded.tokenizer, TASKS[0], Training(), loaded.context)
    ours = mean_loss(loaded.model.eval(), batches)
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=5,
        use_cpu=True, report_to="none", logging_steps=1, disable_tqdm=True, remove_unused_columns=False,
        save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(loaded.model.parameters(), lr=0.0)
    trainer = ExpertTrainer(
        optimizer, model=loaded.model, args=args, train_dataset=data, data_collator=Collator(loaded.pad)
    )
    trainer.train()
    assert ours == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-5)
    assert not math.isclose(ours, mean_loss(loaded.model, batches[:1]), rel_tol=1e-3), "all batches count"


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"points": 1}, "no grid"), ({"low": 1.0}, "no grid"), ({"examples": 0}, "none"), ({"batch_size": 0}, "none")],
)
def test_a_grid_that_is_none_is_refused(panel, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        write_landscape([panel], tmp_path / "out", Landscape(**{**vars(SETTINGS), **changed}))
    assert not (tmp_path / "out").exists()
