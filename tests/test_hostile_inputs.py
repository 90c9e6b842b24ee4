"""Hostile task files, data, pictures and foreign results at their doors; benchmarks/hostile.py runs commands."""

import contextlib
import os
from pathlib import Path

import pytest

from conf.errors import UserError
from conf.files import read_yaml
from conf.schema import Images, Suite, SuiteTask, Task
from pipelines.checkpoints.content import folder_hash
from pipelines.compare.scores import read_scores
from pipelines.evaluate.lookup import TaskIndex
from pipelines.evaluate.suite import check_suite, suite_fingerprint
from pipelines.finetune.data import read_rows
from pipelines.images.data import open_split
from tests import hostile_inputs
from tests.cli.world import make_world

LARGE = ("task many files", "task yaml sparse", "pictures file bomb", "pictures table bomb", "rows json bomb",
         "pictures folder sparse", "pictures file large", "rows csv wide", "rows parquet few rows")  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


def door(kind: str, name: str, place: Path):
    """What reads a kind of input first."""
    images = Images(path=str(place / "bad"), classes=["red", "blue"])
    if kind == "task":
        suite = Suite(tasks={"sums": SuiteTask(limit=4)}, include_path=str(place / "bad"))
        return [*check_suite(suite), *suite_fingerprint(suite)]
    if kind == "compare":
        return read_scores(place / "bad")
    if kind == "pictures":
        split = open_split(images, "test")
        return [split.picture(i).size for i in range(len(split))]
    return read_rows(Task(path=str(place / f"bad.{hostile_inputs.ROWS[name][0]}")), 0)


CASES = [
    *(("task", name, make) for name, make in hostile_inputs.TASKS.items()),
    *(("compare", name, make) for name, make in hostile_inputs.FOREIGN.items()),
    *(("pictures", name, make) for name, make in hostile_inputs.IMAGES.items()),
    *(("rows", name, make) for name, (_, make) in hostile_inputs.ROWS.items()),
]


@pytest.mark.parametrize("kind", ["task", "compare", "pictures", "rows"])
def test_every_kind_is_read_or_refused_in_one_line(kind, world, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.evaluate.lookup._installed", TaskIndex)
    refused = []
    for number, (own, name, make) in enumerate(CASES):
        if own != kind or f"{kind} {name}" in LARGE:
            continue
        place = tmp_path / str(number)
        place.mkdir()
        for good in ("tasks", "mine.jsonl"):
            (place / good).symlink_to(world / good)
        make(place)
        monkeypatch.chdir(place)
        with contextlib.suppress(FileNotFoundError):  # the command line's one line
            try:
                door(kind, name, place)
            except UserError as error:
                refused.append((name, str(error)))
        assert not (place / "canary").exists(), name
    assert not [name for name, told in refused if name == "harmless" or len(told) > 3000]
    assert len(refused) > 10


def test_templates_of_task_files_reach_no_code(tmp_path, monkeypatch):
    from lm_eval.utils import apply_template

    import pipelines.evaluate.build  # noqa: F401

    monkeypatch.chdir(tmp_path)
    for name in ("code", "classes", "code of lipsum", "code by format"):
        with pytest.raises(Exception, match="is unsafe"):
            apply_template(hostile_inputs.TEMPLATES[name], {})
    assert not list(tmp_path.iterdir())
    assert (
        apply_template("{% for a in b %}{{ a|trim|regex_replace('x', 'y') }}\n{% endfor %}\n", {"b": ["x "]}) == "y\n\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", "repeated too often"), ("a: " + "[" * 60 + "]" * 60, "too deep"), ("a: !x y", "a tag is !x"),
        (hostile_inputs.LAUGHS.decode(), "repeated too often"), ("a: [" + "1," * 30_000 + "]", "too many"),
    ],
)  # fmt: skip
def test_yaml_is_measured_before_it_is_loaded(text, said, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("a: &a {b: [1, 2]}\nc: [*a, *a]\nd: !f x\n")
    assert read_yaml(tmp_path / "b.yaml", tags=("!f",)).startswith("a:")


def test_folders_of_data_have_an_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    (tmp_path / "b").symlink_to("a")
    plain = folder_hash(tmp_path)
    (tmp_path / "a" / "up").symlink_to("..")
    os.mkfifo(tmp_path / "a" / "pipe")
    assert folder_hash(tmp_path) == plain
    (tmp_path / "c").symlink_to("/proc/self")
    with pytest.raises(UserError, match="the folder holds /proc"):
        folder_hash(tmp_path)
