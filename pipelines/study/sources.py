"""Where weights come from: checkpoints that are found, and bases and experts that are made and kept in the store."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Base, Checkpoint, Config, Images, Optimizer, Pool, Task, Training
from pipelines.checkpoints.checkpoint import OpenCheckpoint, open_checkpoint
from pipelines.checkpoints.fingerprint import READER_FILES
from pipelines.checkpoints.folder import hub_id
from pipelines.checkpoints.hub import HubLookup, open_headers
from pipelines.progress import SILENT, Progress
from pipelines.store.store import KINDS, Store, content_key

BUILT_IN = ("tiny", "tiny_clip")
"""Names of the bases that are made on the spot: a language model, and a classifier of pictures."""
BUILT_IN_FIELDS = ("seed", "hidden", "layers", "steps")

TRAINING_VERSION = 1
"""Part of an expert's key: raised when the same training recipe would give other weights."""

KEY = re.compile("[0-9a-f]{8,32}")
"""A store key, or the ten digits of it that ``mergebench ls`` prints."""


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

    hub: HubLookup = field(default_factory=HubLookup, compare=False, repr=False)
    """Hub checkpoints that were looked up, and those whose weights are not fetched yet."""
    _data: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Fingerprints of data by task: hashed once per command."""

    def open(self, path: str, revision: str | None = None) -> OpenCheckpoint:
        """Open a checkpoint to read it; a hub checkpoint's weights are fetched where they are not here yet."""
        if self.hub.unfetched(path):
            self.hub.fetch(folders=[path])
        return open_checkpoint(path, revision=revision, online=self.online, allow_pickle=self.allow_pickle)

    def headers(self, path: str, revision: str | None = None) -> OpenCheckpoint:
        """Open a checkpoint's headers; no weight is fetched (a ``RemoteCheckpoint`` where the hub has them)."""
        if remote := self.hub.unfetched(path):
            return remote
        options: dict[str, Any] = {"online": self.online, "allow_pickle": self.allow_pickle}
        if not hub_id(path):
            return open_checkpoint(path, revision=revision, **options)
        return self.hub.get((path, revision), lambda: open_headers(path, revision=revision, **options))

    def look_ahead(self, named: Iterable[tuple[str, str | None]]) -> None:
        """Ask the hub for several checkpoints (id, revision) side by side, each of which is then known at once."""
        self.hub.prefetch(
            [one for one in named if hub_id(one[0]) and not KEY.fullmatch(one[0])], lambda one: self.headers(*one)
        )

    def fetch(self, progress: Progress = SILENT, folders: Sequence[str] | None = None) -> None:
        """Download the weights of snapshot folders, by default of all that were asked for and lack them."""
        self.hub.fetch(progress, folders)

    def source(self, checkpoint: OpenCheckpoint) -> Source:
        """What a study refers to: the folder and the fingerprint of its weights."""
        return Source(str(checkpoint.folder), checkpoint.fingerprint(self.store.cache))

    def data_fingerprint(self, task: Task) -> str:
        """Hash of the rows that a task trains on. Raises UserError where the data cannot be had."""
        from pipelines.finetune import task_fingerprint

        known = repr(task)
        if known not in self._data:
            self._data[known] = task_fingerprint(task, datasets=self.datasets, online=self.online)
        return self._data[known]

    def stored(self, kind: str, key: str) -> Source | None:
        """The base or expert that the store holds under a key; None for none, or a damaged one, which is set aside."""
        if not self.store.has(kind, key, whole=True):
            return None
        entry = self.store.entry(kind, key)
        about = entry.describe()
        try:
            source, why = self.source(self.open(str(entry.folder))), "its files are not those that were committed"
        except UserError as error:
            source, why = None, error.what
        if source is None or about.get("fingerprint", source.fingerprint) != source.fingerprint:
            self.store.set_aside(entry.folder, f"{kind}-{key}", f"{kind}:{key[:10]} is damaged: {why}")
            return None
        return source

    def must_hold(self, kind: str, key: str) -> Source:
        """The base or expert that was just made."""
        if (source := self.stored(kind, key)) is None:
            raise UserError(f"{kind}:{key[:10]} was damaged as it was written", do="check the disk of the store")
        return source


def access_of(config: Config) -> Access:
    """How this configuration reaches checkpoints, data sets and the store."""
    return Access(Store(config.store), config.datasets, config.online, config.allow_pickle)


@lru_cache(maxsize=1024)
def tokenizer_fingerprint(folder: str, files: tuple[str, ...] = READER_FILES) -> str:
    """SHA-256 over the tokenizer's files, the same for a copy that lies beside other weights; empty for no files."""
    digest, there = hashlib.sha256(), [name for name in files if (Path(folder) / name).is_file()]
    for name in there:
        digest.update(name.encode() + b"\0" + (Path(folder) / name).read_bytes())
    return digest.hexdigest()[:32] if there else ""


