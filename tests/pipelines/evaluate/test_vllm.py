"""Generation through vLLM, at the edge of its documented calls: a fake engine there, our own path beside it."""

import json

import pytest
import torch

from conf.errors import UserError
from conf.schema import Suite, SuiteTask
from pipelines.evaluate import check_suite, suite_fingerprint
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.vllm_engine import VllmEngine, sampling
from tests.pipelines.evaluate import fake_vllm
from tests.pipelines.evaluate.test_settings import chatty, tasks  # noqa: F401


@pytest.fixture
def engines(monkeypatch):
    return fake_vllm.install(monkeypatch)


def suite_of(folder, generate_with="vllm", /, **changed):
    specs = {"says": SuiteTask(metric="exact_match", num_fewshot=1), "picks": SuiteTask(num_fewshot=0)}
    given = {"tasks": specs, "include_path": str(folder), "samples": "all", "batch_size": 8, "limit": 12}
    return Suite(name="s", **{"generate_with": generate_with, **given, **changed})


def said(evaluation):
    assert evaluation.errors == {}
    lines = [json.loads(row["sample"]) for row in evaluation.samples.to_pylist()]
    return [line["resps"] for line in lines if line["arguments"]["gen_args_0"].get("arg_1", "") != ""]


def shaken(model, seed):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


@pytest.mark.parametrize(
    "changed",
    [
        {"gen_kwargs": {"max_gen_toks": 9, "until": ["odd", "<eos>"]}},
        {"gen_kwargs": {"repetition_penalty": 1.7, "max_gen_toks": 6}},
        {"max_length": 24, "gen_kwargs": {"max_gen_toks": 20}},  # a context of four tokens
        {"enable_thinking": True, "think_end_token": "7", "chat_template": True, "gen_kwargs": {"max_gen_toks": 20},
         "tasks": {"says": SuiteTask(metric="exact_match", num_fewshot=0)}},
    ],
)  # fmt: skip
def test_one_engine_answers_for_model_after_model_as_our_own_path_does(chatty, tasks, model, engines, changed):  # noqa: F811
    model.generation_config.update(repetition_penalty=1.3)
    theirs = Evaluator(suite_of(tasks, **changed), chatty)
    ours = Evaluator(suite_of(tasks, "transformers", **changed), chatty)
    model.name_or_path = model.config._name_or_path = str(chatty)
    found = []
    for seed in (1, 2):
        shaken(model, seed)
        evaluation = theirs.evaluate(model)
        found.append(said(evaluation))
        assert found[-1] == said(ours.evaluate(model))
        assert evaluation.versions["generate_with"] == "vllm 0.33.0"
    assert found[0] != found[1]
    assert len(engines.started) == 1
    assert evaluation.tasks == ours.evaluate(model).tasks


def test_an_engine_is_started_anew_for_another_shape_and_a_head_of_its_own(chatty, tasks, model, engines):  # noqa: F811
    model.name_or_path = str(chatty)
    theirs, ours = (Evaluator(suite_of(tasks, g), chatty) for g in ("vllm", "transformers"))
    for change in (lambda: model.resize_token_embeddings(260), lambda: model.set_output_embeddings(model.lm_head)):
        change()
        assert said(theirs.evaluate(model)) == said(ours.evaluate(model))
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    assert said(theirs.evaluate(model)) == said(ours.evaluate(model))
    assert [llm.tied for llm in engines.started] == [False, True]
    shaken(model, 3)
    assert said(theirs.evaluate(model)) == said(ours.evaluate(model))
    assert len(engines.started) == 2


@pytest.mark.parametrize(
    ("fault", "told"), [("tied_head_stays", "lm_head.weight is not the model's"), ("keeps_cache", "vLLM kept what")]
)
def test_what_stays_behind_in_the_engine_is_seen(chatty, tasks, model, engines, monkeypatch, fault, told):  # noqa: F811
    monkeypatch.setattr(engines, fault, True)
    model.name_or_path = str(chatty)
    model.lm_head.weight = model.model.embed_tokens.weight
    evaluation = Evaluator(suite_of(tasks), chatty).evaluate(model)
    assert told in evaluation.errors["says"]
    assert "picks" not in evaluation.errors


