"""One model trained on all tasks together, as a study's reference, and the measures that are read against it."""

import json
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from conf.compose import compose
from conf.schema import Optimizer, Task, Training
from pipelines.finetune import finetune
from pipelines.store.store import Store
from pipelines.study.sweep import run_study

SUITE = ("suite=custom", *(f"+suite.tasks.{t}.skill={t}" for t in ("add", "dist", "count")), "suite.limit=16")
VIEW = (
    "+report.tables.joint={measures:[score,ratio,joint_share,expert_ratio,worst],also:[joint,base],reference:joint,"
    "where:{n:2},band:none,digits:6}"
)


@pytest.fixture(scope="module")
def study(tiny_pool, tmp_path_factory):
    """A study over the quick pool with joint training, in a store that holds the pool."""
    folder = tmp_path_factory.mktemp("joint")
    for kind in ("bases", "experts"):
        (folder / "store" / kind).mkdir(parents=True)
        for entry in (Path(tiny_pool.store) / kind).iterdir():
            (folder / "store" / kind / entry.name).symlink_to(entry)
    overrides = [*tiny_pool.overrides, *SUITE, VIEW, "+method@methods.linear=linear", "sampler.sizes=[2,3]"]
    where = [f"store={folder}/store", f"runs={folder}/runs", "name=joint", "executor.device=cpu"]
    ((config, _),) = compose([*overrides, *where, "references.joint=true"])
    sweep = run_study(config)
    assert sweep.complete
    return sweep


def test_it_is_trained_on_all_tasks_as_long_as_all_experts(study, tmp_path):
    store = Store(study.folder.parents[1] / "store")
    (entry,) = [e for e in store.entries("experts") if e.describe()["name"] == "joint"]
    about = entry.describe()
    assert (about["summary"]["steps"], about["task"]) == (9, "add + dist + count")
    tasks = [Task(name=skill, skill=skill) for skill in ("add", "dist", "count")]
    base = Path(about["base"]["path"])
    examples = [
        finetune(base, task, {"method": "plain"}, Optimizer(), Training(steps=1), 0, tmp_path / task.name)["examples"]
        for task in tasks
    ]
    assert about["summary"]["examples"] == sum(examples)


def test_epochs_give_as_many_steps_as_all_tasks_one_by_one(study, tiny_pool, tmp_path):
    tasks = [Task(name="add", skill="add", limit=20, epochs=1.0), Task(name="dist", skill="dist", limit=12, epochs=2.5)]
    given = (Path(tiny_pool.base), {"method": "plain"}, Optimizer(), Training(epochs=9.0, batch_size=10))

    def run(place, task, more=()):
        base, method, optimizer, training = given
        return finetune(base, task, method, optimizer, training, 0, tmp_path / place, more=more)["steps"]

    assert (run("a", tasks[0]), run("b", tasks[1])) == (2, 5)
    assert run("joint", tasks[0], tasks[1:]) == 5, "20 + 30 examples of ten"
    assert load_file(tmp_path / "joint" / "model.safetensors").keys()


def test_the_reference_and_what_is_read_against_it(study):
    trials = pd.read_csv(study.folder / "trials.csv")
    table = pd.read_csv(study.folder / "tables" / "joint.csv").set_index("method")
    scores = trials.set_index(trials["kind"] + trials["experts"].fillna(""))
    tasks = ["add", "dist", "count"]
    merges = [k for k in scores.index if k.startswith("merge") and k.count("+") == 1]
    joint, base = scores.loc["joint"], scores.loc["base"]
    share = [(scores.loc[m, "score"] - base["score"]) / (joint["score"] - base["score"]) for m in merges]
    ratio, worst = [], []
    for m in merges:
        names = m.removeprefix("merge").split("+")
        own = [scores.loc[f"expert{n}", f"task.{n}"] for n in names]
        ratio.append(sum(scores.loc[m, f"task.{n}"] for n in names) / sum(own))
        worst.append(min(scores.loc[m, f"task.{t}"] for t in tasks))
    row = table.loc["linear"]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    expected = {"joint_share": mean(share), "expert_ratio": mean(ratio), "worst": mean(worst)}
    expected["ratio"] = mean([scores.loc[m, "score"] for m in merges]) / joint["score"]
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert table.loc["joint training", "joint_share"] == pytest.approx(1.0)
    assert "joint training" in json.dumps(pd.read_csv(study.folder / "leaderboard.csv").to_dict())
