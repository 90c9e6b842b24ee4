"""The commands as Python functions: the same settings, results and errors."""

import json

import mergebench
import pandas as pd
import pytest

SUITE = ("suite=custom",)
WHAT = {"suite": {"tasks": {"add": {"skill": "add"}}, "limit": 8}}
QUICK = {"training": {"steps": 2, "batch_size": 4}, "optimizer": {"lr": 1e-3}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_one_model_from_training_to_comparison(tiny_pool):
    where = {"base.path": tiny_pool.base, "store": "s"}
    made = mergebench.finetune("task=skills/dist", **where, **QUICK)
    assert json.loads((made.folder / "entry.json").read_text())["task"] == made.about["task"] == "dist"
    assert mergebench.finetune("task=skills/dist", **where, **QUICK).folder == made.folder
    experts = [made, tiny_pool.experts[0]]
    merged = mergebench.merge(
        experts=experts, method={"method": "ties", "density": 0.5, "weight": [0.25, 0.75]}, out="it's merged", **where
    )
    assert merged.about["recipe"]["parameters"]["weight"] == [0.25, 0.75]
    assert (merged.folder / "model.safetensors").is_file()
    own = mergebench.evaluate(*SUITE, model=merged, store="s", **WHAT)
    method = {"method": "ties", "density": 0.5, "weight": [0.25, 0.75]}
    live = mergebench.evaluate(*SUITE, experts=experts, method=method, **where, **WHAT)
    assert own.mean == live.mean == own.tasks.loc["add", "value"] == own.documents["value"].mean()
    base = mergebench.evaluate(*SUITE, **where, **WHAT)
    (row,) = mergebench.compare(base.key, own.key, store="s").differences
    assert row.difference == pytest.approx(own.mean - base.mean)
    frame = mergebench.results(store="s")
    assert isinstance(frame, pd.DataFrame)
    assert set(frame["key"]) == {own.key, live.key, base.key}


def test_a_study(tiny_pool, own_store):
    settings = {"store": str(own_store), "runs": "runs", "name": "api", **WHAT, "sampler": {"sizes": [2]}}
    study = mergebench.study(*tiny_pool.overrides, *SUITE, "+method@methods.linear=linear", **settings)
    assert (study.name, study.complete) == ("api", True)
    assert set(study.trials["kind"]) == {"base", "expert", "merge"}
    assert len(study.trials) == 1 + 3 + 3
    assert study.verdicts
    assert (study.folder / "report.html").is_file()


def test_errors_are_those_of_the_command():
    with pytest.raises(mergebench.UserError, match="did you mean"):
        mergebench.evaluate(suit="skills")
    with pytest.raises(mergebench.UserError, match="did you mean lr"):
        mergebench.finetune(optimizer={"lrr": 1})
    with pytest.raises(mergebench.UserError, match="does not use"):
        mergebench.finetune("sampler.samples=2")
    with pytest.raises(AttributeError):
        mergebench.merges  # noqa: B018


def test_what_is_public():
    assert {"compare", "evaluate", "finetune", "merge", "results", "study", "UserError"} <= set(dir(mergebench))
