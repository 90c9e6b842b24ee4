"""The skills as lm-eval tasks: built from memory for this process, or written as files for ``lm_eval run``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import yaml
from lm_eval.api.task import ConfigurableTask

from pipelines.tiny.skills import VERSION, Split, items

FEWSHOT_ITEMS = 64
"""Training items that few-shot examples are taken from."""

_CONFIG = {
    "output_type": "multiple_choice",
    "training_split": "train",
    "fewshot_split": "train",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "choices",
    "doc_to_target": "target",
    "target_delimiter": " ",
    "fewshot_delimiter": "\n",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}

Documents = dict[str, list[dict[str, Any]]]


class SkillTask(ConfigurableTask):
    """A generated skill as a multiple-choice task whose documents are already in memory."""

    def __init__(self, config: dict[str, Any], documents: Documents):
        self._documents = documents
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take the documents from memory; nothing is fetched and no file is written."""
        self.dataset = {split: datasets.Dataset.from_list(rows) for split, rows in self._documents.items()}


def skill_task(name: str, skill: str, split: Split = "test", n: int | None = None) -> SkillTask:
    """Build the lm-eval task ``name`` over the first n items of a skill's split.

    Raises:
        ValueError: Unknown skill or split.
    """
    return SkillTask(*_task(name, skill, split, n))


def export_tasks(folder: Path, skills: Iterable[str], split: Split = "test", n: int | None = None) -> list[Path]:
    """Write skills as JSONL and YAML, so that ``lm_eval run --include_path folder --tasks <skill>`` scores them.

    Returns the YAML files. The numbers are those of ``skill_task`` with the same arguments.

    Raises:
        ValueError: Unknown skill or split.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for skill in skills:
        config, documents = _task(skill, skill, split, n)
        files = {part: folder / f"{skill}.{part}.jsonl" for part in documents}
        for part, file in files.items():
            file.write_text("".join(json.dumps(row) + "\n" for row in documents[part]), encoding="utf-8")
        config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {k: str(v) for k, v in files.items()}}}
        page = folder / f"{skill}.yaml"
        page.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        pages.append(page)
    return pages


def _task(name: str, skill: str, split: Split, n: int | None) -> tuple[dict[str, Any], Documents]:
    """The task's configuration, and its documents (prompt, choices, target) by lm-eval split."""
    scored = "test" if split == "train" else split  # few-shot examples have the name train
    config = {"task": name, **_CONFIG, f"{scored}_split": scored, "metadata": {"version": VERSION}}
    drawn = {"train": items(skill, "train", FEWSHOT_ITEMS), scored: items(skill, split, n)}
    rows = {
        part: [{"prompt": i.prompt, "choices": list(i.choices), "target": i.target} for i in found]
        for part, found in drawn.items()
    }
    return config, rows
