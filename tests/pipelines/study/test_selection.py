"""Parameters chosen on one split and scored once on another, as a part of a study."""

import csv
import dataclasses

import numpy as np
import pytest

from conf.compose import compose
from conf.errors import UserError
from pipelines.store.store import Store
from pipelines.study import worker
from pipelines.study.plan import make_plan
from pipelines.study.single import evaluate_model
from pipelines.study.sources import access_of
from pipelines.study.sweep import run_study, trial_rows
from pipelines.study.worker import Worker

SUITE = ("suite=custom", "+suite.tasks.add.skill=add", "+suite.tasks.dist.skill=dist", "suite.limit=24")
LAMBDAS = (0.2, 1.0, 3.0)
TUNED = f"+methods.ta={{method:task_arithmetic,grid:{{lambda:{list(LAMBDAS)}}},select:validation}}".replace(" ", "")
MIXED = "+methods.mix={method:mixup,grid:{scale:[0.5,2]},draws:2,select:validation}"


@pytest.fixture
def study(tiny_pool, tmp_path, own_store):
    """Configurations of a study that selects, over pairs of the quick pool."""

    def config(*more):
        places = (f"store={own_store}", f"runs={tmp_path}/runs", "name=chosen", "executor.device=cpu")
        ((composed, _),) = compose([*tiny_pool.overrides, *SUITE, *places, "sampler.sizes=[2]", *more])
        return composed

    return config


def test_the_best_by_hand_is_what_the_study_reports(study, tiny_pool, monkeypatch):
    view = "+report.tables.tried={where:{split:validation,method:ta},rows:[subset,lambda]}"
    config = study(TUNED, MIXED, view)
    plan = make_plan(config, access_of(config))
    assert (plan.candidates, plan.finals, plan.waiting, plan.new) == (3 * 3 + 3 * 4, 6, 6, 4 + 21)
    swept = run_study(config)
    assert swept.complete
    assert swept.outcome.done == 4 + 21 + 6

    paths = dict(zip(("add", "dist", "count"), tiny_pool.experts))

    def score(experts, value, split):
        one = dataclasses.replace(
            config, base=dataclasses.replace(config.base, path=tiny_pool.base), pools={}, methods={},
            experts=[paths[name] for name in experts], method={"method": "task_arithmetic", "lambda": value},
            suite=dataclasses.replace(config.suite, split=split), store=f"{config.store}-by-hand",
        )  # fmt: skip
        return np.mean([task["value"] for task in evaluate_model(one).describe()["tasks"].values()])

    rows = trial_rows(swept.plan, access_of(config))
    shown = list(csv.DictReader((swept.folder / "tables" / "tried.csv").open()))
    for row in (row for row in rows if row.method == "ta" and row.columns["split"] is None):
        tried = [score(row.experts, value, "validation") for value in LAMBDAS]
        best = LAMBDAS[int(np.argmax(tried))]
        assert row.parameters["lambda"] == best
        assert np.mean(list(row.scores.values())) == score(row.experts, best, None)
        (choice,) = (c for c in swept.plan.layout.choices if c.method == "ta" and c.experts == row.experts)
        assert (choice.values, choice.score, choice.candidates) == ({"lambda": best}, max(tried), 3)
        own = [line for line in shown if line["subset"] == "+".join(row.experts)]
        assert [float(line["lambda"]) for line in own] == list(LAMBDAS)
        assert [float(line["score"]) for line in own] == pytest.approx(tried, abs=1e-5)
    splits = [row.columns["split"] for row in rows if row.kind == "merge"]
    assert (splits.count("validation"), splits.count(None)) == (21, 6), "one merge a pair and method is reported"
    chosen = list(csv.DictReader((swept.folder / "chosen.csv").open()))
    assert len(chosen) == 6
    mixed = next(row for row in rows if row.method == "mix" and row.columns["split"] is None)
    told = next(line for line in chosen if line["method"] == "mix" and line["experts"] == "+".join(mixed.experts))
    assert float(told["lambda"]) == mixed.columns["lambda"]

    monkeypatch.setattr(Worker, "run", lambda *_: pytest.fail("what was scored is scored again"))
    again = run_study(config)
    assert (again.plan.cached, again.plan.waiting, again.outcome.done) == (31, 0, 0)
    assert again.plan.layout.choices == swept.plan.layout.choices
    assert len({row.panel for row in again.report.leaderboard}) == 1, "candidates are no models of the report"


