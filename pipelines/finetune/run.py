"""Fine-tune one expert: data, model, method, Trainer, checkpoint, card."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conf.schema import Optimizer, Task, Training
from pipelines.finetune.data import read_rows
from pipelines.finetune.methods import check_finetuning
from pipelines.progress import SILENT, Progress

SMALL = 2_000_000
"""Models below this many parameters are trained on one thread: faster, and the same bits whatever the thread count."""


def finetune(
    base: Path, task: Task, finetuning: dict[str, Any], optimizer: Optimizer, training: Training, seed: int, out: Path,
    progress: Progress = SILENT, *, name: str | None = None, datasets: str | None = None, online: bool = True,
    checkpoints: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one expert and write it to ``out``: weights, config, tokenizer, model card, ``metrics.jsonl``.

    The same arguments give the same bits on a given machine; the caller's random state is left as found.

    Args:
        base: Folder of the base checkpoint.
        task: What the expert is trained on.
        finetuning: Method and parameters, as for ``check_finetuning``.
        optimizer: The base optimizer.
        training: Length, batch, precision.
        seed: Of the data order, the method's random draws, dropout.
        out: Folder to fill.
        progress: Listener.
        name: The expert's name; default the task's.
        datasets: Local mirror of hub data sets.
        online: Allow the hub.
        checkpoints: Folder of resumable checkpoints, found again by the next call; default: beside ``out``.

    Returns:
        Steps, final loss, tokens, seconds.

    Raises:
        UserError: Bad data or parameters, a loss that is no number, a full disk.
    """
    method = check_finetuning(finetuning)
    from pipelines.finetune.state import quiet, seeded

    with quiet(), seeded(seed):
        return _train(
            base,
            task,
            method,
            optimizer,
            training,
            seed,
            out,
            progress,
            name or task.name,
            datasets,
            online,
            checkpoints,
        )


def _train(
    base: Path, task: Task, method: dict[str, Any], optimizer: Optimizer, training: Training, seed: int, out: Path,
    progress: Progress, name: str, datasets: str | None, online: bool, checkpoints: Path | None,
) -> dict[str, Any]:  # fmt: skip
    from pipelines.finetune.models import load
    from pipelines.finetune.state import threads
    from pipelines.finetune.tokens import encode

    begun = time.perf_counter()
    rows = read_rows(task, seed, datasets, online)
    loaded = load(base)
    examples = encode(rows, loaded.tokenizer, task, training, loaded.context)
    out.mkdir(parents=True, exist_ok=True)
    small = sum(p.numel() for p in loaded.model.parameters()) < SMALL
    with threads(1 if small else None):
        summary = _fit(loaded, examples, task, method, optimizer, training, seed, out, progress, name, checkpoints)
    loaded.save(out)
    return {**summary, "examples": len(examples), "seconds": round(time.perf_counter() - begun, 3)}


def _fit(
    loaded: Any, examples: Sequence[Any], task: Task, method: dict[str, Any], optimizer: Optimizer, training: Training,
    seed: int, out: Path, progress: Progress, name: str, checkpoints: Path | None,
) -> dict[str, Any]:  # fmt: skip
    from pipelines.finetune.callbacks import MetricsCallback, PerturbationCallback
    from pipelines.finetune.optimizers import around, base_optimizer
    from pipelines.finetune.tokens import Collator
    from pipelines.finetune.trainer import ExpertTrainer, arguments

    released = method.get("mode") == "released"
    steps = None if task.epochs else training.steps
    opt = around(base_optimizer(optimizer, loaded.model), method, loaded.model, seed)
    cpu = loaded.device == "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        args = arguments(
            training, optimizer, "constant" if released else training.schedule, seed, steps,
            task.epochs or training.epochs, Path(scratch), cpu,
        )  # fmt: skip
        trainer = ExpertTrainer(
            model=loaded.model, args=args, train_dataset=examples, data_collator=Collator(loaded.pad),
            optimizers=(opt, None),
        )  # fmt: skip
        with progress.step(f"fine-tune {name}", total=None) as bar:
            trainer.metrics = MetricsCallback(out / "metrics.jsonl", bar, opt)
            trainer.add_callback(trainer.metrics)
            if hasattr(opt, "move"):
                trainer.add_callback(PerturbationCallback(opt))
            try:
                trainer.train()
            finally:
                if hasattr(opt, "restore"):
                    opt.restore()
    last = trainer.metrics.last
    return {"steps": trainer.state.global_step, "loss": last.get("loss"), "tokens": last.get("tokens")}
