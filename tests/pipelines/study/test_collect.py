"""Data statistics: collected once, found by trials, part of their keys; Fisher merging and RegMean use them."""

import dataclasses

import pytest
import torch

from conf.compose import compose
from conf.errors import UserError
from conf.schema import Collect
from pipelines.study.collect import collect_information
from pipelines.study.information import Expert, Information, find_information, need_information, pool_experts
from pipelines.study.plan import make_plan
from pipelines.study.single import merge_checkpoint
from pipelines.study.sources import Source, Unmade, access_of, find_base
from pipelines.study.sweep import run_study

SUITE = ("suite=custom", "+suite.tasks.add.skill=add", "suite.limit=8", "executor.device=cpu", "collect.examples=6")
METHODS = ("+method@methods.fisher=fisher", "+method@methods.regmean=regmean")


@pytest.fixture
def make(tiny_pool, tmp_path, own_store):
    def config(*more):
        ((composed, _),) = compose(
            [*tiny_pool.overrides, *SUITE, f"store={own_store}", f"runs={tmp_path}/runs", "name=data", *more]
        )
        return composed

    return config


@pytest.fixture
def experts(make):
    config = make()
    access = access_of(config)
    pool = config.pools["tiny"]
    return config, access, find_base(pool.base, access), pool_experts(pool, access)


def test_a_study_collects_what_its_methods_need_once(make):
    config = make(*METHODS, "sampler.sizes=[2]", "sampler.samples=1", "sampler.singles=false", "sampler.base=false")
    access = access_of(config)
    plan = make_plan(config, access)
    assert (plan.waiting, plan.problems, len(plan.layout.unmade)) == (2, [], 6)
    first = run_study(config)
    assert (first.complete, first.outcome.done) == (True, 2)
    made = {e.key: e.describe()["made"] for e in access.store.entries("statistics")}
    assert len(made) == 6
    assert (run_study(config).plan.cached, len(access.store.entries("statistics"))) == (2, 6)
    results = [e.describe() for e in access.store.entries("results")]
    assert {len(about["model"]["statistics"]) for about in results} == {2}
    assert set(results[0]["model"]["statistics"]) < set(made)
    other = make_plan(make(*METHODS, "sampler.sizes=[2]", "sampler.samples=1", "collect.seed=1"), access)
    assert other.waiting == 2, "other statistics are another trial"


def test_fisher_merge_is_the_weighted_mean_of_its_statistics(experts, tmp_path, make):
    config, access, base, (one, two, _) = experts
    collect_information([(base, one), (base, two)], ["fisher"], access, config)
    found = need_information("fisher", [one, two], access, config.collect)
    out = tmp_path / "merged"
    paths = f"experts=[{one.source.path},{two.source.path}]"
    merge_checkpoint(make(f"base.path={base.path}", paths, "method=fisher", "method.floor=0", f"out={out}"))
    name = "model.layers.1.mlp.down_proj.weight"
    f, g = (Information(source).tensor(name).double() for source in found)
    a, b = (access.open(s.source.path).tensor(name).double() for s in (one, two))
    zero = access.open(base.path).tensor(name).double()
    mean = torch.where(f + g > 0, (f * a + g * b) / (f + g).clamp(min=1e-300), zero)
    torch.testing.assert_close(access.open(str(out)).tensor(name).double(), mean, rtol=1e-4, atol=1e-6)


def test_regmean_merge_solves_its_normal_equations(experts, tmp_path, make):
    config, access, base, (one, two, _) = experts
    collect_information([(base, one), (base, two)], ["gram"], access, config)
    found = need_information("regmean", [one, two], access, config.collect)
    out = tmp_path / "merged"
    paths = f"experts=[{one.source.path},{two.source.path}]"
    merge_checkpoint(make(f"base.path={base.path}", paths, "method=regmean", f"out={out}"))
    name = "model.layers.0.self_attn.k_proj.weight"
    grams = []
    for source in found:
        gram = Information(source).tensor(name).double()
        grams.append(0.9 * gram + 0.1 * torch.diag(gram.diagonal()))
    a, b = (access.open(s.source.path).tensor(name).double() for s in (one, two))
    merged = access.open(str(out)).tensor(name).double()
    torch.testing.assert_close(merged @ sum(grams), a @ grams[0] + b @ grams[1], rtol=1e-4, atol=1e-4)


def test_query_key_and_value_share_one_matrix(experts):
    config, access, base, (one, *_) = experts
    (entry,) = collect_information([(base, one)], ["gram"], access, config)
    about = entry.describe()
    assert about["aliases"]["model.layers.0.self_attn.k_proj.weight"] == "model.layers.0.self_attn.q_proj.weight"
    assert (about["task"], about["examples"]) == ("add", 6)
    header = Information(Source(str(entry.folder), entry.key)).header
    linear = {n for n in access.open(one.source.path).header if n.endswith(("_proj.weight", "lm_head.weight"))}
    assert set(header) == linear


def test_sampled_and_given_labels_are_two_statistics(experts):
    config, access, base, (one, *_) = experts
    given = dataclasses.replace(config, collect=Collect(examples=6, labels="data"))
    tensors = []
    for settings in (config, given):
        (entry,) = collect_information([(base, one)], ["fisher"], access, settings)
        tensors.append(Information(Source(str(entry.folder), entry.key)).tensor("model.norm.weight"))
    assert not torch.equal(*tensors)


def test_an_expert_of_unknown_task_takes_what_the_store_holds(experts):
    config, access, base, (one, two, _) = experts
    found = Expert("found", one.source)
    assert find_information("fisher", found, access, config.collect) is None
    with pytest.raises(UserError, match="mergebench statistics"):
        need_information("fisher", [found], access, config.collect)
    collect_information([(base, one)], ["fisher"], access, config)
    assert isinstance(find_information("fisher", found, access, config.collect), Source)
    on_another = Expert("found", one.source, two.task)
    assert isinstance(find_information("fisher", on_another, access, config.collect), Unmade)
    collect_information([(base, on_another)], ["fisher"], access, config)
    with pytest.raises(UserError, match=r"several fisher statistics of found: on .*add.*dist|dist.*add"):
        find_information("fisher", found, access, config.collect)
    chosen = find_information("fisher", found, access, dataclasses.replace(config.collect, task="dist"))
    assert isinstance(chosen, Source)


def test_a_plan_says_which_found_expert_has_no_statistics(make, experts):
    _, _, base, (one, two, _) = experts
    ((config, _),) = compose(
        [f"+pools.found.base.path={base.path}", f"+pools.found.experts.a.path={one.source.path}",
         f"+pools.found.experts.b.path={two.source.path}", *SUITE, METHODS[0], f"store={make().store}"]
    )  # fmt: skip
    plan = make_plan(config, access_of(config))
    assert plan.blocked == 1
    assert "mergebench statistics" in plan.problems[0].do
