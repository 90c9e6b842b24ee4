"""Wrong parameters, a loss that is no number, a full disk: one clear line each, nothing half done."""

import errno
from collections import namedtuple

import pytest
import torch

from conf.errors import UserError
from conf.schema import Lora, Optimizer
from pipelines.finetune import check_finetuning
from pipelines.finetune.models import Loaded
from pipelines.finetune.trainer import ExpertTrainer


def test_the_description_is_complete_and_holds_what_matters():
    full = check_finetuning({"method": "mergopt", "scale": "1e-3", "fit_memory": 0.5})
    assert full["scale"] == 1e-3
    assert full["alphas"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert not {"fit_memory", "ascent_steps"} & full.keys()
    assert check_finetuning({"method": "mergopt"}) == check_finetuning({"method": "mergopt", "max_tasks": 7})
    assert check_finetuning({"method": "mergopt", "scale": "fitted"})["fit_memory"] == 0.9
    assert check_finetuning({"method": "mergopt", "mode": "released"}) == {"method": "mergopt", "mode": "released"}
    assert check_finetuning({}) == {"method": "plain"}
    assert "eta" not in check_finetuning({"method": "asam", "form": "squared"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "mergoptt"}, "unknown fine-tuning method 'mergoptt'.*did you mean mergopt"),
        ({"method": "mergopt", "alpha": [0.1]}, "mergopt has no parameter 'alpha'.*did you mean alphas"),
        ({"method": "plain", "rho": 0.1}, "plain has no parameters"),
        ({"method": "mergopt", "max_tasks": 0}, "0 is no value of max_tasks.*1 or more"),
        ({"method": "mergopt", "max_tasks": 2.5}, "2.5 is no value of max_tasks"),
        ({"method": "mergopt", "alphas": []}, r"\[\] is no value of alphas"),
        ({"method": "mergopt", "scale": -0.1}, "-0.1 is no value of scale"),
        ({"method": "mergopt", "scale": "fited"}, "'fited' is no value of scale"),
        ({"method": "mergopt", "scale": float("nan")}, "nan is no value of scale"),
        ({"method": "mergopt", "distribution": "cauchy"}, "give laplace or gaussian"),
        ({"method": "mergopt", "include": "q_proj"}, "give a list of name patterns"),
        ({"method": "sam", "rho": -1}, "-1 is no value of rho"),
        ({"method": "mergopt", "own_vector": "exact", "inner": "ascent"}, "own_vector=exact and inner=ascent"),
    ],
)
def test_wrong_methods(wrong, message):
    with pytest.raises(UserError, match=message):
        check_finetuning(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin'.*did you mean cosine"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"epochs": 0.0}, "epochs is 0"),
        ({"clip": -1}, "clip is -1"),
        ({"reporters": ["tensorbord"]}, "unknown reporter 'tensorbord'"),
        ({"lora": Lora(rank=2, targets=["q_prj"])}, "no linear layer is called 'q_prj'.*did you mean q_proj"),
        ({"method": "tangent", "lora": Lora(rank=2)}, "takes all weights in float32 .training.lora"),
        ({"method": "tangent", "precision": "bf16"}, "takes all weights in float32"),
        ({"method": {"method": "mergopt", "include": ["x"]}}, "'x' matches no weight"),
        ({"optimizer": Optimizer(name="adam")}, "unknown optimizer 'adam'.*did you mean adamw"),
        ({"optimizer": Optimizer(lr=-1)}, "optimizer.lr is -1"),
        ({"optimizer": Optimizer(betas=[0.9])}, r"betas are \[0.9\]"),
    ],
)
def test_wrong_options(train, options, message):
    with pytest.raises(UserError, match=message):
        train("a", **options)


def test_a_folder_that_is_no_model(train, tmp_path):
    with pytest.raises(UserError, match="no model configuration that can be read"):
        train("a", folder=tmp_path)


def test_missing_extras_name_what_to_install(train, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else real(name, *a))
    with pytest.raises(UserError, match=r"mlflow is not installed.*pip install 'mergebench\[mlflow\]'"):
        train("a", reporters=["mlflow"])


@pytest.mark.parametrize("method", ["plain", "mergopt", "sam", "tangent"])
def test_a_loss_that_is_no_number_stops_before_the_step(train, tmp_path, method, monkeypatch, same):
    real = ExpertTrainer.compute_loss

    def breaks(self, *args, **kwargs):
        return real(self, *args, **kwargs) * (float("nan") if self.state.global_step == 2 else 1.0)

    options = {"schedule": "constant", "checkpoints": tmp_path / "kept"}
    two = train("two", method, steps=2, **options)
    monkeypatch.setattr(ExpertTrainer, "compute_loss", breaks)
    with pytest.raises(UserError, match=r"odd: the loss became nan at step 3 \(last good weights: .*last-good-2\)"):
        train("a", method, steps=5, **options)
    assert same(tmp_path / "kept" / "last-good-2", two)
    assert not (tmp_path / "a" / "model.safetensors").exists()


def test_weights_that_blew_up_are_not_called_good(train, tmp_path):
    with pytest.raises(UserError, match=r"became (nan|inf) at step \d.*checkpoint-1\)"):
        train(
            "a", optimizer=Optimizer(name="sgd", lr=1e30), clip=0.0, schedule="constant", steps=9, save_steps=1,
            checkpoints=tmp_path / "kept",
        )  # fmt: skip


def test_too_little_room_is_told_before_training(train, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100, 99, 1000))
    with pytest.raises(UserError, match=r"GB are needed on the disk, 0\.00 GB are free"):
        train("a")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("I/O error: No space left on device")]
)
def test_a_disk_that_fills_up(train, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(Loaded, "save", full)
    with pytest.raises(UserError, match="the disk is full"):
        train("a")


def test_other_errors_are_not_hidden(train, monkeypatch):
    monkeypatch.setattr(Loaded, "save", lambda *_: torch.zeros(1) @ torch.zeros(2))
    with pytest.raises(RuntimeError, match="size"):
        train("a")


def test_ranks_that_could_not_agree_are_refused(monkeypatch):
    from pipelines.finetune.optimizers import wrap

    monkeypatch.setenv("WORLD_SIZE", "2")
    layer = torch.nn.Linear(2, 2)
    method = check_finetuning({"method": "sam"})
    with pytest.raises(UserError, match="sam with adapters does not run on several ranks"):
        wrap(torch.optim.SGD(layer.parameters(), lr=0.1), method, layer, 0, 1, lora=True)
