"""The evaluator against lm-eval itself on the built-in skills, and what it promises to leave alone."""

import math
import random

import numpy as np
import pytest
import torch

from conf.errors import UserError
from conf.schema import Suite, SuiteTask
from pipelines.evaluate.evaluator import Evaluator


@pytest.fixture
def evaluator(suite, folder):
    return Evaluator(suite, folder)


def documents(evaluation, task, metric="acc"):
    rows = evaluation.documents.to_pylist()
    return {r["document"]: r["value"] for r in rows if r["task"] == task and r["metric"] == metric}


def test_equals_lm_eval_on_the_same_folder(evaluator, model, folder, suite, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from pipelines.tiny.lmeval import export_tasks

    export_tasks(tmp_path, list(suite.tasks), "test", 40)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={folder}",
        tasks=list(suite.tasks),
        device="cpu",
        batch_size=16,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False, include_path=str(tmp_path)),
    )
    ours = evaluator.evaluate(model)
    for task in suite.tasks:
        assert ours.tasks[task].value == theirs["results"][task]["acc,none"]
        assert ours.tasks[task].n == 40
        want = {str(s["doc_id"]): s["acc"] for s in theirs["samples"][task]}
        assert documents(ours, task) == want
        for key in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"):
            assert task in ours.lm_eval[key]
        assert ours.lm_eval["results"][task]["acc,none"] == theirs["results"][task]["acc,none"]


def test_follows_the_weights_and_forgets_the_last_model(evaluator, model):
    first = evaluator.evaluate(model)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1)))
    second = evaluator.evaluate(model)
    fresh = Evaluator(evaluator.suite, evaluator.lm.tokenizer.name_or_path).evaluate(model)
    assert second.documents != first.documents
    assert second.documents == fresh.documents
    assert second.tasks == fresh.tasks


def test_another_module_can_be_scored(evaluator, model, folder):
    from transformers import LlamaForCausalLM

    other = LlamaForCausalLM.from_pretrained(folder)
    assert evaluator.evaluate(model).documents == evaluator.evaluate(other).documents


def test_leaves_random_states_modes_threads_and_output_alone(suite, folder, model, capfd):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    model.train()
    model.model.layers[0].eval()
    before, threads = states(), torch.get_num_threads()
    Evaluator(suite, folder, threads=1).evaluate(model)
    assert states() == before
    assert torch.get_num_threads() == threads
    assert model.training
    assert not model.model.layers[0].training
    assert capfd.readouterr() == ("", "")


def test_standard_error_is_that_of_the_documents(evaluator, model):
    evaluation = evaluator.evaluate(model)
    score, values = evaluation.tasks["add"], list(documents(evaluation, "add").values())
    assert score.value == pytest.approx(np.mean(values))
    assert score.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(40))


def test_sharing_and_batch_size_change_no_decision(suite, folder, model):
    want = Evaluator(suite, folder).evaluate(model)
    for batch_size, share in ((1, True), (64, False)):
        suite.batch_size, suite.share_prefix = batch_size, share
        got = Evaluator(suite, folder).evaluate(model)
        assert got.documents == want.documents
        assert got.batch_size == batch_size


def test_out_of_memory_halves_the_batch_and_records_it(evaluator, model):
    def refuse(module, args, kwargs):
        if kwargs["input_ids"].shape[0] > 5:
            raise torch.OutOfMemoryError("too much")

    want = evaluator.evaluate(model)
    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    evaluation = evaluator.evaluate(model)
    handle.remove()
    assert evaluation.batch_size == 4
    assert evaluation.versions["batch_size"] == 4
    assert evaluation.documents == want.documents
    assert evaluator.evaluate(model).batch_size == 4  # models that come later are scored alike


def test_out_of_memory_at_one_sequence_is_told(evaluator, model):
    def refuse(module, args):
        raise torch.OutOfMemoryError("too much")

    model.register_forward_pre_hook(refuse)
    with pytest.raises(UserError, match="out of memory at batch size 1"):
        evaluator.evaluate(model)


def test_option_longer_than_the_context_is_told(suite, folder, model):
    suite.max_length = 512
    suite.tasks = {"add": suite.tasks["add"]}
    evaluator = Evaluator(suite, folder)
    leaf = evaluator.tasks[0].leaves[0]
    evaluator.scorer.extents[id(leaf)] = (1, 513, 6)
    evaluation = evaluator.evaluate(model)
    assert "an option of 513 tokens does not fit a context length of 512" in evaluation.errors["add"]


def test_nan_logits_name_the_model(evaluator, model):
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"NaN \(merge of a and b, task add\)"):
        evaluator.evaluate(model, name="merge of a and b")


def test_other_dtype_than_the_suite_says_is_refused(evaluator, model):
    with pytest.raises(UserError, match=r"bfloat16, the suite says float32"):
        evaluator.evaluate(model.bfloat16())


def test_failing_task_marks_its_own_cell(suite, folder, model):
    suite.tasks["wrong"] = SuiteTask(skill="add", metric="f1")
    suite.tasks["absent"] = SuiteTask(task="arc_easy")
    evaluator = Evaluator(suite, folder, datasets=str(folder))
    assert "no data set allenai/ai2_arc" in evaluator.problems["absent"]
    evaluation = evaluator.evaluate(model)
    assert set(evaluation.errors) == {"wrong", "absent"}
    assert "has no metric f1,none; it has acc,none" in evaluation.errors["wrong"]
    assert math.isnan(evaluation.tasks["wrong"].value)
    assert evaluation.tasks["add"].n == 40
    assert set(evaluation.documents["task"].to_pylist()) == {"add", "odd", "close"}


def test_one_task_may_stand_in_a_suite_twice(folder, mirror, model):
    tasks = {split: SuiteTask(task="arc_easy", split=split, limit=20) for split in ("validation", "test")}
    both = Evaluator(Suite(name="s", tasks=tasks), folder, datasets=str(mirror)).evaluate(model)
    for split, task in tasks.items():
        alone = Evaluator(Suite(name="s", tasks={split: task}), folder, datasets=str(mirror)).evaluate(model)
        assert both.tasks[split] == alone.tasks[split]
        assert documents(both, split) == documents(alone, split)
    assert both.lm_eval["results"].keys() == {"arc_easy", "test/arc_easy"}
    assert documents(both, "validation") != documents(both, "test")


@pytest.mark.parametrize(
    ("task", "message"),
    [(SuiteTask(task="arc_eazy"), "did you mean arc_easy"), (SuiteTask(skill="ad"), "did you mean add")],
)
def test_unknown_names_are_told_with_the_nearest(folder, task, message):
    with pytest.raises(UserError, match=message):
        Evaluator(Suite(name="s", tasks={"x": task}), folder)


def test_code_is_not_run_unasked(folder):
    with pytest.raises(UserError, match=r"suite\.run_code=true"):
        Evaluator(Suite(name="s", tasks={"humaneval": SuiteTask()}), folder, datasets=str(folder))
