"""The transformers Trainer with everything that talks, saves or forks switched off unless asked for."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from conf.errors import UserError
from conf.schema import Optimizer, Training
from pipelines.finetune.callbacks import NotFiniteError

EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class ExpertTrainer(Trainer):
    """Runs methods that take several gradients a step, counts tokens, and stops before a loss that is no number steps.

    Args:
        method: The optimizer around the base optimizer, or the base optimizer itself.
        kwargs: As for the Trainer.
    """

    def __init__(self, method: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self.method, self.tokens = method, 0
        self._held: list[dict[str, Any]] = []

    @property
    def several(self) -> bool:
        """Whether the method takes more than one gradient for a step."""
        return getattr(self.method, "passes", 1) > 1

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch; its gradients are added up.

        Methods of several gradients hold the micro-batches back and run all of them, once a gradient, with the last.
        """
        self.tokens += inputs.pop("tokens", 0)
        if not self.several:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            self._held.append(inputs)
            if not self.accelerator.gradient_state.sync_gradients:
                return torch.zeros((), device=self.args.device)
            held, self._held = self._held, []
            loss = self.method.gradients(lambda: self._pass(model, held, num_items_in_batch))
        if not torch.isfinite(loss):
            raise NotFiniteError("loss", float(loss), self.state.global_step + 1)
        return loss

    def _pass(self, model: nn.Module, held: list[dict[str, Any]], items: Any) -> torch.Tensor:
        """Gradients of all micro-batches of a step; ranks exchange them with the last."""
        total = torch.zeros((), device=self.args.device)
        for i, inputs in enumerate(held):
            with nullcontext() if i == len(held) - 1 else self.accelerator.no_sync(model=model):
                total += super().training_step(model, dict(inputs), items)
        return total


def arguments(
    training: Training, optimizer: Optimizer, schedule: str, seed: int, steps: int, folder: Path, cpu: bool
) -> TrainingArguments:
    """The Trainer's arguments.

    Raises:
        UserError: A reporter that is unknown or not installed.
    """
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=optimizer.lr,
        lr_scheduler_type=schedule,
        warmup_steps=0 if schedule == "constant" else training.warmup_steps,
        max_grad_norm=training.clip,
        bf16=training.precision == "bf16",
        save_strategy="steps" if training.save_steps else "no",
        save_steps=training.save_steps or 500,
        save_total_limit=1,
        report_to=_reporters(training) or "none",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        seed=seed,
        use_cpu=cpu,
    )


def _reporters(training: Training) -> list[str]:
    from importlib.util import find_spec

    for name in training.reporters:
        if name not in EXTRAS:
            raise UserError(
                f"unknown reporter {name!r}", where="training.reporters", do=f"valid names: {', '.join(EXTRAS)}"
            )
        if find_spec(EXTRAS[name]) is None:
            raise UserError(
                f"{name} is not installed", where="training.reporters", do=f"pip install 'mergebench[{name}]'"
            )
    return list(training.reporters)
