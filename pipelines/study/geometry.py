"""``geometry`` and ``landscape``: from a configuration's experts, or a study's pools, to what is measured of them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd

from conf.errors import UserError
from conf.schema import Base, Checkpoint, Config, Pool, Task
from pipelines.checkpoints.untrusted import parse_json
from pipelines.geometry import Landscape, Panel, check_geometry, write_geometry, write_landscape
from pipelines.geometry.diagnose import Finding
from pipelines.geometry.diagnose import diagnose as find_for_and_against
from pipelines.geometry.landscape import drawing
from pipelines.geometry.write import Drawings, GeometryReport, drawings
from pipelines.progress import SILENT, Progress
from pipelines.report import Section
from pipelines.store.store import Store, content_key
from pipelines.study.information import Expert
from pipelines.study.sources import (
    Access,
    Source,
    access_of,
    find_base,
    find_checkpoint,
    find_expert,
    named,
    pool_recipes,
    runs,
)
from pipelines.study.subsets import check_pairs, narrowed
from pipelines.study.worker import find_device

STAMP = "measured.json"
"""Beside what a report shows of checkpoints: what it was measured of, its notes and the titles of its figures."""


def geometry(config: Config, progress: Progress = SILENT) -> list[GeometryReport]:
    """Geometry of ``experts`` over ``base``, or of every pool of a study, in ``out`` or the study's folder.

    Raises UserError where an expert is not made yet, or is no expert of the base.
    """
    check_geometry(config.geometry)
    access = access_of(config)
    return [
        pool_geometry(name, pool, config, access, progress, folder)
        for name, pool, folder in _pools(config, "geometry")
    ]  # fmt: skip


def diagnose(config: Config, progress: Progress = SILENT) -> list[Diagnosed]:
    """What speaks for and against merging ``experts`` over ``base``, or the experts of every pool of a study."""
    access, told = access_of(config), []
    for name, pool, _ in _pools(config, "diagnosis"):
        base, experts = _found(name, pool, access)
        access.fetch(progress, _paths(base, experts))
        opened = {expert.name: access.open(expert.source.path) for expert in experts}
        told.append(Diagnosed(name, *find_for_and_against(access.open(base.path), opened, progress, **_match(config))))
    return told


class Diagnosed(NamedTuple):
    """One pool's findings, and the numbers behind them."""

    pool: str
    findings: list[Finding]
    numbers: dict[str, Any]


def pool_geometry(
    name: str, pool: Pool, config: Config, access: Access, progress: Progress, folder: Path
) -> GeometryReport:
    """Geometry of one pool, whose checkpoints exist, in a folder."""
    base, experts = _found(name, pool, access)
    access.fetch(progress, _paths(base, experts))
    return _measure(base, experts, config, access, progress, folder)


def _measure(
    base: Source, experts: Sequence[Expert], config: Config, access: Access, progress: Progress, folder: Path
) -> GeometryReport:
    opened = {expert.name: access.open(expert.source.path) for expert in experts}
    scores = norm_accuracy(access.store, base, experts) if "norms" in config.geometry.parts else None
    return write_geometry(access.open(base.path), opened, folder, config.geometry, scores, progress, **_match(config))


def study_geometry(config: Config, access: Access, progress: Progress, out: Path) -> list[Section]:
    """What ``report.geometry`` and ``report.landscape`` name, as sections of the study's report, below ``out``.

    ``geometry/POOL`` is of each pool, ``landscape`` of all. What was measured so before is not measured again. Of
    experts that are not made, or whose weights are still on the hub, there is a note instead.
    """
    config = narrowed(config)
    made = []
    if config.report.geometry:
        own = dataclasses.replace(config, geometry=dataclasses.replace(config.geometry, parts=config.report.geometry))
        made += [
            _section(f"Geometry of {name}", Path("geometry", name), out, _Geometry(name, pool, own, access, progress))
            for name, pool in config.pools.items()
        ]
    if config.report.landscape:
        own = dataclasses.replace(
            config, landscape=dataclasses.replace(config.landscape, pairs=config.report.landscape)
        )
        made.append(_section("Losses between experts", Path("landscape"), out, _Landscape(own, access, progress)))
    return made


class _Part(Protocol):
    """What is measured beside a report."""

    tables: tuple[str, ...]
    """Files that the page shows."""

    def key(self) -> str:
        """Changes with everything that it depends on; UserError where it cannot be measured."""

    def make(self, folder: Path) -> tuple[list[str], Drawings, list[Path]]:
        """Measure into a folder: notes, figures and files."""


