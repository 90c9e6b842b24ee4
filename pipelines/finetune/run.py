"""Fine-tune one expert: data, model, method, Trainer, checkpoint, card."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.schema import Optimizer, Task, Training
from pipelines.finetune.callbacks import MetricsCallback, PerturbationCallback
from pipelines.finetune.card import base_name as name_of
from pipelines.finetune.card import write_card
from pipelines.finetune.checkpoints import check_room, full_disk, prepare
from pipelines.finetune.data import read_rows, task_fingerprint
from pipelines.finetune.ending import brought_back, finish
from pipelines.finetune.linear import write_flag
from pipelines.finetune.methods import check_finetuning
from pipelines.finetune.models import load
from pipelines.finetune.optimizers import around, base_optimizer
from pipelines.finetune.packing import PackCollator, pack
from pipelines.finetune.schedule import total_steps
from pipelines.finetune.state import quiet, seeded, settled
from pipelines.finetune.tokens import Collator, encode
from pipelines.finetune.trainer import ExpertTrainer, arguments
from pipelines.progress import SILENT, Progress
from pipelines.threads import threads

SMALL = 2_000_000
"""Models below this many parameters are trained on one thread: faster, and the same bits whatever the thread count."""


@dataclass(frozen=True)
class Run:
    """Everything that one call of ``finetune`` was given."""

    base: Path
    task: Task
    method: dict[str, Any]
    optimizer: Optimizer
    training: Training
    seed: int
    out: Path
    progress: Progress
    name: str
    base_name: str
    datasets: str | None
    online: bool
    checkpoints: Path
    device: str
    cpu_threads: int | None

    @property
    def rank(self) -> int:
        """This process among those that ``torchrun`` started."""
        return int(os.environ.get("RANK", "0"))

    def about(self) -> dict[str, Any]:
        """What fixes the run, so that a checkpoint of another one is never resumed."""
        training = {k: v for k, v in dataclasses.asdict(self.training).items() if k not in ("reporters", "save_steps")}
        return {
            "base": str(self.base.resolve()), "task": dataclasses.asdict(self.task), "method": self.method,
            "optimizer": dataclasses.asdict(self.optimizer), "training": training, "seed": self.seed,
            "data": task_fingerprint(self.task, self.datasets, self.online),
        }  # fmt: skip


def finetune(
    base: Path, task: Task, finetuning: dict[str, Any], optimizer: Optimizer, training: Training, seed: int, out: Path,
    progress: Progress = SILENT, *, name: str | None = None, datasets: str | None = None, online: bool = True,
    checkpoints: Path | None = None, base_name: str | None = None, device: str = "auto", cpu_threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one expert and write it to ``out``: weights, config, tokenizer, model card, ``metrics.jsonl``.

    The same arguments give the same bits on a given machine; the caller's random state is left as found.

    Args:
        base: Folder of the base checkpoint.
        task: What the expert is trained on.
        finetuning: Method and parameters, as for ``check_finetuning``.
        optimizer: The base optimizer.
        training: Length, batch, precision.
        seed: Of the data order, the method's random draws, adapters, dropout.
        out: Folder to fill.
        progress: Listener; its fields are loss, lr, tokens_per_second, eta (seconds) and memory (bytes).
        name: The expert's name; default the task's.
        datasets: Local mirror of hub data sets.
        online: Allow the hub.
        checkpoints: Folder of resumable checkpoints (``training.save_steps``): the same call finds them again and goes
            on; gone once the expert is written. Default: beside ``out``.
        base_name: The base's name on the card; default: its hub id or folder.
        device: auto, cpu or cuda.
        cpu_threads: Threads of a model that is not small; default: all cores.

    Returns:
        steps, loss (last step), tokens, examples, seconds.

    Raises:
        UserError: Bad data or parameters, a loss that is no number, a full disk.
    """
    method = check_finetuning(finetuning)
    run = Run(
        base, task, method, optimizer, training, seed, out, progress, name or task.name,
        base_name or name_of(base), datasets, online, checkpoints or out.with_name(out.name + ".checkpoints"),
        device, cpu_threads,
    )  # fmt: skip
    with quiet(), seeded(seed), settled():
        return _train(run)


