"""The transformers Trainer with everything that talks, saves or forks switched off unless asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from conf.errors import UserError, nearest
from conf.schema import Optimizer, Training
from pipelines.finetune.callbacks import check_loss

SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")


class ExpertTrainer(Trainer):
    """Counts tokens, and stops before a loss that is no number can reach the weights."""

    metrics: Any = None
    """The MetricsCallback that shows the count of tokens."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch; its gradients are added up."""
        tokens = inputs.pop("tokens", 0)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.metrics.tokens += tokens
        check_loss(loss.item(), self.state.global_step + 1, "")
        return loss


def arguments(
    training: Training, optimizer: Optimizer, schedule: str, seed: int, steps: int | None, epochs: float, folder: Path,
    cpu: bool,
) -> TrainingArguments:  # fmt: skip
    """The Trainer's arguments."""
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule {schedule!r}", where="training.schedule", do=nearest(schedule, SCHEDULES))
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps or -1,
        num_train_epochs=epochs,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=optimizer.lr,
        lr_scheduler_type=schedule,
        warmup_steps=training.warmup_steps if schedule != "constant" else 0,
        max_grad_norm=training.clip,
        bf16=training.precision == "bf16",
        save_strategy="steps" if training.save_steps else "no",
        save_steps=training.save_steps or 500,
        save_total_limit=1,
        report_to=list(training.reporters) or "none",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        seed=seed,
        use_cpu=cpu,
    )
