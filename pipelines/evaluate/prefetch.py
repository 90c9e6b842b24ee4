"""Fill a local mirror of hub data sets, so that a suite can be scored without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conf.errors import UserError
from conf.schema import Suite
from pipelines.evaluate.lookup import HUB_FILE, OWN_TASKS, leaves, task_index
from pipelines.evaluate.suite import check_suite
from pipelines.images.data import find_local
from pipelines.progress import SILENT, Progress


@dataclass(frozen=True)
class Fetched:
    """What a prefetch did: data sets by name, and those that have to be put into place by hand."""

    folder: Path
    datasets: list[str]
    by_hand: list[str]


def prefetch(suite: Suite, out: Path, *, progress: Progress = SILENT) -> Fetched:
    """Copy the data sets of a suite's tasks from the hub into ``out``, under their hub names (``datasets=out``).

    What is there already is not fetched again. Raises UserError for a suite with unknown names, and for a data set that
    the hub does not give (naming it).
    """
    unknown = [p for p in check_suite(suite) if "has no task" in p or "no built-in skill" in p]
    if unknown:
        raise UserError(unknown[0], where=f"suite {suite.name}")
    index = task_index(OWN_TASKS, suite.include_path)
    names = [spec.task or key for key, spec in suite.tasks.items() if spec.skill is None and spec.images is None]
    found = [leaf for name in names for leaf in leaves(name, index)]
    pictures = [spec.images for spec in suite.tasks.values() if spec.images is not None and spec.images.path]
    wanted: dict[str, set[str] | None] = {  # files by data set; None is all of them
        str(images.path): None for images in pictures if find_local(images, None) is None
    }
    for leaf in found:
        if leaf.dataset is not None and leaf.local is None:
            own = {file.removeprefix(f"{HUB_FILE}{leaf.dataset}/") for file in leaf.hub_files}
            before = wanted.get(leaf.dataset, set())
            wanted[leaf.dataset] = None if before is None or not own else before | own
    with progress.step("prefetch", len(wanted)) as step:
        for name, files in sorted(wanted.items()):
            _fetch(name, sorted(files) if files is not None else None, Path(out) / name)
            step.advance()
    return Fetched(Path(out), sorted(wanted), sorted({leaf.local for leaf in found if leaf.local is not None}))


def _fetch(name: str, files: list[str] | None, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(repo_id=name, repo_type="dataset", local_dir=folder, allow_patterns=files)
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot fetch the data set {name}: {why}", do="check the network and hub access") from None
