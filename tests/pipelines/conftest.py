"""Small studies over the quick pool, each in a store of its own."""

import pytest

from conf.compose import compose

SUITE = ("suite=custom", "+suite.tasks.add.skill=add", "suite.limit=8", "executor.device=cpu")
METHODS = ("+method@methods.linear=linear", "+method@methods.dare=dare_linear")


@pytest.fixture
def small_study(tiny_pool, tmp_path, own_store):
    """Configurations of a study of two methods on two pairs of experts."""

    def config(*more):
        overrides = [*tiny_pool.overrides, *SUITE, *METHODS, "sampler.sizes=[2]", "sampler.samples=2", "name=small"]
        ((composed, _),) = compose([*overrides, f"store={own_store}", f"runs={tmp_path}/runs", *more])
        return composed

    return config
