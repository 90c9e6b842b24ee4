"""Searches over the quick pool, each in a store of its own."""

import pytest

from conf.compose import compose

SUITE = (
    "suite=custom",
    "+suite.tasks.add.skill=add",
    "+suite.tasks.dist.skill=dist",
    "suite.limit=12",
    "executor.device=cpu",
    "statistics.resamples=200",
)


@pytest.fixture
def make(tiny_pool, tmp_path, own_store):
    """Configurations of a search for task arithmetic's parameters."""

    def config(*more, store=own_store):
        overrides = [*tiny_pool.overrides, *SUITE, "method=task_arithmetic", f"store={store}", f"runs={tmp_path}/runs"]
        ((composed, _),) = compose([*overrides, *more])
        return composed

    return config


@pytest.fixture
def other_store(own_store, tmp_path):
    """A second store with the same checkpoints and no results."""
    for kind in ("bases", "experts"):
        (tmp_path / "other" / kind).mkdir(parents=True)
        for link in (own_store / kind).iterdir():
            (tmp_path / "other" / kind / link.name).symlink_to(link.resolve())
    return tmp_path / "other"
