"""The studies of conf/experiment: what each says of itself, what it asks for, and that it runs in the small world."""

import dataclasses
import functools
from pathlib import Path

import pytest

from conf.compose import FOLDER, compose
from conf.errors import UserError
from conf.schema import Config
from pipelines.study.layout import check_study
from pipelines.study.plan import Plan, make_plan
from pipelines.study.sources import access_of, pool_recipes
from pipelines.study.sweep import run_study

EXPERIMENTS = sorted(file.stem for file in (FOLDER / "experiment").glob("*.yaml"))
SKILLS = ("add", "dist", "med", "second", "count", "seq", "odd", "close", "at", "back", "most", "top")
ISSUED = {
    "in_the_wild", "in_the_wild_lambda", "in_the_wild_unnormalized", "in_the_wild_density", "in_the_wild_beta",
    "homogeneous", "mergopt_main", "mergopt_groups", "mergopt_vs_sam", "mergopt_mixed", "mergopt_sgd", "m3_pairs",
    "m3_triple", "m3_robustness", "mergopt_in_the_wild",
}  # fmt: skip


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


def test_the_papers_studies_are_there():
    assert set(EXPERIMENTS) >= ISSUED
    ablations = {name.removeprefix("mergopt_ablation_") for name in EXPERIMENTS if "ablation" in name}
    assert ablations == {"scale", "loc", "alphas", "max_tasks", "distribution", "batch_size", "lr"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_study_says_how_it_is_run_and_every_method_checks(name):
    package, command, what, *_ = (FOLDER / "experiment" / f"{name}.yaml").read_text().splitlines()
    config = only(f"+experiment={name}")
    assert package == "# @package _global_"
    assert command == f"# {config.about}"
    assert config.about.startswith(f"mergebench sweep +experiment={name}")
    assert what.startswith("# "), "what it reproduces"
    assert config.name == name
    check_study(config)
    assert config.scale.name == "full"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_study_plans_in_the_small_world(name, tmp_path):
    config, plan = tiny(name), plan_of(name, tmp_path)
    assert plan.problems == []
    assert plan.waiting == len(plan.layout.planned) > 0
    for pool in config.pools.values():
        assert (pool.base.path, pool.experts, pool.suite) == ("", {}, None)
        assert tuple(pool.tasks) == SKILLS
        assert [task.skill for task in pool.tasks.values()] == list(SKILLS)
    assert config.suite.name == "skills"


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
    assert scales == [None, 1.3e-3, 6.5e-3, 1.3e-2, 6.5e-2, "fitted"]
    rates = [pool.optimizer.lr for pool in tiny("mergopt_ablation_lr").pools.values()]
    assert rates == [5e-4, 5e-4, 1e-3, 1e-3, 2.5e-3, 2.5e-3]
    sizes = [pool.training.batch_size for pool in tiny("mergopt_ablation_batch_size").pools.values()]
    assert sizes == [32, 32, 64, 64, 128, 128, 256, 256]
    assert {pool.optimizer.name for pool in tiny("mergopt_sgd").pools.values()} == {"sgd"}
    assert tiny("mergopt_ablation_lr").pools["mergopt_lr_5e-5"].reference == "standard_lr_5e-5"


def test_equal_time_is_half_of_the_steps():
    pools = tiny("mergopt_vs_sam").pools
    steps = {name: {r.training.steps for r in pool_recipes(pool).values()} for name, pool in pools.items()}
    assert steps["sam"] == steps["mergopt"] == {75}
    assert steps["sam_time"] == steps["asam_time"] == {38}
    full = only("+experiment=mergopt_vs_sam").pools
    epochs = {name: pool_recipes(pool)["cstance"].task.epochs for name, pool in full.items()}
    assert (epochs["sam"], epochs["sam_time"]) == (5.0, 2.5)


def test_mixed_experts_keep_their_own_training():
    methods = {
        name: [recipe.finetuning["method"] for recipe in pool_recipes(pool).values()]
        for name, pool in tiny("mergopt_mixed").pools.items()
    }
    odd, even = methods["mixed_odd"], methods["mixed_even"]
    assert odd[:7] == ["mergopt", "plain"] * 3 + ["mergopt"]
    assert all({a, b} == {"mergopt", "plain"} for a, b in zip(odd, even))
    assert set(methods["standard"]) == {"plain"}
    assert set(methods["mergopt"]) == {"mergopt"}


def test_orders_draws_and_attacks(tmp_path):
    planned = plan_of("m3_triple", tmp_path).layout.planned
    merges = [p.experts for p in planned if p.label == "p1_s1_0"]
    assert len(set(merges)) == len(merges) == 3 * 6
    assert len({frozenset(m) for m in merges}) == 3
    planned = plan_of("m3_pairs", tmp_path).layout.planned
    assert len([p for p in planned if p.label == "ties_mixup_0_5"]) == 3 * 3
    assert len([p for p in planned if p.label == "ties"]) == 3
    planned = plan_of("m3_robustness", tmp_path).layout.planned
    assert len([p for p in planned if p.kind == "base"]) == 3, "clean and two attacks"


def test_values_of_the_command_line_win():
    config = only("+experiment=in_the_wild", "+scale=tiny", "sampler.samples=2", "suite.limit=20", "~methods.tsv_m")
    assert (config.sampler.samples, config.suite.limit) == (2, 20)
    assert "tsv_m" not in config.methods
    assert only("+experiment=in_the_wild", "+scale=tiny", "suite=real_mini").suite.name == "real_mini"
    other = only("+experiment=mergopt_sgd", "+scale=tiny", "pools.mergopt.finetuning.scale=0.5", "~pools.standard")
    assert {name: pool.finetuning["scale"] for name, pool in other.pools.items()} == {"mergopt": 0.5}
    with pytest.raises(UserError, match="did you mean tiny"):
        only("+experiment=in_the_wild", "+scale=tiny", "pools.tinny.seed=1")
    assert only("+experiment=quickstart", "+scale=tiny").pools == only("+experiment=quickstart").pools


def test_in_the_wild_runs_from_nothing_to_its_report(tmp_path: Path):
    cut = [f"~pools.tiny.tasks.{skill}" for skill in SKILLS if skill not in ("add", "dist", "count")]
    cut += ["pools.tiny.base.steps=10", "pools.tiny.training.steps=3", "suite.limit=10", "executor.device=cpu"]
    cut += ["sampler.sizes=[2,3]", "sampler.samples=2", f"store={tmp_path / 'store'}", f"runs={tmp_path / 'runs'}"]
    config = only("+experiment=in_the_wild", "+scale=tiny", *cut)
    study = run_study(config)
    assert study.complete
    assert study.outcome.done == 1 + 3 + (2 + 1) * 7
    table = (study.folder / "leaderboard.csv").read_text()
    assert all(method in table for method in config.methods)
