"""The studies of conf/experiment: what each says of itself, what it asks for, and that it runs in the small world."""

import dataclasses
import functools
from pathlib import Path

import pytest

from benchmarks.experiments import lacking
from conf.compose import FOLDER, compose
from conf.errors import UserError
from conf.schema import Config
from pipelines.evaluate.suite import check_suite
from pipelines.study.check import check_study
from pipelines.study.plan import Plan, make_plan
from pipelines.study.sources import access_of, pool_recipes
from pipelines.study.sweep import run_study
from pipelines.tiny.pictures import SKILLS as PICTURES

EXPERIMENTS = sorted(file.stem for file in (FOLDER / "experiment").glob("*.yaml"))
SKILLS = ("add", "dist", "med", "second", "count", "seq", "odd", "close", "at", "back", "most", "top")
OF_PICTURES = [name for name in EXPERIMENTS if "vision" in name]


@functools.cache
def only(*overrides: str) -> Config:
    """The one configuration of these overrides; a test that changes it copies it."""
    ((config, _),) = compose(list(overrides))
    return config


def tiny(name: str) -> Config:
    """A study in the small world."""
    return only(f"+experiment={name}", "+scale=tiny")


def plan_of(name: str, folder: Path) -> Plan:
    """A study in the small world, planned over an empty store."""
    config = dataclasses.replace(tiny(name), store=str(folder / "store"))
    return make_plan(config, access_of(config))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_study_says_how_it_is_run_and_every_method_checks(name):
    package, command, *_ = (FOLDER / "experiment" / f"{name}.yaml").read_text().splitlines()
    config = only(f"+experiment={name}")
    assert package == "# @package _global_"
    assert command == f"# {config.about}"
    assert config.about.startswith(f"mergebench sweep +experiment={name}")
    assert config.name == name
    check_study(config)
    assert config.scale.name == "full"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_studys_suites_are_of_tasks_that_there_are(name):
    config = only(f"+experiment={name}")
    suites = [config.suite, *(pool.suite for pool in config.pools.values() if pool.suite)]
    attacks = dict.fromkeys([config.suite.attack, *config.attacks])
    checked = [check_suite(dataclasses.replace(suite, attack=attack)) for suite in suites for attack in attacks]
    wanted = ("needs the package", "need the package", "on no hub")  # what a user has to bring
    assert [line for problems in checked for line in problems if not any(word in line for word in wanted)] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_study_plans_in_the_small_world(name, tmp_path):
    config, plan = tiny(name), plan_of(name, tmp_path)
    assert plan.problems == []
    assert plan.waiting == len(plan.layout.planned) > 0
    pictures = name in OF_PICTURES
    for pool in config.pools.values():
        assert (pool.base.path, pool.experts, pool.suite) == ("", {}, None)
        known = tuple(PICTURES) if pictures else SKILLS if name != "mergopt_pool" else SKILLS[:7]
        assert tuple(pool.tasks) == tuple(config.suite.tasks) == known
        assert [(task.images or task).skill for task in pool.tasks.values()] == list(pool.tasks)
    assert config.suite.name == ("pictures" if pictures else "skills")


def test_the_in_the_wild_protocol(tmp_path):
    full = only("+experiment=in_the_wild")
    names = [expert.path for pool in full.pools.values() for expert in pool.experts.values()]
    assert [len(pool.experts) for pool in full.pools.values()] == [12, 12, 12, 12]
    assert len(set(names)) == 48
    assert len(full.suite.tasks) == 16
    planned = plan_of("in_the_wild", tmp_path).layout.planned
    assert len(planned) == 13 + 76 * 7 == 545
    by_method = {m: [p.experts for p in planned if p.label == m] for m in full.methods}
    assert all(subsets == by_method["ties"] for subsets in by_method.values()), "the same subsets for every method"
    assert len(set(by_method["ties"])) == 76


def test_pools_that_differ_only_in_base_become_one():
    assert list(only("+experiment=mergopt_main").pools) == [
        f"{kind}_{base}"
        for base in ("llama_1b", "llama_3b", "llama_8b", "qwen_1_5b")
        for kind in ("standard", "mergopt")
    ]
    assert list(tiny("mergopt_main").pools) == ["standard", "mergopt"]
    assert list(tiny("in_the_wild").pools) == ["tiny"]


def test_training_is_carried_over_in_the_small_worlds_units():
    reference = only("+pool@pools.tiny=tiny").pools["tiny"]
    standard = tiny("mergopt_main").pools["standard"]
    assert standard == reference, "a paper's defaults are this world's defaults, so that experts are shared"
    scales = [pool.finetuning.get("scale") for pool in tiny("mergopt_ablation_scale").pools.values()]
    assert scales == [None, 6.5e-3, 1.3e-2, 0.65]
    rates = [pool.optimizer.lr for pool in tiny("mergopt_ablation_lr").pools.values()]
    assert rates == [5e-4, 5e-4, 1e-3, 1e-3, 2e-3, 2e-3]
    sizes = [pool.training.batch_size for pool in tiny("mergopt_ablation_batch_size").pools.values()]
    assert sizes == [32, 32, 64, 64, 128, 128]
    assert {pool.optimizer.name for pool in tiny("mergopt_sgd").pools.values()} == {"sgd"}
    assert tiny("mergopt_ablation_lr").pools["mergopt_lr_4e-5"].reference == "standard_lr_4e-5"


