"""Scores of image towers: those of a plain transformers loop, for bases, experts and merges, in memory and on disk."""

import pyarrow.compute as pc
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPVisionModel

from conf.errors import UserError
from conf.schema import Images, Suite, SuiteTask
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.checkpoints.load import load_model
from pipelines.evaluate import check_suite
from pipelines.evaluate.image_scorer import ImageEvaluator
from pipelines.images.clip import text_head
from pipelines.merge.live import merge_into
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge, single_model
from pipelines.merge.write import write_merge


def by_place(evaluation, task):
    rows = evaluation.documents.filter(pc.field("task") == task)
    return dict(zip(map(int, rows["document"].to_pylist()), rows["value"].to_pylist()))


@pytest.fixture(scope="module")
def tower(base):
    return load_model(base, torch.float32).eval()


def merge_of(base, experts, method="task_arithmetic", **parameters):
    paths = [str(base), *map(str, experts)]
    recipe = Recipe(paths[0], tuple(paths[1:]), method, parameters)
    return Merge(recipe, open_checkpoint(paths[0]), [open_checkpoint(path) for path in paths[1:]])


def test_the_same_predictions_as_a_plain_loop(base, experts, suite, tower, said, tmp_path):
    evaluator = ImageEvaluator(suite, base, cache=tmp_path)
    merged = merge_of(base, experts, **{"lambda": 0.7})
    write_merge(merge_of(base, experts, **{"lambda": 0.7}), tmp_path / "merged")
    scores = {}
    for name, folder, weights in (
        ("base", base, single_model(open_checkpoint(str(base)), open_checkpoint(str(base)))),
        ("expert", experts[0], single_model(open_checkpoint(str(base)), open_checkpoint(str(experts[0])))),
        ("merge", tmp_path / "merged", merged),
    ):
        merge_into(tower, weights)
        evaluation = evaluator.evaluate(tower, name=name)
        for task in suite.tasks:
            found = by_place(evaluation, task)
            assert len(found) == 60
            assert list(found.values()) == said(folder, task, list(found)), (name, task)
            assert evaluation.tasks[task].value == pytest.approx(sum(found.values()) / 60)
        scores[name] = [evaluation.tasks[task].value for task in suite.tasks]
    assert len({tuple(values) for values in scores.values()}) == 3, "three models, three scores"
    kept = list((tmp_path / "heads").iterdir())
    assert len(kept) == 2, "a head a task, computed once for the base"
    assert ImageEvaluator(suite, base, cache=tmp_path).evaluate(tower).tasks == evaluation.tasks


def test_only_the_tower_is_merged(base, experts, tmp_path):
    write_merge(merge_of(base, experts, "linear"), tmp_path / "merged")
    start, merged = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    trained = [load_file(expert / "model.safetensors") for expert in experts]
    assert merged.keys() == start.keys() == trained[0].keys()
    for name, tensor in merged.items():
        if name.startswith(("text_", "logit_scale")):
            assert all(torch.equal(tensor, other[name]) for other in (start, *trained)), name
        else:
            torch.testing.assert_close(tensor, sum(t[name] for t in trained) / 2, rtol=0, atol=1e-6)
    moved = [n for n in start if not torch.equal(start[n], trained[0][n])]
    assert "visual_projection.weight" in moved
    assert all(n.startswith(("vision_model.", "visual_projection.")) for n in moved)
    assert CLIPModel.from_pretrained(tmp_path / "merged").config.projection_dim == 32
    assert (tmp_path / "merged" / "preprocessor_config.json").is_file()


def test_an_expert_that_is_an_image_tower_alone(base, experts, tower, tmp_path):
    part = tmp_path / "part"
    CLIPVisionModel.from_pretrained(experts[0]).save_pretrained(part)
    start, whole = load_file(base / "model.safetensors"), load_file(experts[0] / "model.safetensors")
    merge = merge_of(base, [part, experts[1]], "linear")
    assert merge.problems() == []
    found, other = dict(merge.tensors()), load_file(experts[1] / "model.safetensors")
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    torch.testing.assert_close(found[name], (whole[name] + other[name]) / 2)
    name = "visual_projection.weight"
    torch.testing.assert_close(found[name], (start[name] + other[name]) / 2)
    merge_into(tower, single_model(open_checkpoint(str(base)), open_checkpoint(str(part))))
    live = tower.state_dict()
    assert torch.equal(live[name], start[name])
    assert all(torch.equal(live[n], whole[n]) for n in live if n.startswith("vision_model."))
    with pytest.raises(UserError, match=r"part of a model, which classifies nothing by itself.*name its base"):
        load_model(part, torch.float32)


def test_a_head_is_the_mean_of_its_templates(base):
    from transformers import AutoTokenizer

    model, words = CLIPModel.from_pretrained(base).double(), AutoTokenizer.from_pretrained(base)
    classes, templates = ["circle", "ring"], ["a picture of a {}", "a face that looks {}", "a {}"]
    rows = []
    for word in classes:
        texts = words([t.format(word) for t in templates], padding=True, return_tensors="pt")
        out = model(**texts, pixel_values=torch.zeros(1, 3, 24, 24).double()).text_embeds.mean(0)
        rows.append(out / out.norm() * model.logit_scale.exp())
    torch.testing.assert_close(text_head(base, classes, templates).double(), torch.stack(rows), rtol=0, atol=1e-5)


def test_broken_weights_and_unlike_suites_are_told(base, suite, tower):
    evaluator = ImageEvaluator(suite, base)
    merge_into(tower, single_model(open_checkpoint(str(base)), open_checkpoint(str(base))))
    with torch.no_grad():
        tower.visual_projection.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"mine, task shapes.*weights are broken|logits are NaN"):
        evaluator.evaluate(tower, name="mine")
    mixed = Suite(
        tasks={"a": SuiteTask(images=Images(skill="shapes")), "b": SuiteTask(skill="add")}, attack="stresstest"
    )
    assert [p.partition(";")[0] for p in check_suite(mixed)] == [
        "attack=stresstest is for text, the suite is of pictures",
        "task b: is of text, other tasks of the suite are of pictures",
    ]
    wrong = Suite(tasks={"a": SuiteTask(images=Images(skill="shape"), metric="f1")}, split="dev")
    assert check_suite(wrong) == [
        "task a: pictures have no metric 'f1'; give acc",
        "task a: no built-in picture task is called 'shape'; did you mean shapes?",
    ]