def find_base(base: Base, access: Access) -> Source | Unmade:
    """The base where it exists, or what is to be made; UserError where none is named, or two are."""
    if not base.path and base.name not in BUILT_IN:
        do = f"name a folder or hub id with base.path=…, or a built-in model with base={' or base='.join(BUILT_IN)}"
        raise UserError("no base is named" if not base.name else f"base {base.name} has no path", where="base", do=do)
    if base.path and base.name in BUILT_IN:
        do = f"leave base={base.name} or base.path={base.path} out"
        raise UserError(f"base={base.name} is the built-in model and has no path", where="base.path", do=do)
    if base.path:
        for name in BUILT_IN_FIELDS:
            if getattr(base, name) != getattr(Base, name):
                what = f"base.{name} is the built-in model's, the base is {base.path}"
                raise UserError(what, where=f"base.{name}", do="leave it out")
        return find_checkpoint(Checkpoint(base.path, base.revision), access)
    key = _builtin_key(base)
    return access.stored("bases", key) or Unmade(f"base {base.name}", key)


def make_base(base: Base, access: Access, progress: Progress = SILENT) -> Source:
    """The base with its weights, pre-trained now if it is the built-in one and not in the store yet."""
    found = find_base(base, access)
    if isinstance(found, Source):
        access.fetch(progress, [found.path])
        return found
    from pipelines.tiny import base as tiny
    from pipelines.tiny import clip

    pretrain = tiny.make_base if base.name == "tiny" else clip.make_base
    assert found.key is not None
    with access.store.claim("bases", found.key):
        if not access.store.has("bases", found.key):
            spec: dict[str, Any] = {"name": base.name, "spec": dataclasses.asdict(base)}
            with access.store.commit("bases", found.key, spec) as draft:
                pretrain(base, draft, progress)
                spec["fingerprint"] = access.open(str(draft)).fingerprint()
    return access.must_hold("bases", found.key)


def _builtin_key(base: Base) -> str:
    from pipelines.tiny import base as tiny
    from pipelines.tiny import clip, pictures, skills

    spec = {name: getattr(base, name) for name in BUILT_IN_FIELDS}
    if base.name != "tiny":
        return content_key({"base": base.name, "pictures": pictures.VERSION, "version": clip.VERSION, **spec})
    return content_key({"base": "built-in", "skills": skills.VERSION, "version": tiny.VERSION, **spec})


def fields_without(settings: Any, *aside: str) -> dict[str, Any]:
    """A dataclass's fields as a key takes them in: without those that change no number, or stand for others."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in aside}


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
    others: tuple[ExpertRecipe, ...] = ()
    """The experts whose task vectors it is trained with: its pool's, or those of a first round, trained plainly."""
    more: tuple[Task, ...] = ()
    """Further tasks that it is trained on, mixed with its own."""

    @property
    def offsets(self) -> str:
        """MergOPT's offsets: noise, pool or experts; noise for other methods too."""
        return str(self.finetuning.get("offsets", "noise"))

    @property
    def rounds(self) -> int:
        """Exchanges of a pool."""
        return int(self.finetuning.get("rounds", 5))

    def key(self, base: Source, access: Access) -> str:
        """Content key: base weights, data, fine-tuning method and parameters, optimizer, training, seed, others'."""
        from pipelines.finetune import check_finetuning, settings_that_matter

        method = check_finetuning(self.finetuning)
        given = method.pop("experts", [])
        others = self.other_keys(base, access) or sorted(
            find_checkpoint(Checkpoint(e), access).fingerprint for e in given
        )
        return content_key(
            {
                "version": TRAINING_VERSION,
                "base": base.fingerprint,
                **self._data(self.task, access),
                "finetuning": method,
                "optimizer": dataclasses.asdict(self.optimizer),
                "training": settings_that_matter(self.training),
                "seed": self.seed,
                **({"others": others} if others else {}),
                **({"more": [self._data(task, access) for task in self.more]} if self.more else {}),
            }
        )

    def _data(self, task: Task, access: Access) -> dict[str, Any]:
        aside = ("name", "path", "skill", "images", "finetuning")
        return {"data": access.data_fingerprint(task), "task": fields_without(task, *aside)}

    def other_keys(self, base: Source, access: Access) -> list[str]:
        """Keys of the others as they are without their own others, sorted: the order in which subsets are drawn."""
        if not self.others:
            return []
        keys = {replace(one, others=()).key(base, access) for one in self.others}
        return sorted(keys - {replace(self, others=()).key(base, access)})