def test_studies_of_pictures_are_small_in_their_own_world():
    full, small = only("+experiment=mergopt_vision"), tiny("mergopt_vision")
    assert list(full.suite.tasks) == list(full.pools["standard"].tasks)
    assert [
        (t.images, full.suite.tasks[name].images)
        for name, t in full.pools["standard"].tasks.items()
        if t.images != full.suite.tasks[name].images
    ] == [], "trained on the data sets that are scored"
    assert {(p.optimizer.lr, p.training.batch_size, p.base.name) for p in small.pools.values()} == {
        (5e-4, 64, "tiny_clip")
    }
    for count in (8, 20):
        found = only(f"+experiment=vision_{count}")
        (pool,) = found.pools.values()
        assert list(pool.experts) == list(found.suite.tasks)
        assert len({expert.path for expert in pool.experts.values()}) == count
        assert list(tiny(f"vision_{count}").pools) == ["clip_vit_b_32"]


def test_equal_time_is_half_of_the_steps():
    pools = tiny("mergopt_vs_sam").pools
    steps = {name: {r.training.steps for r in pool_recipes(pool).values()} for name, pool in pools.items()}
    assert steps["sam"] == steps["mergopt"] == {75}
    assert steps["sam_time"] == steps["asam_time"] == {38}
    full = only("+experiment=mergopt_vs_sam").pools
    epochs = {name: pool_recipes(pool)["cstance"].task.epochs for name, pool in full.items()}
    assert (epochs["sam"], epochs["sam_time"]) == (5.0, 2.5)


def test_the_papers_values():
    def settings(name: str, part: str, key: str) -> list[object]:
        pools = only(f"+experiment={name}").pools.values()
        return [
            pool.finetuning.get(key) if part == "finetuning" else getattr(getattr(pool, part), key) for pool in pools
        ]

    assert settings("mergopt_ablation_scale", "finetuning", "scale") == [None, 5e-4, 1e-3, 0.05]
    assert settings("mergopt_ablation_loc", "finetuning", "loc") == [-0.1, 0.0, 0.1]
    assert settings("mergopt_ablation_distribution", "finetuning", "distribution") == [None, "gaussian", "laplace"]
    assert settings("mergopt_ablation_lr", "optimizer", "lr") == [1e-5, 1e-5, 2e-5, 2e-5, 4e-5, 4e-5]
    assert settings("mergopt_ablation_batch_size", "training", "batch_size") == [4, 4, 8, 8, 16, 16]
    assert settings("mergopt_sgd", "optimizer", "lr") == [2e-5, 2e-5]
    assert settings("mergopt_sgd", "optimizer", "weight_decay") == [0.001, 0.001]
    coefficients = only("+experiment=mergopt_ablation_coefficient").methods["task_arithmetic"]["grid"]
    assert coefficients == {"lambda": [round(0.1 * step, 1) for step in range(1, 11)]}


def test_the_largest_base_has_four_tasks():
    pools = only("+experiment=mergopt_main").pools
    four = ["cstance", "fomc", "scienceqa", "numglue_cm"]
    assert [list(pools[f"{kind}_llama_8b"].tasks) for kind in ("standard", "mergopt")] == [four, four]
    assert list(pools["standard_llama_8b"].suite.tasks) == four
    trace = only("+experiment=mergopt_main").suite.tasks
    assert all(task == trace[name] for name, task in pools["standard_llama_8b"].suite.tasks.items())
    seven = pools["standard_llama_1b"]
    assert dataclasses.replace(
        pools["standard_llama_8b"], base=seven.base, tasks={}, suite=None
    ) == dataclasses.replace(seven, tasks={}), "trained as the others"
    assert {len(pool.tasks) for name, pool in pools.items() if "8b" not in name} == {7}


def test_groups_are_scored_on_their_own_tasks(tmp_path):
    planned = plan_of("mergopt_groups", tmp_path).layout.planned
    assert all(tuple(sorted(p.suite.tasks)) == tuple(sorted(p.experts)) for p in planned)
    assert sorted({len(p.experts) for p in planned}) == [2, 4, 6]
    assert len({p.experts for p in planned}) == 6


def test_one_of_a_mixed_pair_is_trained_differently():
    methods = {
        name: [recipe.finetuning["method"] for recipe in pool_recipes(pool).values()]
        for name, pool in only("+experiment=mergopt_mixed").pools.items()
    }
    pair = {name: tuple(ways[4:6]) for name, ways in methods.items()}
    assert pair == {"standard": ("plain",) * 2, "mixed": ("plain", "mergopt"), "mergopt": ("mergopt",) * 2}
    ((first, second),) = [subset["experts"] for subset in only("+experiment=mergopt_mixed").sampler.subsets]
    assert (first, second) == tuple(pool_recipes(only("+experiment=mergopt_mixed").pools["mixed"]))[4:6]
    small = pool_recipes(tiny("mergopt_mixed").pools["mixed"])
    ((_, moved),) = [subset["experts"] for subset in tiny("mergopt_mixed").sampler.subsets]
    assert small[moved].finetuning["method"] == "mergopt", "the small world's pair is mixed too"