def test_an_engine_that_does_not_start_is_one_line(chatty, tasks, model, engines, monkeypatch):  # noqa: F811
    def refuse(*_, **__):
        raise RuntimeError("Free memory on device is less than desired\nsee above")

    monkeypatch.setattr(engines, "__init__", refuse)
    model.name_or_path = str(chatty)
    with pytest.raises(UserError, match=r"did not take the model: RuntimeError: Free memory on device is less than"):
        VllmEngine().load(model, str(chatty), 64, suite_of(tasks))
    model.model.renamed = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"renamed.weight has another name or form"):
        VllmEngine().load(model, str(chatty), 64, suite_of(tasks))


def test_settings_of_generation_are_vllms_or_refused(chatty, tasks, model, engines):  # noqa: F811
    model.name_or_path = str(chatty)
    warm = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_gen_toks": 5}
    evaluator = Evaluator(suite_of(tasks, tasks={"votes": SuiteTask(metric="exact_match", filter="vote")},
                                   gen_kwargs=warm, limit=3), chatty)  # fmt: skip
    first, again = (said(evaluator.evaluate(model)) for _ in range(2))
    assert first == again
    asked = engines.started[0].asked[:12]  # four answers to each of three documents
    assert {p.seed for p in asked} == {1234 + place for place in range(12)}
    assert {(p.temperature, p.top_p, p.top_k, p.max_tokens) for p in asked} == {(0.7, 0.9, 50, 5)}
    assert len({json.dumps(answer) for answer in first}) > 1

    def of(given, **usual):
        return sampling(given, usual, 256, "<eos>")

    assert of({"until": ["\n"]}, top_p=0.5, eos_token_id=[3, 4], repetition_penalty=1.1, max_length=20) == (
        {"temperature": 0.0, "repetition_penalty": 1.1, "stop": ["\n", "<eos>"], "stop_token_ids": [3, 4],
         "max_tokens": 256, "skip_special_tokens": False}, ["\n", "<eos>"],
    )  # fmt: skip
    drawn, _ = of({"temperature": 2.0, "top_k": 0, "max_new_tokens": 4}, top_p=0.5, min_p=0.0)
    assert (drawn["top_k"], drawn["top_p"], drawn["temperature"], drawn["max_tokens"]) == (0, 0.5, 2.0, 4)
    for given, usual, told in (
        ({"num_beams": 2}, {}, "num_beams"),
        ({"min_new_tokens": 2}, {}, "min_new_tokens"),
        ({}, {"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3"),
        ({"do_sample": True}, {}, "temperature above 0"),
        ({"until": [""]}, {}, "empty stop sequence"),
        ({"temperature": 1.0, "min_p": 0.1, "top_p": 0.9}, {}, "another order"),
    ):
        with pytest.raises(UserError, match=told):
            of(given, **usual)
    assert of({}, num_beams=1, no_repeat_ngram_size=0, use_cache=True)[0]["temperature"] == 0.0


def test_what_is_wrong_is_told_before_anything_runs(tasks, monkeypatch):  # noqa: F811
    assert check_suite(suite_of(tasks, "transformers")) == []
    assert "pip install 'mergebench[vllm]'" in "".join(check_suite(suite_of(tasks)))
    key = suite_fingerprint(suite_of(tasks, "transformers"))
    assert "generate_with" not in json.dumps(key)
    fake_vllm.install(monkeypatch)
    assert check_suite(suite_of(tasks)) == []
    options = suite_fingerprint(suite_of(tasks))["options"]
    assert options == {"generate_with": "vllm", "vllm": "0.33.0"}
    for changed, told in (
        ({"generate_with": "vlm"}, "vllm"),
        ({"gen_kwargs": {"num_beams": 2}}, "gen_kwargs.num_beams means nothing"),
        ({"quantization": "8bit"}, "leave suite.quantization out"),
        ({"linearised": True}, "leave suite.linearised out"),
        ({"tasks": {"picks": SuiteTask()}}, "no task of the suite generates"),
    ):
        assert told in "".join(check_suite(suite_of(tasks, **changed)))
