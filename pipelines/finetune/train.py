"""Fine-tune one expert: data, model, method, Trainer, checkpoint, card."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

from transformers import TrainingArguments

from conf.errors import UserError, disk_full, out_of_memory
from conf.schema import Optimizer, Task, Training
from mergeopt_core.finetuning import MasterWeights
from mergeopt_core.randomness import random_state_restored
from pipelines.checkpoints.adapters import AdaptedCheckpoint
from pipelines.checkpoints.card import base_name as name_of
from pipelines.checkpoints.card import write_card, write_flag
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.finetune import images
from pipelines.finetune.data import Row, read_pictures, read_rows, task_fingerprint
from pipelines.finetune.exchange import Exchange, GivenVector, StoredOrigin, StretchOverError, take_part
from pipelines.finetune.models import AdapterOrigin, Loaded, check_kind, load
from pipelines.finetune.optimizers import (
    base_optimizer,
    check_finetuning,
    check_training,
    settings_that_matter,
    total_steps,
    wrap,
)
from pipelines.finetune.tangent import delinearise
from pipelines.finetune.tokens import Collator, PackCollator, encode, pack
from pipelines.finetune.trainer import ExpertTrainer, MetricsCallback, NotFiniteError, PeakMemory
from pipelines.finetune.turns import Turns
from pipelines.images.data import Pictures
from pipelines.process import silence, threads, uncollected
from pipelines.progress import SILENT, Progress, Within
from pipelines.ranks import rank, ranks

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
    name: str
    datasets: str | None
    online: bool
    checkpoints: Path
    """Where resumable checkpoints and the last good weights go."""
    more: tuple[Task, ...] = ()
    """Further tasks whose examples are mixed with the task's."""
    others: tuple[str, ...] = ()
    """Folders of the experts whose task vectors gradients are taken at."""
    exchange: Exchange | None = None
    """The part in a pool that is trained together."""

    @property
    def resumable(self) -> bool:
        """Whether checkpoints of the Trainer are kept while it runs."""
        return self.training.save_steps is not None or bool(self.exchange and self.exchange.wait is None)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return rank() == 0

    def about(self) -> dict[str, Any]:
        """What fixes the run, so that a checkpoint of another one is never resumed."""
        return {
            "base": str(self.base.resolve()), "task": dataclasses.asdict(self.task), "method": self.method,
            "optimizer": dataclasses.asdict(self.optimizer), "training": settings_that_matter(self.training),
            "seed": self.seed,
            "data": task_fingerprint(self.task, self.datasets, self.online),
            **({"others": self.others} if self.others else {}),
            **({"more": [dataclasses.asdict(task) for task in self.more]} if self.more else {}),
        }  # fmt: skip


