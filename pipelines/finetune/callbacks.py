"""What happens around the Trainer's steps: moving the weights, telling the listener, stopping at NaN."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from conf.errors import UserError
from pipelines.progress import Step


class PerturbationCallback(TrainerCallback):
    """Moves the weights for the gradients of each optimizer step of any Trainer, and brings them back before it steps.

    Give the Trainer the same optimizer: ``Trainer(…, optimizers=(opt, None), callbacks=[PerturbationCallback(opt)])``.
    """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first micro-batch: θ → θ + ε."""
        self.optimizer.move()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After clipping, before the step: θ + ε → θ."""
        self.optimizer.restore()


class MetricsCallback(TrainerCallback):
    """Writes ``metrics.jsonl`` and reports loss, learning rate, tokens a second, time left and memory."""

    def __init__(self, file: Path, step: Step, optimizer: Any):
        self.file, self.step, self.optimizer = file, step, optimizer
        self.tokens, self.begun = 0, 0.0
        self.last: dict[str, Any] = {}
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock; after a resume, drop what the interrupted run wrote beyond its checkpoint."""
        self.begun, self._first = time.perf_counter(), state.global_step
        kept = []
        if self.file.exists() and state.global_step:
            lines = self.file.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        if kept:
            self.step.advance(state.global_step)
        self.file.write_text("".join(line + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One line of metrics, one advance of the listener."""
        if not logs or "loss" not in logs:
            return
        seconds = time.perf_counter() - self.begun
        row = {"step": state.global_step, "loss": logs["loss"], "lr": logs["learning_rate"]}
        if "grad_norm" in logs:
            row["grad_norm"] = logs["grad_norm"]
        offset = getattr(self.optimizer, "last_offset", None)
        if offset is not None and hasattr(offset, "alpha"):
            row |= {"alpha": offset.alpha, "tasks": offset.tasks}
        row |= {"tokens": int(self.tokens), "seconds": round(seconds, 3)}
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.last = row
        done = state.global_step - self._first
        eta = seconds / done * (state.max_steps - state.global_step)
        self.step.advance(
            args.logging_steps, loss=row["loss"], lr=row["lr"], tokens_per_second=int(self.tokens) / seconds,
            eta=eta, memory=memory(),
        )  # fmt: skip


def memory() -> int:
    """Bytes in use: of the accelerator where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)


def check_loss(loss: float, step: int, kept: str) -> None:
    """Stop where the loss is no number.

    Raises:
        UserError: Naming the step and where the last good weights are.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"the loss became {loss} at step {step}", where=kept,
            do="lower optimizer.lr, set training.clip, or look at the data of that step",
        )  # fmt: skip
