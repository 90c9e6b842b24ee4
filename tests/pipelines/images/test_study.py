"""A study of pictures from end to end: base, experts, merges, tangent ones too, and the numbers in its store."""

import json

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from conf.compose import compose
from mergeopt_core.finetuning import Tangent
from pipelines.checkpoints.load import load_model
from pipelines.evaluate.image_suite import image_fingerprint
from pipelines.images.clip import image_processor, text_head
from pipelines.study.sweep import run_study
from pipelines.tiny.pictures import SKILLS, pictures

TASKS = ("shapes", "faces")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two pools, trained plainly and in the tangent space, merged by task arithmetic."""
    folder = tmp_path_factory.mktemp("study")
    cut = ["executor.device=cpu", f"store={folder / 'store'}", f"runs={folder / 'runs'}", "suite.limit=40"]
    cut += [f"~pools.{pool}.tasks.{name}" for pool in ("plain", "tangent") for name in SKILLS if name not in TASKS]
    cut += [f"~suite.tasks.{name}" for name in SKILLS if name not in TASKS]
    for pool in ("plain", "tangent"):
        cut += [f"pools.{pool}.base.{field}" for field in ("hidden=32", "layers=1", "steps=20")]
        cut += [f"pools.{pool}.training.steps=8", f"pools.{pool}.training.warmup_steps=1"]
    pools = ["+pool@pools.plain=pictures", "+pool@pools.tangent=pictures"]
    pools += ["+finetuning@pools.tangent.finetuning=tangent", "+method@methods.ta=task_arithmetic"]
    ((config, _),) = compose([*pools, "suite=pictures", "methods.ta.lambda=1.0", "name=pictures", *cut])
    return config, run_study(config)


def result(config, experts, linear):
    """The entry and documents of a stored model."""
    from pipelines.store.store import Store

    for entry in Store(config.store).entries("results"):
        about = entry.describe()
        if tuple(about["names"]) == experts and bool(about.get("linearised")) == linear:
            return about, pq.read_table(entry.folder / "documents.parquet")
    raise AssertionError(f"no result of {experts}")


def scores(table, task):
    rows = table.filter(pc.field("task") == task)
    return [int(place) for place in rows["document"].to_pylist()], rows["value"].to_pylist()


def test_experts_are_scored_as_the_classifiers_that_they_are(study, said):
    config, run = study
    assert run.complete
    about, table = result(config, ("faces",), False)
    folder = about["experts"][0]["path"]
    for task in TASKS:
        places, values = scores(table, task)
        assert len(places) == 40
        assert values == said(folder, task, places)
    assert about["settings"]["head"] == about["base"]["fingerprint"]


def test_a_tangent_merge_is_scored_as_the_linear_model(study):
    config, _ = study
    about, table = result(config, TASKS, True)
    base, *experts = (load_model(source["path"], torch.float32).eval() for source in (about["base"], *about["experts"]))
    theta0 = {name: p.detach().clone() for name, p in base.named_parameters()}
    vector = {name: sum(e.state_dict()[name] - p for e in experts) for name, p in theta0.items()}
    assert about["recipe"]["parameters"]["lambda"] == 1.0
    linear, processor = Tangent(base, vector=vector), image_processor(about["base"]["path"])
    for task in TASKS:
        places, values = scores(table, task)
        pixels, labels = pictures(task, "test")
        head = text_head(about["base"]["path"], SKILLS[task].classes, [SKILLS[task].template])
        inputs = processor(images=list(pixels[places]), return_tensors="pt")["pixel_values"]
        features = linear(pixel_values=inputs, pick=lambda out: out.image_embeds)
        said = (features / features.norm(dim=-1, keepdim=True) @ head.T).argmax(-1)
        assert values == (said == torch.tensor(labels[places])).float().tolist()


def test_it_resumes_and_reports(study):
    config, run = study
    table = (run.folder / "leaderboard.csv").read_text()
    assert "ta" in table
    again = run_study(config)
    assert again.complete
    assert again.outcome.done == 0, "everything is in the store"
    assert json.dumps(image_fingerprint(config.suite))


def test_what_changes_a_number_changes_a_fingerprint():
    ((config, _),) = compose(["suite=pictures"])
    first = image_fingerprint(config.suite)
    for change in ("suite.limit=10", "suite.split=validation", "suite.batch_size=8", "suite.dtype=bfloat16"):
        assert image_fingerprint(compose(["suite=pictures", change])[0][0].suite) != first, change
