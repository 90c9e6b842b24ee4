"""What happens around the Trainer's steps: moving the weights, telling the listener, keeping the metrics."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from pipelines.progress import Step


class NotFiniteError(ArithmeticError):
    """A loss or gradient norm that is no number, and the optimizer step that it belongs to."""

    def __init__(self, what: str, value: float, step: int):
        super().__init__(f"the {what} became {value} at step {step}")
        self.step = step


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

    def __init__(self, file: Path | None, step: Step, trainer: Any):
        self.file, self.step, self.trainer = file, step, trainer
        self.begun = 0.0
        self.first = (0, 0)
        """Step and tokens that this call began with."""
        self.last: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock; after a resume, keep what the interrupted run wrote up to its checkpoint."""
        self.begun = time.perf_counter()
        kept: list[dict[str, Any]] = []
        if self.file and self.file.exists() and state.global_step:
            rows = [json.loads(line) for line in self.file.read_text().splitlines()]
            kept = [row for row in rows if row["step"] <= state.global_step]
        if kept:
            self.last, self.trainer.tokens = kept[-1], kept[-1]["tokens"]
            self.step.advance(state.global_step)
        self.first = (state.global_step, self.trainer.tokens)
        if self.file:
            self.file.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One line of metrics, one advance of the listener."""
        if not logs or "loss" not in logs:
            return
        seconds = time.perf_counter() - self.begun
        row = {"step": state.global_step, "loss": logs["loss"], "lr": logs["learning_rate"]}
        row |= {"grad_norm": logs["grad_norm"]} if "grad_norm" in logs else {}
        row |= self._method() | {"tokens": self.trainer.tokens, "seconds": round(seconds, 3)}
        if self.file:
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
        self.last = row
        if not math.isfinite(row.get("grad_norm", 0.0)):
            raise NotFiniteError("gradient's norm", row["grad_norm"], state.global_step)
        left = state.max_steps - state.global_step
        rate = (self.trainer.tokens - self.first[1]) / max(seconds, 1e-9)
        self.step.advance(
            loss=row["loss"], lr=row["lr"], tokens_per_second=rate,
            eta=seconds / max(state.global_step - self.first[0], 1) * left, memory=memory(),
        )  # fmt: skip

    def _method(self) -> dict[str, Any]:
        """What the method tells of its latest step."""
        method = self.trainer.method
        row: dict[str, Any] = {}
        if (offset := getattr(method, "last_offset", None)) is not None:
            row |= {"alpha": offset.alpha, "tasks": offset.tasks, "offset_seed": offset.seed}
        if (shortfall := getattr(method, "last_shortfall", None)) is not None:
            row |= {"loss_sampled": shortfall.sampled, "loss_worst": shortfall.worst}
        return row


def memory() -> int:
    """Bytes in use: of the accelerator where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)
