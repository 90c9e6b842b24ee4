"""Every kind of causal language model against lm-eval's own HFLM, request by request, and who shares prefixes."""

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from benchmarks.faithful import KINDS, LONGEST, random_model
from conf.schema import Suite, SuiteTask
from pipelines.evaluate.engine import FAMILIES, can_share
from pipelines.evaluate.evaluator import Evaluator, forget_answers

TASKS = {"arc_easy": SuiteTask(limit=2), "winogrande": SuiteTask(limit=2, num_fewshot=1)}
DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture(scope="module")
def evaluators(folder, mirror):
    common = {"name": "s", "tasks": TASKS, "batch_size": 4, "max_length": LONGEST}
    return {d: Evaluator(Suite(dtype=d, **common), folder, datasets=str(mirror)) for d in DTYPES}


def both(evaluator, model) -> tuple[list, list]:
    """Our answers and HFLM's, all of a suite's requests in one call."""
    leaves = [leaf for task in evaluator.tasks for leaf in task.leaves]
    requests = [request for leaf in leaves for request in leaf.task._instances]
    rows: list[int] = []
    with evaluator.lm.holding(model, 4):
        evaluator.scorer.prepare(model)
        for leaf in leaves:
            evaluator.scorer.run(leaf, model, lambda n, **_: rows.append(n))
    assert sum(rows) == evaluator.scorer.rows  # what a progress bar counts to
    ours = [request.resps[0] for request in requests]
    forget_answers(evaluator.tasks)
    theirs = HFLM(pretrained=model, tokenizer=evaluator.lm.tokenizer, batch_size=4, max_length=LONGEST)
    return ours, theirs.loglikelihood(requests, disable_tqdm=True)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_hflms(kind, evaluators):
    model = random_model(kind, len(evaluators["float32"].lm.tokenizer))
    for dtype, evaluator in evaluators.items():
        ours, theirs = both(evaluator, model.to(getattr(torch, dtype)))
        shared = evaluator.scorer.share
        assert shared is (KINDS[kind][2] and dtype == "float32")
        if shared:
            assert any(batch.ends is not None for work in evaluator.scorer.work.values() for batch in work)
            assert [a for a, _ in ours] == pytest.approx([a for a, _ in theirs], rel=1e-5)
            assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
        else:
            assert ours == theirs


def test_every_family_that_shares_is_run():
    assert {name for name, _, shares in KINDS.values() if shares} == FAMILIES


def test_windows_and_switches_are_measured_against_the_longest_input():
    for kind, reach in (("mistral, window", 16), ("gemma3", 16), ("phi3, longrope", 64)):
        model = random_model(kind, 300)
        assert can_share(model, reach)
        assert not can_share(model, reach + 1)


def test_what_is_not_known_is_computed_plainly(model):
    assert can_share(model, 100)
    for name, value in (
        ("model_type", "novel"),
        ("layer_types", ["full_attention", "novel_attention"]),
        ("rope_parameters", {"rope_type": "novel"}),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "novel"}}),
        ("use_bidirectional_attention", True),
    ):
        before = getattr(model.config, name, None)
        setattr(model.config, name, value)
        assert not can_share(model, 100), name
        setattr(model.config, name, before)
    own = type("OwnForCausalLM", (type(model),), {})(model.config)  # code of its own under a known model type
    assert not can_share(own, 100)


@pytest.mark.parametrize(("share", "dtype"), [(True, "float32"), (False, "float32"), (False, "bfloat16")])
def test_batches_by_tokens_hold_them_and_change_no_float32_score(folder, mirror, model, monkeypatch, share, dtype):
    tasks = {name: SuiteTask(limit=8) for name in TASKS}
    common = {"name": "s", "tasks": tasks, "batch_size": 4, "max_length": LONGEST, "share_prefix": share}
    usual, budgeted = (
        Evaluator(Suite(dtype=dtype, **common, batch_tokens=n), folder, datasets=str(mirror)) for n in (None, 800)
    )
    model, shapes = model.to(getattr(torch, dtype)).eval(), []
    forward = model.forward

    def seen(input_ids, **rest):
        shapes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(model, "forward", lambda *args, **rest: seen(*args, **rest))
    want, before = usual.evaluate(model), shapes[:]
    shapes.clear()
    got = budgeted.evaluate(model)
    assert all(rows == 1 or rows * length <= 800 for rows, length in shapes)
    assert max(rows for rows, _ in shapes) > 4
    assert share or len(shapes) < len(before)  # of trees there are few
    assert (got.versions["batch_tokens"], budgeted.lm.batch_size) == (800, 4)
    if dtype == "float32":
        assert got.tasks == want.tasks
