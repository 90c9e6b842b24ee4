"""What a study says of its methods beside their parameters: grids, draws, orders; and of subsets: lists with tasks."""

import itertools

import pytest

from conf.compose import compose
from conf.errors import UserError
from mergeopt_core.merging.info import Parameter
from mergeopt_core.merging.mixup import mixing_weights
from pipelines.study.methods import WORDS, study_method
from pipelines.study.plan import make_plan
from pipelines.study.recipes import all_methods
from pipelines.study.sources import access_of
from pipelines.study.sweep import run_study, trial_rows

SUITE = ("suite=custom", "+suite.tasks.add.skill=add", "+suite.tasks.dist.skill=dist", "suite.limit=8")


@pytest.fixture
def study(tiny_pool, tmp_path, own_store):
    """Configurations of a study without methods over the quick pool."""

    def config(*more):
        places = (f"store={own_store}", f"runs={tmp_path}/runs", "name=grids", "executor.device=cpu")
        ((composed, _),) = compose([*tiny_pool.overrides, *SUITE, *places, *more])
        return composed

    return config


def plan_of(config):
    return make_plan(config, access_of(config))


def merges(config):
    return [p for p in plan_of(config).layout.planned if p.kind == "merge"]


def keys(planned):
    return [p.trial.key for p in planned]


def test_a_grid_is_the_study_written_out(study):
    sizes = "sampler.sizes=[2]"
    grid = merges(study(sizes, "+methods.ties={method:ties,grid:{density:[0.2,0.5],lambda:[0.3,1.0]}}"))
    pairs = list(itertools.product((0.2, 0.5), (0.3, 1.0)))
    written = [f"+methods.t{i}={{method:ties,density:{d},lambda:{x}}}" for i, (d, x) in enumerate(pairs)]
    assert sorted(keys(grid)) == sorted(keys(merges(study(sizes, *written))))
    assert len(set(keys(grid))) == 3 * 4
    assert {p.label for p in grid} == {"ties"}
    first = [(p.parameters["density"], p.parameters["lambda"]) for p in grid if p.experts == grid[0].experts]
    assert first == pairs, "a subset's whole grid at once, the last parameter fastest"
    assert [p.experts for p in grid[:4]] == [grid[0].experts] * 4