@dataclass
class _Geometry:
    name: str
    pool: Pool
    config: Config
    access: Access
    progress: Progress
    tables: tuple[str, ...] = ("norms.csv", "laplace.csv")

    def key(self) -> str:
        self.base, self.experts = _here(self.name, self.pool, self.access)
        settings, store = self.config.geometry, self.access.store
        scores = norm_accuracy(store, self.base, self.experts).to_csv() if "norms" in settings.parts else None
        return content_key([*_prints(self.base, self.experts), vars(settings), _match(self.config), scores])

    def make(self, folder: Path) -> tuple[list[str], Drawings, list[Path]]:
        made = _measure(self.base, self.experts, self.config, self.access, self.progress, folder)
        return made.notes, drawings(made.frames), made.paths


@dataclass
class _Landscape:
    config: Config
    access: Access
    progress: Progress
    tables: tuple[str, ...] = ("summary.csv",)

    def key(self) -> str:
        config = self.config
        prints = [_prints(*_here(name, pool, self.access)) for name, pool in config.pools.items()]
        tasks = [[dataclasses.asdict(panel.tasks[i]) for i in (0, 1)] for panel in _panels(config, self.access)]
        settings = {k: v for k, v in vars(config.landscape).items() if k not in ("tasks", "batch_size")}
        return content_key([prints, tasks, settings, config.seed, _match(config)])

    def make(self, folder: Path) -> tuple[list[str], Drawings, list[Path]]:
        made = _losses(self.config, self.access, self.progress, folder)
        return [], {"landscape": drawing(made.frame)}, made.paths


def _told(stamp: Path) -> dict[str, Any]:
    """What a stamp says was made; nothing where it is not one."""
    with contextlib.suppress(OSError, ValueError):
        told = parse_json(stamp.read_bytes())
        return told if {"key", "notes", "figures", "files"} <= told.keys() else {}
    return {}


def _section(title: str, place: Path, out: Path, part: _Part) -> Section:
    section, folder = Section(title), out / place
    try:
        key = part.key()
        told = _told(folder / STAMP)
        if told.get("key") != key or not all((folder / file).is_file() for file in told["files"]):
            notes, figures, paths = part.make(folder)
            titles = {f"figures/{stem}": view.title for stem, (view, _) in figures.items()}
            files = [path.relative_to(folder).as_posix() for path in paths]
            told = {"key": key, "notes": notes, "figures": titles, "files": files}
            (folder / STAMP).write_text(json.dumps(told, indent=1))
    except UserError as error:
        section.notes.append(f"Not measured: {error}")
        return section
    section.notes += told["notes"]
    section.figures = {(place / file).as_posix(): title for file, title in told["figures"].items()}
    tables = [file for file in part.tables if file in told["files"]]
    section.tables = {(place / file).as_posix(): pd.read_csv(folder / file) for file in tables}
    return section


def _here(name: str, pool: Pool, access: Access) -> tuple[Source, list[Expert]]:
    """A pool's base and experts; UserError where their weights are still on the hub."""
    base, experts = _found(name, pool, access)
    if any(map(access.hub.unfetched, _paths(base, experts))):
        raise UserError("its weights are not here", where=f"pools.{name}", do="fetch them with `mergebench geometry`")
    return base, experts


def _prints(base: Source, experts: Sequence[Expert]) -> list[Any]:
    return [base.fingerprint, {expert.name: expert.source.fingerprint for expert in experts}]


def _paths(base: Source, experts: Sequence[Expert]) -> list[str]:
    return [base.path, *(expert.source.path for expert in experts)]


def norm_accuracy(store: Store, base: Source, experts: Sequence[Expert]) -> pd.DataFrame:
    """Norm of the update and mean score of every expert, and of every merge of them, that the store has results of."""
    known, rows = {expert.source.fingerprint: expert.name for expert in experts}, []
    for _, about in store.read_all("results"):
        used = [expert["fingerprint"] for expert in about["experts"]]
        values = [task["value"] for task in about["tasks"].values()]
        if about["base"]["fingerprint"] != base.fingerprint or not used or not {*used} <= {*known} or None in values:
            continue
        method = about["recipe"]["method"] if about["recipe"] else None
        rows.append({
            "model": "+".join(known[one] for one in used), "method": method, "n": len(used), "suite": about["suite"],
            "update_norm": about.get("update_norm"), "score": sum(values) / len(values), "key": about["key"],
        })  # fmt: skip
    columns = ["model", "method", "n", "suite", "update_norm", "score", "key"]
    return pd.DataFrame(rows, columns=columns).dropna(subset=["update_norm"])


