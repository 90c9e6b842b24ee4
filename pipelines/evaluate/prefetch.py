"""Fill a local mirror of hub data sets, so that a suite can be scored without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Suite
from pipelines.evaluate.definitions import HUB_FILE, OWN_TASKS, Definition, hub_files, leaves
from pipelines.evaluate.index import task_index
from pipelines.evaluate.suite import check_suite
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
    found = [
        leaf for key, spec in suite.tasks.items() if spec.skill is None for leaf in leaves(spec.task or key, index)
    ]
    wanted: dict[str, list[str] | None] = {}
    for leaf in found:
        if leaf.dataset is not None and leaf.local is None:
            _want(wanted, leaf.dataset, leaf)
    with progress.step("prefetch", len(wanted)) as step:
        for name, files in sorted(wanted.items()):
            _fetch(name, files, Path(out) / name)
            step.advance()
    return Fetched(Path(out), sorted(wanted), sorted({leaf.local for leaf in found if leaf.local is not None}))


def _want(wanted: dict[str, list[str] | None], name: str, leaf: Definition) -> None:
    """Note what to fetch of a data set: everything (None), or single files where a task names those only."""
    files = hub_files((leaf.config.get("dataset_kwargs") or {}).get("data_files"))
    own = [file.removeprefix(f"{HUB_FILE}{name}/") for file in files]
    before = wanted.get(name, [])
    wanted[name] = None if before is None or not own else sorted({*before, *own})


def _fetch(name: str, files: list[str] | None, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    arguments: dict[str, Any] = {"repo_id": name, "repo_type": "dataset", "local_dir": folder}
    try:
        snapshot_download(**arguments, allow_patterns=files)
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot fetch the data set {name}: {why}", do="check the network and hub access") from None
