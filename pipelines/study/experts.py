"""Making experts: one alone, a small pool in one process, or a large one in stretches side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import UserError, disk_full, redacted
from conf.schema import Checkpoint, Executor
from pipelines.progress import SILENT, Progress
from pipelines.ranks import agreed, rank, ranks
from pipelines.store.store import content_key
from pipelines.study.sources import Access, ExpertRecipe, Source, Unmade, find_checkpoint, find_expert

SMALL = 2_000_000
"""Parameters below which a pool is trained in one process: no more than its models is held."""
PACE = 1e9
"""Parameters × examples that a core trains on in a second, about (sequences of ten tokens)."""
STARTING = 10.0
"""Seconds that a further process takes until it trains."""


@dataclass(frozen=True)
class Job:
    """Experts that one worker makes."""

    base: Source
    recipes: tuple[ExpertRecipe, ...]
    """One, or the members of a small pool."""
    until: int | None = None
    """Of an expert of a large pool: the exchange that this stretch ends with; None: the last stretch, or all."""

    @property
    def title(self) -> str:
        """What is made, in messages."""
        return f"expert{'s' * (len(self.recipes) > 1)} {self.names}"

    @property
    def names(self) -> str:
        """Names of the experts."""
        return ", ".join(recipe.name for recipe in self.recipes)

    @property
    def reads(self) -> frozenset[str]:
        """Folders of experts that it reads: none that a worker would keep."""
        return frozenset()

    @property
    def finished(self) -> int:
        """Experts that are whole when it is done."""
        return 0 if self.until is not None else len(self.recipes)

    def seconds(self, elements: int) -> float:
        """About how long a core takes; infinite where that is not known."""
        steps = [None if r.task.epochs else r.training.steps for r in self.recipes]
        if None in steps:
            return math.inf
        batches = [r.training.batch_size * r.training.accumulation for r in self.recipes]
        return sum(elements * (n or 0) * batch for n, batch in zip(steps, batches)) / PACE

    def run(self, access: Access, executor: Executor, progress: Progress = SILENT) -> None:
        """Make what the store does not hold."""
        if len(self.recipes) > 1:
            _make_pool(self.recipes, self.base, access, progress, executor)
        else:
            make_expert(self.recipes[0], self.base, access, progress, executor, self.until)

    def attempt(self, access: Access, executor: Executor, progress: Progress = SILENT) -> str:
        """Make them; why it failed, or nothing."""
        try:
            self.run(access, executor, progress)
        except UserError as error:
            return str(error)
        except Exception as error:
            if disk_full(error):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1].name
            return redacted(f"{self.title}: {type(error).__name__}: {error} [{where}]")
        return ""


def phases(recipes: Sequence[ExpertRecipe], base: Source, access: Access, in_process: bool) -> list[list[Job]]:
    """The jobs that make experts of one base: those of a phase may run side by side, each phase needs the ones before.

    ``in_process``: small pools are trained in one process each.
    """
    small = in_process and sum(info.count for info in access.headers(base.path).header.values()) < SMALL
    first, second, stretches = dict[str, Job](), list[Job](), list[list[Job]]()
    for recipe in recipes:
        if recipe.offsets == "pool":
            members = members_of(recipe, base, access)
            if small and not any(r.training.reporters or r.training.save_steps for r in members.values()):
                first.setdefault(min(members), Job(base, tuple(members.values())))
                continue
            for place, until in enumerate([*range(1, recipe.rounds + 1), None]):
                if len(stretches) <= place:
                    stretches.append([])
                new = [Job(base, (r,), until) for r in members.values()]
                stretches[place] += [job for job in new if job not in stretches[place]]
        elif recipe.others:
            unmade = [o for o in recipe.others if isinstance(find_expert(o, base, access), Unmade)]
            first |= {o.key(base, access): Job(base, (o,)) for o in unmade}
            second.append(Job(base, (recipe,)))
        else:
            first.setdefault(recipe.key(base, access), Job(base, (recipe,)))
    long_first = sorted(first.values(), key=lambda job: -len(job.recipes))
    return [phase for phase in (long_first, second, *stretches) if phase]


def members_of(recipe: ExpertRecipe, base: Source, access: Access) -> dict[str, ExpertRecipe]:
    """The members of an expert's pool by their keys without others, in the order in which subsets are drawn."""
    alone = [dataclasses.replace(one, others=()) for one in (recipe, *recipe.others)]
    found = dict(sorted(((one.key(base, access), one) for one in alone), key=lambda pair: pair[0]))
    others = {own: tuple(one for key, one in found.items() if key != own) for own in found}
    return {key: dataclasses.replace(one, others=others[key]) for key, one in found.items()}


