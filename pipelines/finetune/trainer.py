"""The transformers Trainer for methods that move weights, and its callbacks."""

from __future__ import annotations

import json
import math
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback

from pipelines.progress import Step


class NotFiniteError(ArithmeticError):
    """A loss or gradient norm that is no number, and the optimizer step that it belongs to."""

    def __init__(self, what: str, value: float, step: int):
        super().__init__(f"the {what} became {value} at step {step}")


class ExpertTrainer(Trainer):
    """Runs methods of several gradients per step, counts tokens, and stops before a loss that is no number steps.

    Args:
        method: The optimizer around the base optimizer, or the base optimizer itself.
        kwargs: As for the Trainer.
    """

    def __init__(self, method: Any, **kwargs: Any):
        super().__init__(optimizers=(method, None), **kwargs)
        self.remove_callback(PrinterCallback)
        self.method, self.tokens = method, 0
        self.several = getattr(method, "passes", 1) > 1
        """Whether the method takes more than one gradient for a step."""
        self._micro_batches: list[dict[str, Any]] = []
        if hasattr(method, "move") and not self.several:
            self.add_callback(PerturbationCallback(method))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch; its gradients are added up.

        Methods of several gradients hold the micro-batches back and run all of them, once per gradient, with the last.
        """
        self.tokens += inputs.pop("tokens", 0)
        if not self.several:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            self._micro_batches.append(inputs)
            if not self.accelerator.gradient_state.sync_gradients:
                return torch.zeros((), device=self.args.device)
            batches, self._micro_batches = self._micro_batches, []
            loss = self.method.gradients(lambda: self._pass(model, batches, num_items_in_batch))
        if not torch.isfinite(loss):
            raise NotFiniteError("loss", float(loss), self.state.global_step + 1)
        return loss

    def _pass(self, model: nn.Module, batches: list[dict[str, Any]], items: Any) -> torch.Tensor:
        """Gradients of all micro-batches of a step; ranks exchange them with the last."""
        total = torch.zeros((), device=self.args.device)
        for i, inputs in enumerate(batches):
            with nullcontext() if i == len(batches) - 1 else self.accelerator.no_sync(model=model):
                total += super().training_step(model, dict(inputs), items)
        return total


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
    """Writes ``metrics.jsonl`` and reports loss, learning rate, tokens per second, time left and memory."""

    def __init__(self, file: Path | None, step: Step, trainer: ExpertTrainer, exchange: Any = None):
        self.file, self.step, self.trainer, self.exchange = file, step, trainer, exchange
        self.begun = self.before = 0.0
        """When this call began, and seconds of interrupted ones up to the checkpoint that it goes on from."""
        self.first = (0, 0)
        """Step and tokens that this call began with."""
        self.last: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock; after a resume, keep what the interrupted run wrote up to its checkpoint."""
        self.begun = time.perf_counter()
        rows: list[dict[str, Any]] = []
        if self.file and self.file.exists() and state.global_step:
            rows = [json.loads(line) for line in self.file.read_text().splitlines()]
            rows = [row for row in rows if row["step"] <= state.global_step]
        if rows:
            self.last, self.trainer.tokens, self.before = rows[-1], rows[-1]["tokens"], rows[-1]["seconds"]
            self.step.advance(state.global_step)
        self.first = (state.global_step, self.trainer.tokens)
        if self.file:
            self.file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One line of metrics, one advance of the listener."""
        if not logs or "loss" not in logs:
            return
        seconds = time.perf_counter() - self.begun - (self.exchange.waited if self.exchange else 0.0)
        row = {"step": state.global_step, "loss": logs["loss"], "lr": logs["learning_rate"]}
        row |= {"grad_norm": logs["grad_norm"]} if "grad_norm" in logs else {}
        row |= self._method() | {"tokens": self.trainer.tokens, "seconds": round(self.before + seconds, 3)}
        if self.file:
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
        self.last = row
        if not math.isfinite(row.get("grad_norm", 0.0)):
            raise NotFiniteError("gradient's norm", row["grad_norm"], state.global_step)
        step, tokens = self.first
        eta = seconds / max(state.global_step - step, 1) * (state.max_steps - state.global_step)
        rate = (self.trainer.tokens - tokens) / max(seconds, 1e-9)
        self.step.advance(loss=row["loss"], lr=row["lr"], tokens_per_second=rate, eta=eta, memory=_memory())

    def shortfall(self) -> dict[str, float]:
        """Mean losses of all steps at the sampled offset and at the worst that the ascent met, where there is one."""
        rows = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file else []
        names = [name for name in ("loss_sampled", "loss_worst") if rows and name in rows[0]]
        return {name: sum(row[name] for row in rows) / len(rows) for name in names}

    def _method(self) -> dict[str, Any]:
        """What the method reports of its latest step."""
        row: dict[str, Any] = {}
        if (offset := getattr(self.trainer.method, "last_offset", None)) is not None:
            row |= {"alpha": offset.alpha, "tasks": offset.tasks, "offset_seed": offset.seed}
        if (shortfall := getattr(self.trainer.method, "last_shortfall", None)) is not None:
            row |= {"loss_sampled": shortfall.sampled, "loss_worst": shortfall.worst}
        return row


def _memory() -> int:
    """Bytes in use: of the accelerator where there is one, else of this process."""
    return int(torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss)


class PeakMemory:
    """Bytes at the peak inside: resident ones of this process, looked at 50 times a second, and allocated ones of the
    accelerator, where the work is on one."""

    EVERY = 0.02

    def __init__(self, device: str):
        self.host, self.device, self._on_device = 0, None if device == "cpu" else 0, device != "cpu"
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.host = max(self.host, process.memory_info().rss)
            if self._over.wait(self.EVERY):
                return

    def __enter__(self) -> PeakMemory:
        if self._on_device:
            torch.cuda.reset_peak_memory_stats()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        if self._on_device:
            self.device = torch.cuda.max_memory_allocated()

    def describe(self) -> dict[str, int]:
        """``memory``, and ``device_memory`` where there is a device."""
        return {"memory": self.host} | ({} if self.device is None else {"device_memory": self.device})
