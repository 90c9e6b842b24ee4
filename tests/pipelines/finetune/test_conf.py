"""The choices of conf/: what they compose to, and that they name every parameter of a method."""

import pytest

from conf.compose import FOLDER, compose
from pipelines.finetune import check_finetuning
from pipelines.finetune.data import read_rows
from pipelines.finetune.optimizers import METHODS

EPOCHS = {
    "cstance": ("C-STANCE", 5), "fomc": ("FOMC", 3), "meetingbank": ("MeetingBank", 7), "scienceqa": ("ScienceQA", 3),
    "numglue_cm": ("NumGLUE-cm", 5), "numglue_ds": ("NumGLUE-ds", 5), "20minuten": ("20Minuten", 7),
}  # fmt: skip
REAL = ["cstance", "fomc", "numglue_cm", "numglue_ds", "scienceqa"]


def one(*overrides):
    return compose(list(overrides))[0][0]


@pytest.mark.parametrize("name", EPOCHS)
def test_trace_tasks_carry_the_papers_epochs(name):
    config = one(f"task=trace/{name}")
    folder, epochs = EPOCHS[name]
    assert (config.task.path, config.task.epochs) == (f"TRACE/{folder}", epochs)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.training.batch_size) == (2e-5, 0.001, 8)


@pytest.mark.parametrize("name", REAL)
def test_real_trace_rows_are_read(data, name):
    task = one(f"task=trace/{name}").task
    task.path = str(data / f"trace_{name}")
    rows = read_rows(task, 0)
    assert len(rows) > 100
    assert all(r["prompt"].endswith(" ") and r["completion"] for r in rows)


@pytest.mark.parametrize("name", [f.stem for f in sorted((FOLDER / "finetuning").glob("*.yaml"))])
def test_method_choices_list_every_parameter_with_its_default(name):
    given = dict(one(f"finetuning={name}").finetuning)
    full = check_finetuning(given)
    if name == "mergopt_released":
        assert full == {"method": "mergopt", "mode": "released"}
        return
    assert given.keys() == METHODS[name].keys() | {"method"}
    assert full == check_finetuning({"method": name})


@pytest.mark.parametrize("name", [f.stem for f in sorted((FOLDER / "optimizer").glob("*.yaml"))])
def test_optimizer_choices(name):
    assert one(f"optimizer={name}").optimizer.name == name


def test_bases():
    found = {f.stem: one(f"base={f.stem}").base.path for f in (FOLDER / "base").glob("*.yaml") if f.stem != "folder"}
    assert found.pop("tiny") == found.pop("tiny_clip") == ""
    assert sorted(found.values()) == [
        "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct", "openai/clip-vit-base-patch32",
    ]  # fmt: skip
