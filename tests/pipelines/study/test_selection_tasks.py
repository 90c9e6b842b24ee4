"""Which tasks of a suite have a part in a study's selection, and on which split each."""

import pytest

from conf.errors import UserError
from conf.schema import Suite, SuiteTask
from pipelines.study.selection import check_selection, selection_suite


def test_a_task_says_what_it_is_chosen_on():
    tasks = {
        "gsm8k": SuiteTask(split="test", select="train"),
        "humaneval": SuiteTask(split="test", select="none"),
        "mbpp": SuiteTask(task="mbpp_limited", split="test"),
    }
    chosen_on = selection_suite(Suite(tasks=tasks), "validation")
    assert {name: task.split or chosen_on.split for name, task in chosen_on.tasks.items()} == {
        "gsm8k": "train",
        "mbpp": "validation",
    }
    assert [task.split for task in tasks.values()] == ["test"] * 3, "what is reported stays"


def test_a_choice_needs_a_task():
    tasks = {"humaneval": SuiteTask(split="test", select="none")}
    with pytest.raises(UserError, match="no task of suite"):
        check_selection(Suite(tasks=tasks), "validation", "methods.m3.select")


def test_a_task_is_not_chosen_on_what_it_reports():
    tasks = {"gsm8k": SuiteTask(split="test", select="test")}
    with pytest.raises(UserError, match="split that is reported"):
        check_selection(Suite(tasks=tasks), "validation", "methods.m3.select")