def test_grids_reach_into_parameters_and_beside_values_by_expert(study):
    inner = "+methods.l={method:linear,weight:{add:0.5,dist:0.2},grid:{weight.dist:[0.1,0.9]}}"
    nested = "+methods.l={method:linear,weight:{add:0.5,dist:0.2},grid:{weight:{dist:[0.1,0.9]}}}"
    subset = "sampler.subsets=[[add,dist]]"
    assert [p.parameters["weight"] for p in merges(study(subset, inner))] == [[0.5, 0.1], [0.5, 0.9]]
    assert keys(merges(study(subset, inner))) == keys(merges(study(subset, nested)))
    both = "+methods.l={method:linear,weight:{add:0.5,dist:0.2},grid:{normalize:[true,false]}}"
    assert [p.parameters["weight"] for p in merges(study(subset, both))] == [[0.5, 0.2]] * 2
    lists = "+methods.l={method:linear,grid:{weight:[[0.3,0.7],[1,0]]}}"
    assert [p.parameters["weight"] for p in merges(study(subset, lists))] == [[0.3, 0.7], [1, 0]]


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("{method:ties,grid:{lambada:[1]}}", "no parameter 'lambada'.*lambda"),
        ("{method:ties,grid:{lambda:[]}}", "lambda has no values"),
        ("{method:ties,grid:{lambda:0.3}}", "lambda is 0.3, and no list"),
        ("{method:ties,grid:[0.3]}", "grid is .*by parameter"),
        ("{method:ties,grid:{lambda:[[0.1,0.2]]}}", "lambda is one float for all experts"),
        ("{method:ties,grid:{density:[0.1,2.5]}}", "density is between"),
        ("{method:ties,density:0.2,grid:{density.add:[0.1]}}", "density is 0.2, and the grid moves add within it"),
        ("{method:ties,gird:{lambda:[1]}}", "no parameter 'gird'.*grid"),
        ("{method:dare_linear,draws:0}", "draws is 0"),
        ("{method:ties,select:true}", "select is True.*select: validation"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_runs(study, method, says):
    with pytest.raises(UserError, match=f"(?s){says}"):
        plan_of(study("sampler.sizes=[2]", f"+methods.wrong={method}"))


def test_no_methods_parameter_has_the_name_of_a_studys_word():
    parameters = [p for info in all_methods() for p in info.parameters]
    assert all(isinstance(p, Parameter) and p.name not in WORDS for p in parameters)


def test_draws_of_its_own_depend_on_method_and_subset(study):
    shared = merges(study("sampler.sizes=[2]", "sampler.draws=2", "+methods.m={method:mixup}"))
    assert {p.trial.merge.seed for p in shared} == {0, 1}, "the sampler's draws are shared, as they always were"
    own = "+methods.m={method:mixup,draws:2,grid:{alpha:[0.5,2]}}", "+methods.n={method:mixup,draws:2}"
    found = merges(study("sampler.sizes=[2]", "+methods.t={method:ties}", *own))
    seeds = {(p.label, p.experts, p.trial.merge.seed) for p in found if p.label != "t"}
    assert len(seeds) == 2 * 3 * 2
    assert len({seed for *_, seed in seeds}) == len(seeds), "no two methods, subsets or draws share a seed"
    assert len(found) == 3 + 3 * 2 * 2 + 3 * 2
    for p in (p for p in found if p.label == "n"):
        first = mixing_weights("auto", 2, alpha=1.0, seed=p.trial.merge.seed)[0]
        assert p.drawn == {"lambda": first}, "λ is told as it is drawn"
    assert study_method("m", {"method": "mixup", "draws": 2}).seed(1, ("add", "dist"), 0) != seeds


def test_orders_and_draws_that_give_one_model_are_one_trial(study):
    count = {}
    for label, method in {
        "p0": "{method:mixup,weights:p_series,p:0}",
        "p1": "{method:mixup,weights:p_series,p:1}",
        "drawn": "{method:mixup}",
        "stated": "{method:mixup,weight:0.3}",
        "masked": "{method:mixup,weights:p_series,p:0,base_method:dare}",
        "equal": "{method:linear,weight:[0.2,0.2,0.2]}",
        "by_place": "{method:linear,weight:[0.2,0.3,0.5]}",
        "by_name": "{method:linear,weight:{add:0.2,dist:0.3,count:0.5}}",
        "boosted_ties": "{method:subspace_boosting,base_method:ties}",
        "boosted_mixup": "{method:subspace_boosting,base_method:mixup,base_parameters:{weights:p_series}}",
        "mixed": "{method:mixup,weights:p_series,grid:{p:[0,1],scale:[0.5,1]}}",
    }.items():
        found = merges(study("sampler.sizes=[3]", "sampler.orders=9", "sampler.draws=2", f"+methods.{label}={method}"))
        assert len(set(keys(found))) == len(found)
        assert found[0].experts == ("add", "dist", "count"), "the pool's order is the first"
        count[label] = len(found)
    assert count == {
        "p0": 1, "p1": 6, "drawn": 12, "stated": 1, "masked": 2, "equal": 1, "by_place": 6, "by_name": 1,
        "boosted_ties": 1, "boosted_mixup": 6, "mixed": 2 + 2 * 6,
    }  # fmt: skip


def test_listed_subsets_are_scored_on_their_own_tasks(study, tmp_path):
    subsets = "sampler.subsets=[{experts:[dist,add],tasks:[add]},{experts:[add,count],tasks:[dist,add]}]"
    config = study(subsets, "+methods.ties={method:ties}")
    swept = run_study(config)
    assert swept.complete
    rows = trial_rows(swept.plan, access_of(config))
    table = {(row.label, row.suite): (sorted(row.scores), row.key) for row in rows}
    assert {name: tasks for name, (tasks, _) in table.items()} == {
        ("base", "custom: add"): ["add"],
        ("base", "custom"): ["add", "dist"],
        ("add", "custom: add"): ["add"],
        ("add", "custom"): ["add", "dist"],
        ("dist", "custom: add"): ["add"],
        ("count", "custom"): ["add", "dist"],
        ("ties of add, dist", "custom: add"): ["add"],
        ("ties of add, count", "custom"): ["add", "dist"],
    }
    assert table["base", "custom: add"][1] == table["base", "custom"][1], "no task of the base is scored twice"
    assert swept.outcome.done == len({key for _, key in table.values()}) == 6
    whole = {row.label: row for row in trial_rows(plan_of(study("+methods.ties={method:ties}")), access_of(config))}
    assert whole["base"].key == table["base", "custom"][1], "all tasks are the suite itself"
    alone = next(row for row in rows if row.label == "ties of add, dist")
    full = study("+methods.ties={method:ties}", "sampler.subsets=[[add,dist]]", "~suite.tasks.dist")
    assert [p.trial.key for p in merges(full)] == [alone.key], "a restricted suite is the suite with these tasks"
    assert len({row.panel for row in swept.report.leaderboard if row.kind == "base"}) == 2


def test_settings_of_a_grid_stand_apart_in_the_leaderboard(study):
    config = study("sampler.subsets=[[add,dist]]", "+methods.ties={method:ties,grid:{lambda:[0.5,1]}}")
    swept = run_study(config)
    assert [row.method for row in swept.report.leaderboard if row.kind == "merge"] == [
        "ties lambda=0.5",
        "ties lambda=1",
    ]
    assert {row.method for row in trial_rows(swept.plan, access_of(config)) if row.kind == "merge"} == {"ties"}


def test_a_subset_may_have_a_suite_of_its_own_and_orders_of_the_pool(study):
    subset = "sampler.subsets=[[dist,add],{experts:[count,add],suite:{name:own,tasks:{count:{skill:count}},limit:4}}]"
    found = plan_of(study(subset, "+methods.ties={method:ties}")).layout.planned
    told = [(p.label, p.suite.name, list(p.trial.suite.tasks), p.experts) for p in found]
    assert ("ties", "custom", ["add", "dist"], ("add", "dist")) in told
    assert ("ties", "own", ["count"], ("add", "count")) in told
    assert [(suite, tasks) for label, suite, tasks, _ in told if label == "count"] == [("own", ["count"])]
    assert [suite for label, suite, *_ in told if label == "base"] == ["custom", "own"]


@pytest.mark.parametrize(
    ("subsets", "says"),
    [
        ("[[add,dits]]", "no pool has an expert 'dits'.*dist"),
        ("[{experts:[add,dist],task:[add]}]", "a subset has no 'task'.*tasks"),
        ("[{experts:[add,dist],tasks:[adder]}]", "suite custom has no task 'adder'.*add"),
        ("[{experts:[add,dist],tasks:[]}]", "tasks of a subset is"),
        ("[add]", "experts of a subset is 'add'"),
        ("[[add,add]]", "names an expert twice"),
        ("[{experts:[add,dist],suite:{nme:x}}]", "suite cannot be read"),
        ("[{experts:[add],suite:{name:x},tasks:[add]}]", "tasks and a suite"),
    ],
)
def test_subsets_that_cannot_be_are_refused(study, subsets, says):
    with pytest.raises(UserError, match=f"(?s){says}"):
        plan_of(study(f"sampler.subsets={subsets}", "+methods.ties={method:ties}"))


def test_a_subset_that_one_pool_lacks_is_left_out_there(study):
    other = ("+pools.other.tasks.med.skill=med", "+pools.other.tasks.add.skill=add", "+pools.other.base.name=tiny")
    config = study(*other, "sampler.subsets=[[add,dist],[add,med]]", "+methods.ties={method:ties}")
    plan = plan_of(config)
    assert [(p.pool, p.experts) for p in plan.layout.planned if p.kind == "merge"] == [
        ("tiny", ("add", "dist")), ("other", ("med", "add")),
    ]  # fmt: skip
    assert [note for note in plan.layout.notes if "tiny" in note] == [
        "Left out: add + med in tiny, which lacks some of these experts."
    ]
    assert not any("count" in (p.label, *p.experts) for p in plan.layout.planned), "no subset is of it"
    with pytest.raises(UserError, match=r"no pool has all of count, med"):
        plan_of(study(*other, "sampler.subsets=[[count,med]]", "+methods.ties={method:ties}"))
    with pytest.raises(UserError, match="both sizes and subsets"):
        plan_of(study("sampler.sizes=[2]", "sampler.subsets=[[add,dist]]", "+methods.ties={method:ties}"))
