"""Memory that runs out: once more with nothing else held, then one line with what would fit, and the study goes on."""

import pytest
import torch

from conf.errors import UserError
from pipelines.finetune.trainer import ExpertTrainer
from pipelines.study.collect import make_pools
from pipelines.study.sources import access_of
from pipelines.study.sweep import run_study
from pipelines.study.worker import Worker
from tests.pipelines.study.test_sweep import config_of, store  # noqa: F401

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes."),
)  # fmt: skip
SMALL = ("sampler.sizes=[3]", "~methods.ties", "~methods.dare")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_trial_is_tried_once_more_and_then_set_aside(tiny_pool, store, monkeypatch, error):  # noqa: F811
    run, asked = Worker.run, []

    def tight(worker, trial):
        asked.append(trial.kind)
        if trial.kind == "merge" or len(asked) == 1:
            raise error
        return run(worker, trial)

    monkeypatch.setattr(Worker, "run", tight)
    sweep = run_study(config_of(tiny_pool, store, *SMALL, "executor.retries=0"))
    assert sweep.outcome.done == 4
    (failure,) = sweep.outcome.failures
    assert failure.trial.kind == "merge"
    assert "out of memory: the model takes 0.0" in failure.reason
    assert "bfloat16" in failure.reason
    assert asked.count("merge") == 2


def test_training_says_what_would_fit(tiny_pool, tmp_path, monkeypatch):
    def tight(*_, **__):
        raise ERRORS[0]

    monkeypatch.setattr(ExpertTrainer, "training_step", tight)
    config = config_of(tiny_pool, tmp_path / "store", "pools.tiny.training.batch_size=6", "pools.tiny.base.steps=1")
    with pytest.raises(UserError, match=r"out of memory with 6 .*training.batch_size=3 training.accumulation=2"):
        make_pools(config, access_of(config))
