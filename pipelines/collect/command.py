"""What ``mergebench statistics`` collects: of a pool's experts on their own tasks, or of given experts on one task."""

from __future__ import annotations

from conf.errors import UserError
from conf.schema import Base, Checkpoint, Config
from pipelines.collect.find import Subject, check_collect, make_statistics, pool_subjects
from pipelines.progress import SILENT, Progress
from pipelines.sources import Access, Source, find_checkpoint, make_base, named
from pipelines.store.store import Entry
from pipelines.study import access_of, make_pools


def collect_statistics(config: Config, progress: Progress = SILENT) -> list[Entry]:
    """Collect every statistic of ``collect.kinds`` that the store lacks; experts of a pool are made where need be.

    Raises UserError where there is no expert, or none with a task.
    """
    check_collect(config.collect)
    access = access_of(config)
    pairs = _pools(config, access, progress) if config.pools else _experts(config, access, progress)
    for _, subject in pairs:
        if subject.task is None:
            progress.note(f"{subject.name} is left out: the pool does not say what it was trained on", "warning")
    if all(subject.task is None for _, subject in pairs):
        do = "name an expert and its data: experts=[DIR] task=file task.path=FILE"
        raise UserError("there is no expert with a task to collect statistics on", where="experts", do=do)
    access.fetch(progress, [subject.expert.path for _, subject in pairs if subject.task is not None])
    return make_statistics(pairs, config.collect.kinds, access, config, progress)


def _pools(config: Config, access: Access, progress: Progress) -> list[tuple[Source, Subject]]:
    make_pools(config, access, progress)
    bases = {name: make_base(pool.base, access, progress) for name, pool in config.pools.items()}
    return [(bases[name], s) for name, pool in config.pools.items() for s in pool_subjects(pool, access)]


def _experts(config: Config, access: Access, progress: Progress) -> list[tuple[Source, Subject]]:
    if config.experts and not (config.task.skill or config.task.path):
        do = "say what the experts were trained on: task.path=FILE, or task=skills/add"
        raise UserError("no task is named", where="task", do=do)
    found = [(path, find_checkpoint(Checkpoint(path=path), access)) for path in config.experts]
    base = None if config.base == Base() else make_base(config.base, access, progress)
    return [(base or expert, Subject(path, expert, named(config.task))) for path, expert in found]
