"""Where weights come from: checkpoints that are found, and bases and experts that are made and kept in the store."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Base, Checkpoint, Optimizer, Pool, Task, Training
from pipelines.fetch import Looked
from pipelines.merge.checkpoint import OpenCheckpoint, open_checkpoint
from pipelines.merge.remote import open_headers
from pipelines.merge.sources import hub_id
from pipelines.progress import SILENT, Progress
from pipelines.store import Store, content_key

TRAINING_VERSION = 1
"""Part of an expert's key: raised when the same training recipe would give other weights."""

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "spiece.model")
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Source:
    """Weights that exist: where they are and what they are."""

    path: str
    fingerprint: str


@dataclass(frozen=True)
class Unmade:
    """Weights that a study still has to make; the key is unknown while what they start from is unmade too."""

    what: str
    key: str | None


@dataclass(frozen=True)
class Lost:
    """A checkpoint that cannot be had, and why."""

    what: str
    error: UserError


@dataclass(frozen=True)
class Access:
    """How checkpoints and data sets may be reached."""

    store: Store
    datasets: str | None = None
    online: bool = True
    allow_pickle: bool = False

    looked: Looked = field(default_factory=Looked, compare=False, repr=False)
    """Hub checkpoints that were asked for, and those that still lack their weights."""

    def open(self, path: str, revision: str | None = None) -> OpenCheckpoint:
        """Open a checkpoint to read it; a hub checkpoint's weights are fetched where they are not here yet."""
        if self.looked.lacking(path):
            self.looked.fetch(folders=[path])
        return open_checkpoint(path, revision=revision, online=self.online, allow_pickle=self.allow_pickle)

    def headers(self, path: str, revision: str | None = None) -> OpenCheckpoint:
        """Open a checkpoint's headers; no weight is fetched (a ``RemoteCheckpoint`` where the hub has them)."""
        if lacking := self.looked.lacking(path):
            return lacking
        options: dict[str, Any] = {"online": self.online, "allow_pickle": self.allow_pickle}
        if not hub_id(path):
            return open_checkpoint(path, revision=revision, **options)
        return self.looked.look((path, revision), lambda: open_headers(path, revision=revision, **options))

    def look_ahead(self, named: Iterable[tuple[str, str | None]]) -> None:
        """Ask the hub for several checkpoints (id, revision) side by side, each of which is then known at once."""
        self.looked.look_ahead([one for one in named if hub_id(one[0])], lambda one: self.headers(*one))

    def fetch(self, progress: Progress = SILENT, folders: Sequence[str] | None = None) -> None:
        """Download the weights of snapshot folders, by default of all that were asked for and lack them."""
        self.looked.fetch(progress, folders)

    def source(self, checkpoint: OpenCheckpoint) -> Source:
        """What a study refers to: the folder and the fingerprint of its weights."""
        return Source(str(checkpoint.folder), checkpoint.fingerprint(self.store.cache))


@lru_cache(maxsize=1024)
def tokenizer_fingerprint(folder: str, files: tuple[str, ...] = TOKENIZER_FILES) -> str:
    """SHA-256 over the tokenizer's files, the same for a copy that lies beside other weights; empty for no files."""
    digest = hashlib.sha256()
    if not any((Path(folder) / name).is_file() for name in files):
        return ""
    for name in files:
        file = Path(folder) / name
        if file.is_file():
            digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:32]


def find_base(base: Base, access: Access) -> Source | Unmade:
    """The base where it exists, or what is to be made."""
    if base.path:
        return access.source(access.headers(base.path, base.revision))
    key = _builtin_key(base)
    if access.store.has("bases", key):
        return access.source(access.open(str(access.store.folder("bases", key))))
    return Unmade(f"base {base.name}", key)


def make_base(base: Base, access: Access, progress: Progress = SILENT) -> Source:
    """The base with its weights, pre-trained now if it is the built-in one and not in the store yet."""
    found = find_base(base, access)
    if isinstance(found, Source):
        access.fetch(progress, [found.path])
        return found
    from pipelines.tiny.base import make_base as pretrain

    assert found.key is not None
    with access.store.claim("bases", found.key):
        if not access.store.has("bases", found.key):
            spec: dict[str, Any] = {"name": base.name, "spec": dataclasses.asdict(base)}
            with access.store.commit("bases", found.key, spec) as draft:
                pretrain(base, draft, progress)
                spec["fingerprint"] = access.open(str(draft)).fingerprint()
    return access.source(access.open(str(access.store.folder("bases", found.key))))


