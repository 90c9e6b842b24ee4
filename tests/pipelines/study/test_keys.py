"""What was scored once stays scored: keys of trials as they were recorded, and a store that was written before."""

import importlib.metadata
import zipfile
from pathlib import Path

import pytest

from conf.compose import compose
from pipelines.evaluate.lookup import lm_eval_version
from pipelines.finetune import check_finetuning
from pipelines.store.store import content_key
from pipelines.study import layout
from pipelines.study.plan import make_plan
from pipelines.study.sources import Source, access_of

HERE = Path(__file__).parent
VERSIONS = ("0.4.13", "5")
"""lm-eval's and transformers' (major) at the time; both are part of a key."""

same_versions = pytest.mark.skipif(
    (lm_eval_version(), importlib.metadata.version("transformers").split(".")[0]) != VERSIONS,
    reason="keys were recorded with other versions of lm-eval and transformers",
)


def recorded(recipe):
    """A fine-tuning method without the parameters that came later, unless they are in an expert's key."""
    known = check_finetuning(recipe.finetuning)
    later = ("offsets", "rounds", "experts")
    return {name: value for name, value in recipe.finetuning.items() if name not in later or name in known}


@same_versions
def test_the_quickstarts_trials_have_the_keys_that_they_had(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "find_base", lambda base, access: Source("nowhere/base", content_key(base.name)))
    monkeypatch.setattr(
        layout,
        "find_expert",
        lambda recipe, base, access: Source(f"nowhere/{recipe.name}", content_key([recipe.name, recorded(recipe)])),
    )
    ((config, _),) = compose(["+experiment=quickstart", f"store={tmp_path}"])
    planned = layout.lay_out(config, access_of(config)).planned
    lines = [f"{p.trial.key} {p.pool} {p.title}" for p in planned if p.trial]
    assert lines == (HERE / "quickstart_keys.txt").read_text().splitlines()


@same_versions
def test_a_store_that_was_written_before_grids_and_selections_is_complete(tmp_path):
    """By ``mergebench sweep`` at f6b43cf: three skills, ties, dare (two draws) and mixup (p-series, two orders)."""
    with zipfile.ZipFile(HERE / "store_before_grids.zip") as packed:
        packed.extractall(tmp_path / "store")
    ((config, _),) = compose([
        *(f"+pools.tiny.tasks.{skill}.skill={skill}" for skill in ("add", "dist", "count")),
        "+pools.tiny.base.name=tiny", "+pools.tiny.base.steps=4", "+pools.tiny.base.hidden=8",
        "+pools.tiny.base.layers=1", "+pools.tiny.training.steps=2", "+pools.tiny.optimizer.lr=0.001",
        "suite=custom", "+suite.tasks.add.skill=add", "+suite.tasks.dist.skill=dist", "suite.limit=4",
        "+method@methods.ties=ties", "+method@methods.dare=dare_linear", "sampler.draws=2", "sampler.orders=2",
        "+method@methods.mixup=mixup", "methods.mixup.weights=p_series", "methods.mixup.p=1",
        f"store={tmp_path}/store",
    ])  # fmt: skip
    plan = make_plan(config, access_of(config))
    assert (plan.cached, plan.new, plan.waiting, plan.blocked, plan.problems) == (9, 0, 0, 0, [])
