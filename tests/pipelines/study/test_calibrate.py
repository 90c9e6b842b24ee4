"""A study's hours, from a few trials of its own."""

import statistics

import pytest

from conf.errors import UserError
from pipelines.store.store import Store
from pipelines.study.calibrate import calibrate_study
from pipelines.study.plan import make_plan
from pipelines.study.sources import access_of
from tests.pipelines.study.test_sweep import config_of, store  # noqa: F401


def test_one_trial_of_each_kind_tells_the_time_of_the_others(tiny_pool, store):  # noqa: F811
    config = config_of(tiny_pool, store)
    before = make_plan(config, access_of(config))
    assert before.resources["hours"] is None
    calibrate_study(config)
    plan = make_plan(config, access_of(config))
    entries = [entry.describe() for entry in Store(config.store).entries("results")]
    took = {(about["recipe"] or {}).get("method"): sum(about["seconds"].values()) for about in entries}
    assert set(took) == {None, "linear", "ties", "dare_linear"}
    assert (plan.cached, plan.new) == (4, before.new - 4)
    methods = [p.trial.merge.method if p.trial.merge else None for p in plan.todo]
    expected = statistics.fmean(took[method] for method in methods)
    assert plan.resources["seconds_a_trial"] == pytest.approx(expected)
    assert plan.resources["hours"] == pytest.approx(len(plan.todo) * expected / 3600)
    assert plan.resources["dollars"] is None
    config.executor.workers, config.executor.price = 4, 7200.0
    four = make_plan(config, access_of(config)).resources
    assert four["hours"] == pytest.approx(plan.resources["hours"] / 4)
    assert four["dollars"] == pytest.approx(len(plan.todo) * expected * 2)
    assert all(about["bytes"]["read"] >= 0 for about in entries)
    calibrate_study(config)
    assert make_plan(config, access_of(config)).cached == 4, "repeated, it runs nothing more"


def test_a_study_whose_experts_are_not_made_is_told(tiny_pool, tmp_path):
    config = config_of(tiny_pool, tmp_path / "empty")
    with pytest.raises(UserError, match="still to be made"):
        calibrate_study(config)