def named(task: Task) -> Task:
    """A task under its own name, or under that of its skill or file."""
    images = task.images or Images()
    return replace(task, name=task.name or task.skill or images.skill or Path(images.path or task.path or "").stem)


def pool_recipes(pool: Pool) -> dict[str, ExpertRecipe]:
    """The experts of a pool that are made by fine-tuning."""
    steps = pool.training.steps if pool.training.steps is None else max(1, round(pool.training.steps * pool.budget))
    training = replace(pool.training, epochs=pool.training.epochs * pool.budget, steps=steps)
    recipes = {}
    for name, task in {**pool.tasks, **pool.peers}.items():
        epochs = None if task.epochs is None else task.epochs * pool.budget
        named = replace(task, name=task.name or name, epochs=epochs)
        method = task.finetuning or pool.finetuning
        recipes[name] = ExpertRecipe(name, pool.base, named, method, pool.optimizer, training, pool.seed)
    recipes = {name: replace(recipe, others=_others(recipe, recipes)) for name, recipe in recipes.items()}
    return {name: recipe for name, recipe in recipes.items() if name in pool.tasks}


def joint_recipe(pool: Pool) -> ExpertRecipe | None:
    """One model trained plainly on all tasks of a pool, as long as plain experts of them in all; None without tasks.

    Whatever the pool's ``budget``: pools that are trained differently on the same tasks are read against one model.
    """
    recipes = [*pool_recipes(replace(pool, finetuning={"method": "plain"}, budget=1.0)).values()]
    if not recipes:
        return None
    first, training = recipes[0], recipes[0].training
    training = training if training.steps is None else replace(training, steps=training.steps * len(recipes))
    more = tuple(recipe.task for recipe in recipes[1:])
    return replace(first, name="joint", finetuning={"method": "plain"}, others=(), more=more, training=training)


def _others(recipe: ExpertRecipe, recipes: Mapping[str, ExpertRecipe]) -> tuple[ExpertRecipe, ...]:
    """Whose task vectors an expert of a pool is trained with; UserError for a pool of one."""
    rest = [other for other in recipes.values() if other.name != recipe.name]
    if recipe.offsets == "pool":
        rest = [other for other in rest if other.finetuning == recipe.finetuning]
    elif recipe.offsets == "experts" and not recipe.finetuning.get("experts"):
        rest = [replace(other, finetuning={"method": "plain"}) for other in rest]
    else:
        return ()
    if not rest:
        what = (
            f"{recipe.name} is alone in its pool: there is no other expert whose task vector it could be trained with"
        )
        raise UserError(what, where="finetuning.offsets", do="give the pool two tasks or more, trained alike")
    return tuple(rest)


def runs(pool: Pool) -> list[Pool]:
    """The pool once for each of its training seeds."""
    return [replace(pool, seed=seed, seeds=[]) for seed in dict.fromkeys(pool.seeds)] or [pool]


def find_expert(recipe: ExpertRecipe, base: Source | Unmade, access: Access) -> Source | Unmade:
    """The expert where it exists, or what is to be made."""
    if isinstance(base, Unmade):
        return Unmade(f"expert {recipe.name}", None)
    key = recipe.key(base, access)
    return access.stored("experts", key) or Unmade(f"expert {recipe.name}", key)


def find_checkpoint(checkpoint: Checkpoint, access: Access) -> Source:
    """A found checkpoint, its weights perhaps still on the hub; a store key stands for the entry it names."""
    path = resolve(checkpoint.path, access.store)
    if checkpoint.revision and not hub_id(path):
        raise UserError(f"{path} is a folder and has no revisions", where=checkpoint.revision, do="leave revision out")
    return access.source(access.headers(path, checkpoint.revision))


def resolve(path: str, store: Store) -> str:
    """A folder or hub id as it is; a key as ``ls`` prints it, or ``kind:key``, as the folder of that store entry."""
    kind, colon, _ = path.rpartition(":")
    if Path(path).exists() or not (any(k.startswith(kind) for k in KINDS) if colon else KEY.fullmatch(path)):
        return path
    entry = store.find(path)
    if entry.kind not in ("bases", "experts", "merges"):
        do = f"write its model with `mergebench export {path} out=DIR`" if entry.kind == "results" else "name an expert"
        raise UserError(f"{path} is in the store's {entry.kind}, which are no checkpoints", where=path, do=do)
    if not store.has(entry.kind, entry.key, whole=True):
        raise UserError(f"{path} is damaged", where=str(entry.folder), do="make it again by the command that made it")
    return str(entry.folder)