def finetune(
    base: Path, task: Task, finetuning: dict[str, Any], optimizer: Optimizer, training: Training, seed: int, out: Path,
    progress: Progress = SILENT, *, name: str | None = None, datasets: str | None = None, online: bool = True,
    checkpoints: Path | None = None, base_name: str | None = None, device: str = "auto", cpu_threads: int | None = None,
    more: Sequence[Task] = (), others: Sequence[str] = (), exchange: Exchange | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one expert and write it to ``out``: weights, config, tokenizer, model card, ``metrics.jsonl``.

    The same arguments give the same bits on a given machine; the caller's random state is left as found.

    Args:
        finetuning: Method and parameters, as for ``check_finetuning``.
        seed: Of the data order, the method's random draws, adapters, dropout.
        progress: Listener; its fields are loss, lr, tokens_per_second, eta (seconds) and memory (bytes).
        name: The expert's name; default the task's.
        datasets: Local mirror of hub data sets.
        online: Allow the hub.
        checkpoints: Folder of resumable checkpoints (``training.save_steps``): the same call finds them again and goes
            on; gone once the expert is written. Default: beside ``out``.
        base_name: The base's name on the card; default: its hub id or folder.
        device: auto, cpu or cuda.
        cpu_threads: Threads of a model that is not small; default: all cores.
        more: Further tasks whose examples are mixed with the task's: then as many steps as all take one by one, unless
            ``training.steps`` says how many.
        others: Folders of finished experts for MergOPT's ``offsets: experts``, in the order that draws go by.
        exchange: The part in a pool for ``offsets: pool``.

    Returns:
        steps, loss (last step), tokens, examples, seconds (with those of interrupted calls), memory (peak of this
        process's resident bytes) and, on an accelerator, device_memory (peak of its allocated bytes). Empty where the
        expert of a pool is left at an exchange, to be gone on with.

    Raises:
        UserError: Bad data or parameters, a loss that is no number, a full disk.
    """
    method, training = check_finetuning(finetuning), dataclasses.replace(training, ranks=ranks())
    check_training(training, method["method"])
    checkpoints = checkpoints or out.with_name(out.name + ".checkpoints")
    run = Run(
        base, task, method, optimizer, training, seed, out, name or task.name, datasets, online, checkpoints,
        tuple(more), tuple(others), exchange,
    )  # fmt: skip
    _check_offsets(run)
    waits = exchange is not None and exchange.wait is not None
    with nullcontext() if waits else _quiet(), random_state_restored(seed):
        return _make(run, progress if run.first else SILENT, base_name, device, cpu_threads)


@contextmanager
def _quiet() -> Iterator[None]:
    with silence(), uncollected():
        yield


def finetune_pool(
    members: Sequence[Mapping[str, Any]], folder: Path, rounds: int, progress: Progress = SILENT
) -> list[dict[str, Any]]:
    """Train the small experts of a pool in this process, side by side and on one thread, and write each.

    Args:
        members: Arguments of ``finetune`` for each, with MergOPT's ``offsets: pool``.
        folder: Where they leave task vectors for each other; removed.
        rounds: Exchanges.

    Returns:
        What ``finetune`` returns for each.
    """
    names = tuple(str(place) for place in range(len(members)))
    given, turns = [], Turns(len(members))
    for place, (name, arguments) in enumerate(zip(names, members)):
        exchange = Exchange(folder, name, names, rounds, wait=partial(turns.next, place))
        given.append(partial(finetune, **arguments, exchange=exchange))
    try:
        with _quiet(), random_state_restored(), threads(1), progress.step("fine-tune a pool") as bar:
            shared = Within(lambda words: bar.advance(0, part=words))
            return turns.run([partial(work, progress=shared) for work in given])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_offsets(run: Run) -> None:
    """Refuse a method whose offsets are of experts that are not given."""
    offsets, where = run.method.get("offsets"), f"finetuning.offsets={run.method.get('offsets')}"
    if offsets == "experts" and not run.others:
        do = "name finished experts of the same base with finetuning.experts=[A,B]"
        raise UserError("there are no experts to take task vectors of", where=where, do=do)
    if offsets == "pool" and run.exchange is None:
        do = "train the pool by a study (mergebench sweep), or take finished experts: finetuning.offsets=experts"
        raise UserError("one expert has no pool to exchange task vectors with", where=where, do=do)
    if offsets and run.training.shard:
        what, do = "experts' task vectors are of whole weights", "leave training.shard out, or take offsets=noise"
        raise UserError(what, where=where, do=do)
    if offsets == "pool" and run.training.ranks > 1:
        do = "give each expert one process; a study's workers train several side by side"
        raise UserError("experts of a pool are not trained on several ranks", where=where, do=do)


def _make(run: Run, progress: Progress, base_name: str | None, device: str, cpu_threads: int | None) -> dict[str, Any]:
    begun, method, out = time.perf_counter(), run.method, run.out
    rows = _read(run)
    loaded = load(run.base, run.training, method["method"], device)
    check_kind(loaded, run.task)
    _check_room(run, loaded)
    out.mkdir(parents=True, exist_ok=True)
    small = sum(p.numel() for p in loaded.model.parameters()) < SMALL
    with threads(1 if small else cpu_threads), _full_disk(out):
        try:
            with PeakMemory(loaded.device) as peak:
                summary = _fit(run, loaded, rows, progress)
        except StretchOverError:
            return {}
        if run.exchange and summary["steps"] < summary.pop("total"):
            return {}
        if run.first:
            loaded.save(out)
            waited = run.exchange.waited if run.exchange else 0.0
            summary["seconds"] = round(summary["seconds"] + time.perf_counter() - begun - waited, 3)
            summary |= peak.describe()
            about = (run.task, method, run.optimizer, run.training, run.seed, summary)
            write_card(out, run.name, base_name or name_of(run.base), *about)
            if method["method"] == "tangent":
                write_flag(out, run.base)
            shutil.rmtree(run.checkpoints, ignore_errors=True)
    return summary


Data = list[list[Row] | Pictures]
"""What each task of a run is trained on."""


def _read(run: Run) -> Data:
    if run.task.images is None:
        return [read_rows(task, run.seed, run.datasets, run.online) for task in (run.task, *run.more)]
    if run.more:
        what = "pictures of several tasks, which have heads of their own, are not trained together"
        raise UserError(what, where=run.name, do="leave references.joint out")
    return [read_pictures(run.task, run.datasets, run.online)]


def _check_room(run: Run, loaded: Loaded) -> None:
    """Refuse to start where the result cannot be written."""
    parameters = list(loaded.model.parameters())
    needed = sum(p.numel() for p in parameters) * loaded.dtype.itemsize
    if run.resumable:  # two resumable checkpoints: the old one goes after the new one is written
        needed += 2 * sum(p.numel() * p.element_size() + 8 * p.numel() * p.requires_grad for p in parameters)
    place = next(folder for folder in (run.out, *run.out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        what = f"{needed / 1e9:.2f} GB are needed on the disk, {free / 1e9:.2f} GB are free"
        raise UserError(what, where=str(place), do="free some room, or write elsewhere")


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """A disk that fills up while something is written becomes a UserError."""
    try:
        yield
    except Exception as error:
        if disk_full(error):
            do = "free some room and give the command again"
            raise UserError("the disk is full", where=str(folder), do=do) from None
        raise


def _fit(run: Run, loaded: Loaded, rows: Data, progress: Progress) -> dict[str, Any]:
    """Train ``loaded.model`` in place."""
    data, collator, loss = _sequences(run, loaded, rows)
    once = dataclasses.replace(run.task, epochs=None if run.training.steps else 1.0)  # all epochs are in the data
    steps = total_steps(once if run.more else run.task, run.training, len(data))
    resumable = run.resumable
    metrics = (run.checkpoints if resumable else run.out) / "metrics.jsonl"
    with tempfile.TemporaryDirectory() as scratch, _tensorboard_in(run.out, bool(run.training.reporters)):
        args = _arguments(run, loaded, steps, run.checkpoints if resumable else Path(scratch))
        with args.main_process_first(local=False):
            newest = _newest_checkpoint(run.checkpoints, run.about()) if resumable else None
        model = loaded.model if run.training.shard else loaded.model.to(loaded.device)
        base = base_optimizer(run.optimizer, model, run.training.precision == "bf16_masters")
        method, more = _wrapped(run, base, model, steps)
        given = {"train_dataset": data, "data_collator": collator, "compute_loss_func": loss}
        trainer = ExpertTrainer(method, model=model, args=args, **given)
        with progress.step(f"fine-tune {run.name}", total=steps) as bar:
            callback = MetricsCallback(metrics if run.first else None, bar, trainer, run.exchange)
            for one in (callback, *more):
                trainer.add_callback(one)
            _train(run, loaded, trainer, newest)
    if resumable and run.first:
        shutil.copyfile(metrics, run.out / "metrics.jsonl")
    _finish(run, loaded, trainer)
    last = {key: callback.last.get(key) for key in ("loss", "tokens")}
    last |= callback.shortfall()
    count = len(data) if run.task.images else sum(map(len, rows))  # rows are packed, pictures limited
    found = {"steps": trainer.state.global_step, **last, "examples": count, "seconds": callback.before}
    return found | ({"total": steps} if run.exchange else {})


def _wrapped(run: Run, base: Any, model: Any, steps: int) -> tuple[Any, list[Any]]:
    """The method around the base optimizer, and the callbacks that it needs."""
    offsets, lora = run.method.get("offsets"), run.training.lora.rank > 0
    theta0 = open_checkpoint(str(run.base)) if offsets else None
    origin = StoredOrigin(theta0) if theta0 else None
    method = wrap(base, run.method, model, run.seed, steps, lora, origin)
    if theta0 is None:
        return method, []
    experts = [open_checkpoint(folder) for folder in run.others]
    given = [GivenVector(AdaptedCheckpoint(theta0, e) if e.adapter else e, theta0) for e in experts]
    return method, take_part(run.exchange, method, AdapterOrigin(model) if lora else origin, given, steps)


def _sequences(run: Run, loaded: Loaded, rows: Data) -> tuple[Any, Any, Any]:
    """Training sequences, what makes batches of them, and the loss where it is not the model's own; of several tasks
    each as often as its epochs say."""
    if isinstance(rows[0], Pictures):
        data = images.examples(loaded, rows[0], run.task, run.seed)
        return data, images.collator(loaded), images.loss_of(loaded, rows[0], run.task)
    examples: list[Any] = []
    for task, own in zip((run.task, *run.more), rows):
        found = encode(cast(list[Row], own), loaded.tokenizer, task, run.training, loaded.context)
        passes = (task.epochs or run.training.epochs) if run.more and not run.training.steps else 1.0
        examples += islice(cycle(found), round(passes * len(found)))
    if not run.training.packing:
        return list(examples), Collator(loaded.pad), None
    length = min(run.training.max_length or loaded.context, loaded.context)
    return list(pack(examples, length, run.seed)), PackCollator(loaded.pad), None


def _arguments(run: Run, loaded: Loaded, steps: int, folder: Path) -> TrainingArguments:
    """The Trainer's arguments, with everything that talks, saves or forks switched off unless asked for."""
    training, cpu = run.training, loaded.device == "cpu"
    schedule = "constant" if run.method.get("mode") == "released" else training.schedule
    return TrainingArguments(
        output_dir=str(folder), max_steps=steps, seed=run.seed, use_cpu=cpu, dataloader_pin_memory=not cpu,
        per_device_train_batch_size=training.batch_size, gradient_accumulation_steps=training.accumulation,
        learning_rate=run.optimizer.lr, lr_scheduler_type=schedule,
        warmup_steps=0 if schedule == "constant" else training.warmup_steps,
        max_grad_norm=training.clip, bf16=training.precision == "bf16",
        save_strategy="steps" if training.save_steps else "no", save_steps=training.save_steps or 500,
        save_total_limit=1, report_to=list(training.reporters) or "none", disable_tqdm=True,
        logging_strategy="steps", logging_steps=1, logging_nan_inf_filter=False, remove_unused_columns=False,
    )  # fmt: skip


@contextmanager
def _tensorboard_in(out: Path, active: bool) -> Iterator[None]:
    """TensorBoard's files go into the expert's folder, where anything is reported."""
    if not active:
        yield
        return
    name = "TENSORBOARD_LOGGING_DIR"
    before = os.environ.get(name)
    os.environ.setdefault(name, str(out / "tensorboard"))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _newest_checkpoint(folder: Path, about: dict[str, Any]) -> Path | None:
    """Make the folder ready; its newest complete checkpoint. ``about`` fixes the run: those of another are removed."""
    note, text = folder / "run.json", json.dumps(about, sort_keys=True, default=str)
    if folder.is_dir() and (not note.is_file() or note.read_text() != text):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(text)
    complete = [f for f in folder.glob("checkpoint-*") if (f / "trainer_state.json").is_file()]
    return max(complete, key=lambda f: int(f.name.rpartition("-")[2]), default=None)


def _train(run: Run, loaded: Loaded, trainer: ExpertTrainer, newest: Path | None) -> None:
    """Run the Trainer; a loss that is no number stops it, with the last good weights kept."""
    try:
        try:
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        finally:  # whatever happens, the weights are at θ again
            if hasattr(trainer.method, "restore"):
                trainer.method.restore()
    except NotFiniteError as error:
        what, where = f"{run.name}: {error}", f"last good weights: {_keep(run, loaded, trainer)}"
        do = "lower optimizer.lr, set training.clip, or look at the data of that step"
        raise UserError(what, where=where, do=do) from None
    except Exception as error:
        if not out_of_memory(error):
            _tell_model(run, trainer, error)
            raise
        loaded.model.zero_grad(set_to_none=True)
        size, more = run.training.batch_size, 2 * run.training.accumulation
        halved = f"training.batch_size={size // 2} training.accumulation={more} (the same step), " if size > 1 else ""
        what = f"{run.name}: out of memory with {size} examples at once ({str(error).partition(chr(10))[0]})"
        do = f"give {halved}training.gradient_checkpointing=true, a smaller training.max_length or lora.rank=16"
        raise UserError(what, where=f"on {loaded.device}", do=do) from None


def _tell_model(run: Run, trainer: ExpertTrainer, error: Exception) -> None:
    """UserError for a model that fails in its first step, by its configuration or its image processor's."""
    kinds = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)
    if isinstance(error, kinds) and trainer.state.global_step == 0 and not disk_full(error):
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        do = "look at its config.json, and at training.precision"
        raise UserError(f"the model cannot be trained: {reason}", where=str(run.base), do=do) from error


def _keep(run: Run, loaded: Loaded, trainer: ExpertTrainer) -> str:
    """Where the last good weights are: those before the step, if they are numbers, else the last checkpoint's."""
    whole = not run.training.shard  # other ranks may not know yet
    if whole and all(bool(p.isfinite().all()) for p in loaded.model.parameters()):
        folder = run.checkpoints / f"last-good-{trainer.state.global_step}"
        _finish(run, loaded, trainer)
        if run.first:
            folder.mkdir(parents=True, exist_ok=True)
            loaded.save(folder)
        return str(folder)
    saved = sorted(run.checkpoints.glob("checkpoint-*"))
    return str(saved[-1]) if saved else "none (training.save_steps was not set)"


def _finish(run: Run, loaded: Loaded, trainer: ExpertTrainer) -> None:
    """Take the float32 masters where they exist, the whole model of its shards, and its own forward pass again."""
    masters: dict[Any, Any] = {}
    for optimizer in (trainer.method, getattr(trainer.method, "base", None)):
        masters |= optimizer.masters if isinstance(optimizer, MasterWeights) else {}
    if run.training.shard:
        return loaded.gather(masters)
    for p, master in masters.items():
        p.data = master.detach()
    if run.method["method"] == "tangent":
        delinearise(loaded.model)