def test_merges_by_domain(tmp_path):
    full = only("+experiment=homogeneous")
    paths = [expert.path for pool in full.pools.values() for expert in pool.experts.values()]
    assert len(set(paths)) == 12
    medical, math, everything = full.sampler.subsets
    assert [*medical["tasks"], *math["tasks"]] == list(full.suite.tasks), "each task is of one domain"
    assert {*medical["experts"], *math["experts"]} == {*everything["experts"]} == {*full.pools["qwen_8b"].experts}
    assert "tasks" not in everything
    views = full.report.figures
    assert [views[name].where["task"] for name in ("medical", "math")] == [medical["tasks"], math["tasks"]]


def test_orders_draws_and_attacks(tmp_path):
    planned = plan_of("m3_triple", tmp_path).layout.planned
    orders = {p: [m.experts for m in planned if m.label == "p_series" and m.parameters["p"] == p] for p in (0, 1)}
    assert len(set(orders[1])) == 6
    assert len(orders[1]) == 6 * 5, "five scales"
    assert len(orders[0]) == 5, "one model at p = 0, whatever the order"
    planned = plan_of("m3_robustness", tmp_path).layout.planned
    attacks = [p.suite.attack for p in planned if p.label == "task_arithmetic"]
    assert sorted(attacks) == sorted(["none", "stresstest", "deepwordbug"] * 3)


def test_the_small_world_asks_no_model_of_the_hub_to_attack():
    small = tiny("m3_robustness")
    assert list(small.attacks) == ["stresstest", "deepwordbug"]
    assert list(small.report.tables) == ["stresstest", "deepwordbug"]
    assert list(only("+experiment=m3_robustness", "+scale=tiny", "attacks=['bertattack:DIR']").attacks) == [
        "bertattack:DIR"
    ]


def test_values_of_the_command_line_win():
    config = only("+experiment=in_the_wild", "+scale=tiny", "sampler.samples=2", "suite.limit=20", "~methods.tsv_m")
    assert (config.sampler.samples, config.suite.limit) == (2, 20)
    assert "tsv_m" not in config.methods
    assert only("+experiment=in_the_wild", "+scale=tiny", "suite=real_mini").suite.name == "real_mini"
    other = only("+experiment=mergopt_sgd", "+scale=tiny", "pools.mergopt.finetuning.scale=0.5", "~pools.standard")
    assert {name: pool.finetuning["scale"] for name, pool in other.pools.items()} == {"mergopt": 0.5}
    with pytest.raises(UserError, match="did you mean tiny"):
        only("+experiment=in_the_wild", "+scale=tiny", "pools.tinny.seed=1")
    small = only("+experiment=mergopt_pool", "+scale=tiny", "sampler.sizes=[3]")
    assert (small.sampler.sizes, set(map(len, (p.seeds for p in small.pools.values())))) == ([3], {3})
    assert len(only("+experiment=mergopt_pool").pools) == 12
    assert "pool_74" not in small.pools
    assert only("+experiment=quickstart", "+scale=tiny").pools == only("+experiment=quickstart").pools


SELECTED = {
    "task_arithmetic": "{lambda:[0.5,1.0]}", "task_arithmetic_m3": "{alpha:[0.2,1.0],scale:[1.0]}",
    "ties": "{lambda:[1.0],density:[0.5,0.7]}", "average_m3": "{alpha:[0.2]}",
}  # fmt: skip
CUTS = {
    "in_the_wild": ["sampler.sizes=[2,3]", "sampler.samples=2"],
    "mergopt_main": ["~methods.average", "~methods.ties"],
    "m3_pairs": [f"~methods.{method}" for method in only("+experiment=m3_pairs").methods if method not in SELECTED]
    + [f"methods.{method}.grid={grid}" for method, grid in SELECTED.items()],
}
"""Experiments with what makes them small enough for a test."""


@pytest.mark.parametrize("name", CUTS)
def test_every_view_that_is_declared_has_its_files(name, tmp_path):
    cut = ["suite.limit=8", "executor.device=cpu", f"store={tmp_path / 'store'}", f"runs={tmp_path / 'runs'}"]
    for pool in tiny(name).pools:
        cut += [f"pools.{pool}.base.steps=10", f"pools.{pool}.training.steps=3"]
        cut += [f"~pools.{pool}.tasks.{skill}" for skill in SKILLS if skill not in ("add", "dist", "med")]
    config = only(f"+experiment={name}", "+scale=tiny", *cut, *CUTS[name])
    study = run_study(config)
    assert study.complete
    assert list(lacking(config.report, study.folder)) == []
    assert [note for note in study.report.notes if "is empty" in note] == []
    table = (study.folder / "leaderboard.csv").read_text()
    assert all(method in table for method in config.methods)
