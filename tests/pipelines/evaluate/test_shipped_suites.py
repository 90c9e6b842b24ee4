"""The suites in conf/suite: names exist, and few-shots and splits are those of lm-eval's own definitions."""

from pathlib import Path

import pytest
import yaml

from conf.compose import compose
from conf.schema import Judge, Suite, SuiteTask
from pipelines.evaluate.lookup import OWN_TASKS, leaves, task_index
from pipelines.evaluate.suite import check_suite

FILES = sorted((Path(__file__).resolve().parents[3] / "conf" / "suite").glob("*.yaml"))
SUITES = [file for file in FILES if file.stem != "custom"]


def read(file: Path) -> Suite:
    if "images" in file.read_text():  # data sets of pictures are choices of their own
        return compose([f"suite={file.stem}"])[0][0].suite
    content = yaml.safe_load(file.read_text())
    tasks = {key: SuiteTask(**spec) for key, spec in content.pop("tasks").items()}
    judge = Judge(**content.pop("judge", {}))
    return Suite(**content, tasks=tasks, judge=judge)


@pytest.mark.parametrize("file", SUITES, ids=lambda f: f.stem)
def test_suite_is_sound(file):
    suite = read(file)
    assert suite.name == file.stem
    assert file.read_text().startswith("# mergebench evaluate ")
    suite.run_code = True
    wrong = [p for p in check_suite(suite) if "on no hub" not in p and "needs the package" not in p]
    assert wrong == []


@pytest.mark.parametrize("file", SUITES, ids=lambda f: f.stem)
def test_splits_and_shots_are_the_tasks_own(file):
    index = task_index(OWN_TASKS)
    suite = read(file)
    for key, spec in suite.tasks.items():
        if spec.skill is not None or spec.images is not None:
            continue
        for leaf in leaves(spec.task or key, index):
            assert leaf.split(spec.split) == leaf.split(None)
            assert spec.num_fewshot in (None, leaf.config.get("num_fewshot") or 0)


def test_the_in_the_wild_study_has_sixteen_tasks():
    suite = read(next(file for file in SUITES if file.stem == "in_the_wild"))
    assert len(suite.tasks) == 16
    assert (suite.dtype, suite.chat_template) == ("float16", False)