def test_an_interrupted_selection_goes_on(study, monkeypatch):
    run, calls = Worker.run, []

    def stopped(self, trial):
        calls.append(trial.key)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return run(self, trial)

    monkeypatch.setattr(Worker, "run", stopped)
    first = run_study(study(TUNED))
    assert first.outcome.interrupted
    assert not first.complete
    monkeypatch.setattr(Worker, "run", run)
    again = run_study(study(TUNED))
    assert again.complete
    assert again.report.partial == "", "candidates count on both sides"
    assert again.report.scored == 4 + 9 + 3
    assert (again.plan.cached, again.outcome.done) == (6, 4 + 9 + 3 - 6)


def test_nothing_is_chosen_while_a_candidate_has_no_score(study, monkeypatch):
    run = Worker.run

    def broken(self, trial):
        if trial.merge is not None and trial.merge.parameters["lambda"] == LAMBDAS[1]:
            raise RuntimeError("boom")
        return run(self, trial)

    monkeypatch.setattr(Worker, "run", broken)
    swept = run_study(study(TUNED))
    assert (len(swept.outcome.failures), swept.plan.layout.choices, swept.complete) == (3, [], False)
    assert swept.report.partial.startswith(f"Partial: {4 + 6} of ")
    assert swept.outcome.done == 4 + 6
    monkeypatch.setattr(Worker, "run", run)
    assert run_study(study(TUNED)).outcome.done == 3 + 3


def test_a_candidate_without_a_score_is_left_out_of_the_choice(study, monkeypatch):
    run, account = Worker.run, worker._account

    def unscored(evaluation):
        told = account(evaluation)
        told["tasks"]["add"] |= {"value": None, "error": "NaN logits"}
        return {**told, "incomplete": True}

    def broken(self, trial):
        lost = trial.merge is not None and trial.merge.parameters["lambda"] == LAMBDAS[0]
        monkeypatch.setattr(worker, "_account", unscored if lost else account)
        return run(self, trial)

    monkeypatch.setattr(Worker, "run", broken)
    config = study("+methods.ta={method:task_arithmetic,grid:{lambda:[0.2,1]},select:validation}")
    swept = run_study(config)
    assert [failure.reason for failure in swept.outcome.failures] == ["add: NaN logits"] * 3
    finals = [p for p in swept.plan.layout.planned if p.selected]
    assert [p.parameters["lambda"] for p in finals] == [1.0] * 3
    assert all(Store(config.store).has("results", p.trial.key, complete=True) for p in finals)
    (note,) = [note for note in swept.plan.layout.notes if "add + dist" in note]
    assert "1 of 2 candidates of ta (add + dist, tiny), because a task has no score" in note


def test_attacked_suites_and_restricted_ones_share_the_choice(study):
    config = study(
        TUNED, "attacks=[deepwordbug]", "sampler.sizes=[]", "sampler.subsets=[{experts:[add,dist],tasks:[add]}]"
    )
    swept = run_study(config)
    finals = [p for p in swept.plan.layout.planned if p.selected]
    assert [(p.suite.attack, list(p.suite.tasks)) for p in finals] == [("none", ["add"]), ("deepwordbug", ["add"])]
    assert len({p.trial.model_key for p in finals}) == 1
    told = {e.describe()["settings"]["tasks"]["add"]["split"] for e in Store(config.store).entries("results")}
    assert told == {None, "validation"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("methods.ta.select=test",), "add would be chosen on the split that is reported"),
        (("suite.split=validation",), "add would be chosen on the split that is reported"),
        (("suite.tasks.add.split=validation",), "add would be chosen"),
        (("methods.ta.select=validaton",), "a built-in skill has no split 'validaton'.*validation"),
    ],
)
def test_choosing_on_what_is_reported_is_refused(study, more, says):
    with pytest.raises(UserError, match=f"(?s){says}"):
        run_study(study(TUNED, *more))


def test_each_result_is_read_once_in_a_command(study, monkeypatch):
    from pathlib import Path

    config = study("+methods.ta={method:task_arithmetic,grid:{lambda:[0.2,1]}}")
    run_study(config)
    reads, read_bytes = [], Path.read_bytes

    def counted(self, *args, **kwargs):
        if self.name == "entry.json" and self.parent.parent.name == "results":
            reads.append(self)
        return read_bytes(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_bytes", counted)
    again = run_study(config)
    assert again.plan.cached == 10
    assert len(reads) == len(set(reads)) == 10
