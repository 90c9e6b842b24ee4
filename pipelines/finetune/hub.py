"""Data sets of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema import Task


def commit(task: Task, online: bool) -> str:
    """The commit that the data set's revision stands for: asked of the hub, else read from its local cache.

    Raises:
        UserError: The hub does not know the data set, or is out of reach and the cache does not hold it.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    revision = task.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    assert task.path is not None
    if online:
        try:
            return str(HfApi().dataset_info(task.path, revision=revision, timeout=20).sha)
        except (HfHubHTTPError, HFValidationError) as error:
            raise _unknown(task, str(error)) from None
        except Exception:  # no network: the cache may hold it
            pass
    cached = Path(constants.HF_HUB_CACHE) / f"datasets--{task.path.replace('/', '--')}" / "refs" / revision
    if cached.is_file():
        return cached.read_text().strip()
    raise _unknown(task, "the hub cannot be reached, and its cache does not hold it")


def load(task: Task, online: bool) -> Iterable[dict[str, Any]]:
    """The rows of a hub data set.

    Raises:
        UserError: An unknown data set, subset or split.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(task.path, task.subset, split=task.split, revision=commit(task, online))
    except UserError:
        raise
    except Exception as error:
        raise _unknown(task, str(error)) from None
    return rows


def _unknown(task: Task, reason: str) -> UserError:
    first = next((line.strip() for line in reason.splitlines() if line.strip()), "")
    return UserError(
        f"cannot load the data set {task.path!r} of task {task.name}", where=first,
        do="check task.path, task.subset and task.split, or put its files into that folder below datasets=FOLDER",
    )  # fmt: skip
