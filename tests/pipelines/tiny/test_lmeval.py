import lm_eval
import pytest
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from conf.schema import Base
from pipelines.tiny.base import fresh_model, tokenizer
from pipelines.tiny.lmeval import export_tasks, skill_task
from pipelines.tiny.skills import items

N = 40


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return fresh_model(Base(hidden=32), tokenizer()).eval()


@pytest.fixture(scope="module")
def lm(model):
    return HFLM(pretrained=model, tokenizer=tokenizer(), batch_size=16, device="cpu")


def by_hand(model, skill: str, n: int) -> list[float]:
    """Whether the option with the highest logit after the prompt is right, one item at a time."""
    symbols, right = tokenizer(), []
    for item in items(skill, "test", n):
        logits = model(torch.tensor([symbols(item.prompt)["input_ids"]])).logits[0, -1]
        best = max(range(4), key=lambda k: logits[symbols.convert_tokens_to_ids(item.choices[k])].item())
        right.append(float(best == item.target))
    return right


@pytest.mark.parametrize("skill", ["add", "odd", "close", "at"])
def test_lm_eval_scores_what_a_loop_by_hand_scores(lm, model, skill):
    task = skill_task(f"{skill}_here", skill, "test", N)
    result = evaluate(lm, {f"{skill}_here": task}, bootstrap_iters=0, log_samples=True)
    samples = sorted(result["samples"][f"{skill}_here"], key=lambda s: s["doc_id"])
    expected = by_hand(model, skill, N)
    assert [s["acc"] for s in samples] == expected
    assert result["results"][f"{skill}_here"]["acc,none"] == pytest.approx(sum(expected) / N)
    assert 0 < sum(expected) < N


def test_exported_files_give_the_same_number(lm, model, tmp_path):
    export_tasks(tmp_path, ["add", "count"], "test", N)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    result = lm_eval.simple_evaluate(lm, tasks=["add", "count"], task_manager=manager, bootstrap_iters=0)
    for skill in ("add", "count"):
        assert result["results"][skill]["acc,none"] == pytest.approx(sum(by_hand(model, skill, N)) / N)


@pytest.mark.parametrize("split", ["validation", "test", "train"])
def test_the_scored_documents_are_the_items_of_the_split(split):
    task = skill_task("second", "second", split, N)
    got = [(doc["prompt"], tuple(doc["choices"]), doc["target"]) for doc in task.eval_docs]
    assert got == [(i.prompt, i.choices, i.target) for i in items("second", split, N)]


def test_few_shot_examples_come_from_training_items():
    task = skill_task("most", "most", "test", N)
    task.set_fewshot_seed(1)
    context = task.fewshot_context(task.eval_docs[0], num_fewshot=3)
    *shots, question = context.split("\n")
    known = {f"{i.prompt} {i.answer}" for i in items("most", "train", 64)}
    assert len(set(shots)) == 3
    assert set(shots) <= known
    assert question == task.eval_docs[0]["prompt"]


def test_unknown_skills_are_refused():
    with pytest.raises(ValueError, match="unknown skill"):
        skill_task("x", "x")
