"""Prefetching asks the hub for just what the suite's tasks name, and says what it cannot get."""

import pytest

from conf.errors import UserError
from conf.schema import Suite, SuiteTask
from pipelines.evaluate.prefetch import prefetch


@pytest.fixture
def asked(monkeypatch):
    calls = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda **kwargs: calls.append(kwargs))
    return calls


def test_each_data_set_once_under_its_hub_name(asked, tmp_path):
    tasks = {name: SuiteTask() for name in ("arc_easy", "arc_challenge", "prost", "trace_fomc")}
    got = prefetch(Suite(name="s", tasks={**tasks, "add": SuiteTask(skill="add")}), tmp_path)
    assert got.datasets == ["allenai/ai2_arc", "corypaik/prost"]
    assert got.by_hand == ["TRACE/FOMC"]
    assert [(a["repo_id"], a["repo_type"], a["allow_patterns"]) for a in asked] == [
        ("allenai/ai2_arc", "dataset", None),
        ("corypaik/prost", "dataset", ["data/default.jsonl"]),
    ]
    assert asked[0]["local_dir"] == tmp_path / "allenai" / "ai2_arc"


def test_unknown_task_is_told_before_anything_is_fetched(asked, tmp_path):
    with pytest.raises(UserError, match="did you mean arc_easy"):
        prefetch(Suite(name="s", tasks={"arc_eazy": SuiteTask(), "prost": SuiteTask()}), tmp_path)
    assert asked == []


def test_what_the_hub_refuses_is_named(monkeypatch, tmp_path):
    def refuse(**kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match="cannot fetch the data set allenai/ai2_arc: no route"):
        prefetch(Suite(name="s", tasks={"arc_easy": SuiteTask()}), tmp_path)