def _train(run: Run) -> dict[str, Any]:
    begun = time.perf_counter()
    rows = read_rows(run.task, run.seed, run.datasets, run.online)
    loaded = load(run.base, run.training, run.method["method"], run.device)
    check_room(run.out, loaded.size + (_checkpoint_size(loaded) if run.training.save_steps else 0))
    run.out.mkdir(parents=True, exist_ok=True)
    small = sum(p.numel() for p in loaded.model.parameters()) < SMALL
    with threads(1 if small else run.cpu_threads), full_disk(run.out):
        summary = _fit(run, loaded, rows)
        if run.rank == 0:
            loaded.save(run.out)
            summary["seconds"] = round(time.perf_counter() - begun, 3)
            write_card(
                run.out, run.name, run.base_name, run.task, run.method, run.optimizer, run.training, run.seed, summary
            )
            if run.method["method"] == "tangent":
                write_flag(run.out, run.base)
            shutil.rmtree(run.checkpoints, ignore_errors=True)
    return summary


def _checkpoint_size(loaded: Any) -> int:
    """Bytes of two resumable checkpoints: the old one goes after the new one is written."""
    return 2 * sum(p.numel() * p.element_size() + 8 * p.numel() * p.requires_grad for p in loaded.model.parameters())


def _fit(run: Run, loaded: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Train ``loaded.model`` in place."""
    data, collator = _sequences(run, loaded, rows)
    steps = total_steps(run.task, run.training, len(data), int(os.environ.get("WORLD_SIZE", "1")))
    resumable = run.training.save_steps is not None
    metrics = (run.checkpoints if resumable else run.out) / "metrics.jsonl"
    with tempfile.TemporaryDirectory() as scratch, _logs_beside(run.out):
        args = _arguments(run, loaded, steps, run.checkpoints if resumable else Path(scratch))
        with args.main_process_first(local=False):
            newest = prepare(run.checkpoints, run.about()) if resumable else None
        trainer = _trainer(run, loaded, args, data, collator)
        listener = run.progress if run.rank == 0 else SILENT
        with listener.step(f"fine-tune {run.name}", total=steps) as bar:
            callback = MetricsCallback(metrics if run.rank == 0 else None, bar, trainer)
            trainer.add_callback(callback)
            with brought_back(run, loaded, trainer):
                trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    if resumable and run.rank == 0:
        shutil.copyfile(metrics, run.out / "metrics.jsonl")
    finish(run, loaded, trainer)
    row = callback.last
    taken = trainer.state.global_step
    return {"steps": taken, "loss": row.get("loss"), "tokens": row.get("tokens"), "examples": len(rows)}


def _sequences(run: Run, loaded: Any, rows: list[dict[str, Any]]) -> tuple[list[Any], Any]:
    """Training sequences and what makes batches of them."""
    examples = encode(rows, loaded.tokenizer, run.task, run.training, loaded.context)
    if not run.training.packing:
        return list(examples), Collator(loaded.pad)
    length = min(run.training.max_length or loaded.context, loaded.context)
    return list(pack(examples, length, run.seed)), PackCollator(loaded.pad)


def _arguments(run: Run, loaded: Any, steps: int, folder: Path) -> Any:
    schedule = "constant" if run.method.get("mode") == "released" else run.training.schedule
    return arguments(run.training, run.optimizer, schedule, run.seed, steps, folder, loaded.device == "cpu")


def _trainer(run: Run, loaded: Any, args: Any, data: list[Any], collator: Any) -> Any:
    """The Trainer, with the method as its optimizer."""
    model = loaded.model.to(loaded.device)
    base = base_optimizer(run.optimizer, model, run.training.precision == "bf16_masters")
    method = around(base, run.method, model, run.seed, args.max_steps, run.training.lora.rank > 0)
    trainer = ExpertTrainer(
        method=method, model=model, args=args, train_dataset=data, data_collator=collator, optimizers=(method, None)
    )
    if hasattr(method, "move") and not trainer.several:
        trainer.add_callback(PerturbationCallback(method))
    return trainer


@contextmanager
def _logs_beside(out: Path) -> Iterator[None]:
    """TensorBoard's files go into the expert's folder."""
    name = "TENSORBOARD_LOGGING_DIR"
    before = os.environ.get(name)
    os.environ[name] = before or str(out / "tensorboard")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