def make_expert(
    recipe: ExpertRecipe, base: Source, access: Access, progress: Progress, executor: Executor,
    until: int | None = None,
) -> None:  # fmt: skip
    """Fine-tune an expert, on the executor's device, if the store does not hold it yet.

    One of a pool goes on from the exchange before ``until``, to that one; without ``until`` to the end.
    """
    from pipelines.finetune import finetune

    key = recipe.key(base, access)
    if recipe.training.ranks != ranks() and not access.store.has("experts", key):
        do = f"torchrun --nproc-per-node {recipe.training.ranks} mergebench finetune … makes it in this store"
        raise UserError(f"{recipe.name} is trained by {recipe.training.ranks} ranks", where="training.ranks", do=do)
    if rank() > 0:
        return _help(recipe, base, access, executor)
    with access.store.claim("experts", key):
        exchange = _exchange(recipe, base, access, until) if recipe.offsets == "pool" else None
        if exchange and until is not None:
            if not exchange.reached(until):
                with access.store.draft("unused") as unused:
                    given = arguments(recipe, base, access, executor, unused)
                    finetune(**given, exchange=exchange, progress=progress)
        elif not agreed(access.store.has("experts", key), executor.device):
            with _drafts([recipe], base, access) as ((draft, about),):
                given = arguments(recipe, base, access, executor, draft)
                about["summary"] = finetune(**given, exchange=exchange, progress=progress)
                about["fingerprint"] = access.open(str(draft)).fingerprint()
            agreed("committed", executor.device)


def _exchange(recipe: ExpertRecipe, base: Source, access: Access, until: int | None) -> Any:
    """An expert's part in its pool, up to an exchange."""
    from pipelines.finetune.exchange import Exchange

    members, own = members_of(recipe, base, access), dataclasses.replace(recipe, others=()).key(base, access)
    return Exchange(exchange_folder(members, base, access), own, tuple(members), recipe.rounds, until)


def _help(recipe: ExpertRecipe, base: Source, access: Access, executor: Executor) -> None:
    """The part of a rank that is not the first: it trains with the others, and what it has is thrown away."""
    from pipelines.finetune import finetune

    if not agreed(None, executor.device):
        with access.store.draft("aside") as aside:
            finetune(**arguments(recipe, base, access, executor, aside))
        agreed(None, executor.device)


def _make_pool(
    recipes: Sequence[ExpertRecipe], base: Source, access: Access, progress: Progress, executor: Executor
) -> None:
    from pipelines.finetune.train import finetune_pool

    keys = [recipe.key(base, access) for recipe in recipes]
    with (
        access.store.claim("experts", content_key(keys)),
        access.store.draft("exchange") as at,
    ):
        if all(access.store.has("experts", key) for key in keys):
            return
        with _drafts(recipes, base, access) as drafts:
            given = [arguments(r, base, access, executor, draft) for r, (draft, _) in zip(recipes, drafts)]
            summaries = finetune_pool(given, at, recipes[0].rounds, progress)
            for (draft, about), summary in zip(drafts, summaries):
                about |= {"summary": summary, "fingerprint": access.open(str(draft)).fingerprint()}


@contextlib.contextmanager
def _drafts(
    recipes: Sequence[ExpertRecipe], base: Source, access: Access
) -> Iterator[list[tuple[Path, dict[str, Any]]]]:
    """A folder to fill for each expert, with what its entry will say of it."""
    with contextlib.ExitStack() as stack:
        found = []
        for recipe in recipes:
            about: dict[str, Any] = {
                "name": recipe.name,
                "task": " + ".join(task.name for task in (recipe.task, *recipe.more)),
                "finetuning": recipe.finetuning,
                "optimizer": dataclasses.asdict(recipe.optimizer),
                "training": dataclasses.asdict(recipe.training),
                "epochs": recipe.task.epochs,
                "seed": recipe.seed,
                "base": dataclasses.asdict(base),
                **({"others": [other.name for other in recipe.others]} if recipe.others else {}),
            }
            found.append((stack.enter_context(access.store.commit("experts", recipe.key(base, access), about)), about))
        yield found


def arguments(recipe: ExpertRecipe, base: Source, access: Access, executor: Executor, out: Path) -> dict[str, Any]:
    """What ``finetune`` is called with."""
    key, others = recipe.key(base, access), list[str]()
    if recipe.offsets == "experts":
        made = [find_expert(other, base, access) for other in recipe.others]
        given = [find_checkpoint(Checkpoint(path), access) for path in recipe.finetuning.get("experts", [])]
        access.fetch(folders=[source.path for source in given])
        order = {source.fingerprint: source.path for source in given}
        keys = {other.key(base, access): one for other, one in zip(recipe.others, made)}
        order |= {k: one.path for k, one in keys.items() if isinstance(one, Source)}
        others = [order[name] for name in sorted(order)]
    return {
        "base": Path(base.path), "task": recipe.task, "finetuning": recipe.finetuning, "optimizer": recipe.optimizer,
        "training": recipe.training, "seed": recipe.seed, "out": out, "name": recipe.name, "others": others,
        "more": recipe.more, "datasets": access.datasets, "online": access.online, "base_name": recipe.base.name,
        "checkpoints": access.store.root / "work" / key, "device": executor.device, "cpu_threads": executor.threads,
    }  # fmt: skip


def exchange_folder(members: dict[str, ExpertRecipe], base: Source, access: Access) -> Path:
    """Where the experts of a large pool leave task vectors for each other, under the first one's key."""
    return access.store.root / "work" / f"{min(one.key(base, access) for one in members.values())}.pool"


def clear_exchanges(recipes: Sequence[ExpertRecipe], base: Source, access: Access) -> None:
    """Remove the task vectors that the experts of finished pools left."""
    for folder in {exchange_folder(members_of(r, base, access), base, access) for r in recipes if r.offsets == "pool"}:
        shutil.rmtree(folder, ignore_errors=True)