def landscape(config: Config, progress: Progress = SILENT) -> Landscape:
    """Joint loss of pairs of experts of ``base``, or of every pool of a study, on one scale."""
    access = access_of(config)
    for name, pool, _ in _pools(config, "landscape"):
        access.fetch(progress, _paths(*_found(name, pool, access)))
    return _losses(config, access, progress, Path(config.out) if config.out else _folder(config) / "landscape")


def _losses(config: Config, access: Access, progress: Progress, out: Path) -> Landscape:
    find_device(config.executor)
    return write_landscape(
        _panels(config, access), out, config.landscape, seed=config.seed, datasets=config.datasets,
        online=config.online, device=config.executor.device, progress=progress, **_match(config),
    )  # fmt: skip


def _panels(config: Config, access: Access) -> list[Panel]:
    """A panel for each pair and pool, the pools of a pair side by side."""
    return [panel for pair in zip(*(_pool_panels(n, p, config, access) for n, p, _ in _pools(config, "landscape")))
            for panel in pair]  # fmt: skip


def _pool_panels(name: str, pool: Pool, config: Config, access: Access) -> Iterator[Panel]:
    base, experts = _found(name, pool, access)
    for one, two in _pairs(config, experts, name):
        title = f"{one.name} & {two.name}" + (f" · {name}" if config.pools else "")
        opened = access.open(one.source.path), access.open(two.source.path)
        tasks = _task(config, one), _task(config, two)
        yield Panel(title, access.open(base.path), opened, (one.name, two.name), tasks, pool.training)


def _match(config: Config) -> dict[str, Any]:
    """How experts unlike the base are brought together, as for their merges."""
    return {"vocab": config.vocab, "strict": config.strict}


def _folder(config: Config) -> Path:
    return Path(config.runs) / (config.name or "geometry")


def _pools(config: Config, doing: str) -> Iterator[tuple[str, Pool, Path]]:
    """Name, pool and folder of what is looked at: the study's pools, or one of ``base`` and ``experts``."""
    if config.pools:
        above = Path(config.out) if config.out else _folder(config) / "geometry"
        yield from ((name, pool, above / name) for name, pool in config.pools.items())
        return
    if not config.experts or config.base == Base():
        do = "name them: base.path=DIR 'experts=[A,B]', or a study: +experiment=NAME"
        raise UserError(f"there is nothing to take the {doing} of", where="base and experts", do=do)
    names = [Path(path).name for path in config.experts]
    if len({*names}) < len(names):
        names = list(config.experts)
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice} is named twice", where="experts", do="name each expert once")
    experts = {name: Checkpoint(path) for name, path in zip(names, config.experts)}
    yield "experts", Pool(base=config.base, experts=experts), Path(config.out or _folder(config))


def _found(name: str, pool: Pool, access: Access) -> tuple[Source, list[Expert]]:
    """A pool's base and experts (of its first training seed); UserError for one that is not made yet."""
    base, recipes = find_base(pool.base, access), pool_recipes(runs(pool)[0])
    found = [Expert(label, find_checkpoint(one, access)) for label, one in pool.experts.items()]
    made = [(label, recipe, find_expert(recipe, base, access)) for label, recipe in recipes.items()]
    for part in (base, *(source for _, _, source in made)):
        if not isinstance(part, Source):
            do = "make it first, with `mergebench finetune` or the study's `mergebench sweep`"
            raise UserError(f"{part.what} is not made yet", where=f"pools.{name}", do=do)
    assert isinstance(base, Source)
    return base, found + [Expert(label, s, recipe.task) for label, recipe, s in made if isinstance(s, Source)]


def _pairs(config: Config, experts: Sequence[Expert], pool: str) -> Iterator[tuple[Expert, Expert]]:
    known = {expert.name: expert for expert in experts}
    if len(known) < 2:
        raise UserError("a landscape is of two experts", where=f"pools.{pool}", do="name two: 'experts=[A,B]'")
    check_pairs(config.landscape.pairs, known, "landscape.pairs")
    for pair in config.landscape.pairs or [list(itertools.islice(known, 2))]:
        yield known[pair[0]], known[pair[1]]


def _task(config: Config, expert: Expert) -> Task:
    """What an expert was trained on: as its pool says, else as ``landscape.tasks`` does, by name or by place."""
    given = config.landscape.tasks
    if expert.name in given:
        return named(given[expert.name])
    if expert.task is not None:
        return expert.task
    places = [Path(path).name for path in config.experts]
    if expert.name in places and len(given) == len(places):
        return named(list(given.values())[places.index(expert.name)])
    do = f"say it: +task@landscape.tasks.{expert.name}=file landscape.tasks.{expert.name}.path=FILE"
    raise UserError(f"nothing says what {expert.name} was trained on", where="landscape.tasks", do=do)