def _builtin_key(base: Base) -> str:
    from pipelines.tiny import base as tiny
    from pipelines.tiny import skills

    spec = {k: v for k, v in dataclasses.asdict(base).items() if k in ("seed", "hidden", "layers", "steps")}
    return content_key({"base": "built-in", "skills": skills.VERSION, "version": tiny.VERSION, **spec})


@dataclass(frozen=True)
class ExpertRecipe:
    """Everything that fixes a fine-tuned expert."""

    name: str
    base: Base
    task: Task
    finetuning: dict[str, Any]
    optimizer: Optimizer
    training: Training
    seed: int

    def key(self, base: Source, access: Access) -> str:
        """Content key: base weights, data, fine-tuning method and parameters, optimizer, training, seed."""
        from pipelines.finetune import check_finetuning, task_fingerprint

        training = {k: v for k, v in dataclasses.asdict(self.training).items() if k not in ("reporters", "save_steps")}
        task = {
            k: v for k, v in dataclasses.asdict(self.task).items() if k not in ("name", "path", "skill", "finetuning")
        }
        return content_key(
            {
                "version": TRAINING_VERSION,
                "base": base.fingerprint,
                "data": task_fingerprint(self.task, datasets=access.datasets, online=access.online),
                "task": task,
                "finetuning": check_finetuning(self.finetuning),
                "optimizer": dataclasses.asdict(self.optimizer),
                "training": training,
                "seed": self.seed,
            }
        )


def pool_recipes(pool: Pool) -> dict[str, ExpertRecipe]:
    """The experts of a pool that are made by fine-tuning."""
    steps = pool.training.steps
    training = dataclasses.replace(
        pool.training,
        epochs=pool.training.epochs * pool.budget,
        steps=None if steps is None else max(1, round(steps * pool.budget)),
    )
    recipes = {}
    for name, task in pool.tasks.items():
        epochs = None if task.epochs is None else task.epochs * pool.budget
        named = dataclasses.replace(task, name=task.name or name, epochs=epochs)
        method = task.finetuning or pool.finetuning
        recipes[name] = ExpertRecipe(name, pool.base, named, method, pool.optimizer, training, pool.seed)
    return recipes


def find_expert(recipe: ExpertRecipe, base: Source | Unmade, access: Access) -> Source | Unmade:
    """The expert where it exists, or what is to be made."""
    if isinstance(base, Unmade):
        return Unmade(f"expert {recipe.name}", None)
    key = recipe.key(base, access)
    if access.store.has("experts", key):
        return access.source(access.open(str(access.store.folder("experts", key))))
    return Unmade(f"expert {recipe.name}", key)


def make_expert(recipe: ExpertRecipe, base: Source, access: Access, progress: Progress = SILENT) -> Source:
    """The expert, fine-tuned now if the store does not hold it yet."""
    found = find_expert(recipe, base, access)
    if isinstance(found, Source):
        return found
    from pipelines.finetune import finetune

    assert found.key is not None
    with access.store.claim("experts", found.key):
        if not access.store.has("experts", found.key):
            about: dict[str, Any] = {
                "name": recipe.name,
                "task": recipe.task.name,
                "finetuning": recipe.finetuning,
                "optimizer": dataclasses.asdict(recipe.optimizer),
                "training": dataclasses.asdict(recipe.training),
                "epochs": recipe.task.epochs,
                "seed": recipe.seed,
                "base": dataclasses.asdict(base),
            }
            with access.store.commit("experts", found.key, about) as draft:
                about["summary"] = finetune(
                    Path(base.path), recipe.task, recipe.finetuning, recipe.optimizer, recipe.training, recipe.seed,
                    draft, progress, name=recipe.name, datasets=access.datasets, online=access.online,
                    checkpoints=access.store.root / "work" / found.key, base_name=recipe.base.name,
                )  # fmt: skip
                about["fingerprint"] = access.open(str(draft)).fingerprint()
    return access.source(access.open(str(access.store.folder("experts", found.key))))


def find_checkpoint(checkpoint: Checkpoint, access: Access) -> Source:
    """A found expert, its weights perhaps still on the hub; a store key stands for the entry it names."""
    return access.source(access.headers(resolve(checkpoint.path, access.store), checkpoint.revision))


def resolve(path: str, store: Store) -> str:
    """A folder or hub id as it is; ``kind:key`` as the folder of that store entry."""
    kind, colon, _ = path.partition(":")
    if colon and not Path(path).exists() and kind in ("base", "bases", "expert", "experts", "merge", "merges"):
        return str(store.find(path).folder)
    return path
