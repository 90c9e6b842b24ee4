"""Whole searches on the quick pool: resumed, extended, interrupted, refused, and what they report."""

import json
import sys

import pyarrow.parquet as pq
import pytest

from conf.errors import UserError
from pipelines.search.run import run_search
from pipelines.store.gc import collect_garbage
from pipelines.store.records import studies
from pipelines.store.samples import DOCUMENTS
from pipelines.store.store import Store
from pipelines.study.worker import Worker

LAMBDA = "+search.space.lambda={low:0.1,high:1.5}"


def tried(found):
    """What was scored and how, in the order of the proposals."""
    return sorted((c.number, c.values["lambda"], c.score) for c in found.candidates if not c.default)


def splits(store):
    """How many results there are of each split."""
    told = [e.describe()["settings"]["tasks"]["add"]["split"] for e in Store(store).entries("results")]
    return {split: told.count(split) for split in set(told)}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_in_parts_is_the_same_search(make, other_store, sampler, monkeypatch):
    settings = (f"search={sampler}", LAMBDA, "search.startup=2")
    parts = [run_search(make(*settings, f"search.trials={n}")) for n in (2, 5)]
    whole = run_search(make(*settings, "search.trials=5", store=other_store))
    assert tried(parts[1]) == tried(whole)
    assert len(tried(whole)) == 5
    assert tried(parts[0]) == tried(whole)[:2]
    monkeypatch.setattr(Worker, "run", lambda *_: pytest.fail("what was scored is scored again"))
    assert tried(run_search(make(*settings, "search.trials=5"))) == tried(whole)


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(make, other_store, monkeypatch):
    settings = (LAMBDA, "search.trials=5", "search.startup=2")
    run, calls = Worker.run, []

    def stopped(self, trial):
        calls.append(trial)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run(self, trial)

    monkeypatch.setattr(Worker, "run", stopped)
    first = run_search(make(*settings))
    assert (first.interrupted, first.tried, first.difference) == (True, 2, None)
    monkeypatch.setattr(Worker, "run", run)
    again = run_search(make(*settings))
    assert not again.interrupted
    assert tried(again) == tried(run_search(make(*settings, store=other_store)))


def test_a_grid_is_searched_whole_and_only_the_chosen_one_and_the_default_are_tested(make, own_store):
    found = run_search(make("search=grid", "+search.space.lambda=[0.2,0.6]", "+search.space.density=[0.1,0.5,1.0]"))
    assert found.tried == 6
    pairs = {(c.values["lambda"], c.values["density"]) for c in found.candidates if not c.default}
    assert pairs == {(x, d) for x in (0.2, 0.6) for d in (0.1, 0.5, 1.0)}
    assert found.best.score == max(c.score for c in found.candidates)
    tests = {c.tuning.key for c in found.candidates if c.test is not None}
    assert splits(own_store) == {"validation": 7, "test": len(tests)}
    assert tests == {found.best.tuning.key, next(c.tuning.key for c in found.candidates if c.default)}


def test_the_difference_is_that_of_the_documents(make, own_store):
    found = run_search(make("search=grid", "+search.space.lambda=[-3.0]"))
    store = Store(own_store)
    means = {}
    for entry in store.entries("results"):
        about = entry.describe()
        if about["settings"]["tasks"]["add"]["split"] == "test":
            table = pq.read_table(entry.folder / DOCUMENTS).to_pandas()
            means[about["recipe"]["parameters"]["lambda"]] = table.groupby("task")["value"].mean().mean()
    if found.best.default:
        assert found.difference.estimate == 0
        assert found.difference.p == 1
    else:
        assert found.difference.estimate == pytest.approx(means[-3.0] - means[1.0])
        assert found.difference.low <= found.difference.estimate <= found.difference.high
    assert found.best.test.estimate == pytest.approx(means[found.best.values["lambda"]])


def test_tuning_on_what_is_reported_is_refused_unless_forced_and_then_labelled(make, own_store):
    same = ("search.split=test", "search.trials=1", "search=random", LAMBDA)
    with pytest.raises(UserError, match=r"add would be tuned on the split that is reported.*search.force=true"):
        run_search(make(*same))
    assert Store(own_store).entries("results") == []
    forced = run_search(make(*same, "search.force=true"))
    assert "tuned on the split that is reported (add, dist)" in forced.label
    assert forced.to_dict()["tuned_on_reported_split"] == ["add", "dist"]
    assert run_search(make("search.trials=1", "search=random", LAMBDA)).label == ""


def test_a_task_whose_two_splits_are_one_is_refused(make, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ntest_split: validation\nvalidation_split: validation\n"
        "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: t\n"
    )
    with pytest.raises(UserError, match="mine would be tuned"):
        run_search(make(f"suite.include_path={tmp_path}/tasks", "+suite.tasks.mine.task=mine", LAMBDA))


