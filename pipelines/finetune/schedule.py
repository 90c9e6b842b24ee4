"""How many steps a run takes, and whether its training options mean something."""

from __future__ import annotations

import math

from conf.errors import UserError, nearest
from conf.schema import Task, Training

SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
PRECISIONS = ("float32", "bf16", "bf16_masters")


def total_steps(task: Task, training: Training, sequences: int, ranks: int = 1) -> int:
    """Optimizer steps: ``training.steps``, or as many as the epochs take (a task's own epochs come first)."""
    if training.steps and not task.epochs:
        return training.steps
    batches = math.ceil(sequences / (training.batch_size * ranks))
    return max(1, math.ceil((task.epochs or training.epochs) * math.ceil(batches / training.accumulation)))


def check_training(training: Training) -> None:
    """Refuse training options that mean nothing.

    Raises:
        UserError: Naming the option and what is valid.
    """
    whole = ("steps", "batch_size", "accumulation", "save_steps", "max_length")
    for name in whole:
        value = getattr(training, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}", where=f"training.{name}", do="give 1 or more")
    if training.lora.rank < 0:
        raise UserError(f"the rank is {training.lora.rank}", where="training.lora.rank", do="give 0 or more")
    if not training.epochs > 0:
        raise UserError(f"epochs is {training.epochs}", where="training.epochs", do="give more than 0")
    for name in ("clip", "warmup_steps"):
        if not getattr(training, name) >= 0:
            raise UserError(f"{name} is {getattr(training, name)}", where=f"training.{name}", do="give 0 or more")
    for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
        value = getattr(training, name)
        if value not in known:
            raise UserError(f"unknown {name} {value!r}", where=f"training.{name}", do=nearest(value, known))