def test_weights_of_each_expert_by_cma_es(make):
    found = run_search(
        make("method=linear", "search=cmaes", "search.trials=5", "search.startup=2", "experts=[dist,add]",
             "+search.space.weight={per_expert:true,low:0,high:1}")
    )  # fmt: skip
    assert found.experts == ["dist", "add"]
    assert len({c.tuning.key for c in found.candidates}) == 6
    chosen = next(c for c in found.candidates if not c.default)
    assert set(chosen.values) == {"weight.dist", "weight.add"}
    assert chosen.to_dict()["parameters"]["weight"] == [chosen.values["weight.dist"], chosen.values["weight.add"]]


def test_found_experts_and_methods_that_need_statistics(make, tiny_pool):
    found = run_search(make("method=fisher", "search=random", "search.trials=1", "collect.examples=4", LAMBDA))
    assert found.tried == 1
    paths = f"experts=[{tiny_pool.experts[0]},{tiny_pool.experts[1]}]"
    given = run_search(make("~pools.tiny", paths, f"base.path={tiny_pool.base}", "search.trials=1", LAMBDA))
    assert len(given.experts) == 2
    with pytest.raises(UserError, match=r"no expert 'ad'.*add"):
        run_search(make("experts=[ad,dist]"))


def test_a_configuration_that_fails_is_told_and_the_others_are_scored(make, monkeypatch):
    run = Worker.run

    def broken(self, trial):
        if trial.merge.parameters["lambda"] == 0.2:
            raise RuntimeError("boom")
        return run(self, trial)

    monkeypatch.setattr(Worker, "run", broken)
    settings = ("search=grid", "+search.space.lambda=[0.2,0.6]", "executor.retries=0")
    found = run_search(make(*settings))
    assert found.tried == 1
    assert "boom" in next(iter(found.failed.values()))
    monkeypatch.setattr(Worker, "run", run)
    assert run_search(make(*settings)).tried == 2, "a point that failed is tried again"


def test_the_store_remembers_searches(make, own_store):
    found = run_search(make("search=random", "search.trials=2", LAMBDA, "name=mine"))
    store = Store(own_store)
    (record,) = studies(store)
    assert (record.name, record.kind) == ("mine", "search")
    assert set(record.keys["results"]) == {e.key for e in store.entries("results")}
    assert not [w for w in collect_garbage(store).waste if w.kind in ("results", "searches")]
    assert json.loads((found.folder / "search.json").read_text())["tried"] == 2
    assert len((found.folder / "trials.csv").read_text().splitlines()) == 1 + len(found.candidates)
    collect_garbage(store, forget=["mine"], delete=True)
    assert not found.folder.exists()


def test_without_optuna_it_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"mergebench\[search\]"):
        run_search(make())


def test_a_front_is_what_nothing_beats(make, own_store, other_store):
    settings = ("search=nsga2", LAMBDA, "search.startup=3", "search.objectives=[add,dist,length]")
    parts = [run_search(make(*settings, f"search.trials={n}")) for n in (2, 6)]
    whole = run_search(make(*settings, "search.trials=6", store=other_store))
    assert tried(parts[1]) == tried(whole)  # resumed, and past the first generation
    points = {c.tuning.key: (c.scores[0], c.scores[1], -c.scores[2]) for c in whole.candidates}
    beaten = {
        key for key, p in points.items() if any(o != p and all(map(lambda x, y: x >= y, o, p)) for o in points.values())
    }
    assert {c.tuning.key for c in whole.front} == set(points) - beaten
    for c in whole.candidates:
        about = Store(other_store).entry("results", c.tuning.key).describe()
        assert list(c.scores) == [about["tasks"]["add"]["value"], about["tasks"]["dist"]["value"], about["update_norm"]]
    reported = [c for c in whole.candidates if c.reported]
    assert {c.tuning.key for c in reported} == {c.tuning.key for c in whole.candidates if c.default or c in whole.front}
    assert splits(other_store)["test"] == len(reported)
    told = json.loads((whole.folder / "search.json").read_text())
    assert len(told["front"]) == len(whole.front)
    assert (whole.folder / "front.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["search.objectives=[mean,wurst]"], "no objective is called 'wurst'"),
        (["search.objectives=[mean]"], "one objective is no front"),
        (["search=cmaes", "search.objectives=[mean,worst]"], "cmaes has one objective"),
    ],
)
def test_objectives_that_mean_nothing(make, given, words):
    with pytest.raises(UserError, match=words):
        run_search(make(LAMBDA, *given))
