"""Settings as lm-eval's users have them: the same prompts, answers and scores as ``lm_eval.simple_evaluate`` gives."""

import json

import pytest
import yaml

from conf.schema import Suite, SuiteTask
from pipelines.evaluate import check_suite, suite_fingerprint
from pipelines.evaluate.evaluator import Evaluator
from pipelines.store.provenance import provenance
from tests.pipelines.evaluate.test_kinds import run_lm_eval

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    "{% if enable_thinking is defined %}<{{ enable_thinking }}>{% endif %}[assistant]"
)


@pytest.fixture(scope="module")
def chatty(folder, tmp_path_factory):
    """The tiny checkpoint with a chat template that shows whether thinking is on."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    out = tmp_path_factory.mktemp("chatty")
    words = AutoTokenizer.from_pretrained(folder)
    words.chat_template = TEMPLATE
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(out)
    words.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Task files: a written answer (with a repeated variant) and a choice, with examples, over documents of our own."""
    out = tmp_path_factory.mktemp("tasks")
    rows = [{"q": f"add {i} {i % 7}", "a": ["one", "two"], "gold": i % 2} for i in range(20)]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(out / "rows.jsonl") for split in ("train", "test")}
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    common |= {"training_split": "train", "doc_to_text": "{{q}}", "doc_to_choice": "a", "doc_to_target": "gold"}
    generated = {"output_type": "generate_until", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3}}
    generated |= {"metric_list": [{"metric": "exact_match"}]}
    choice = {"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
    majority = {
        "filter_list": [{"name": "vote", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}]
    }
    for name, own in (("says", generated), ("picks", choice), ("votes", {**generated, **majority, "repeats": 4})):
        (out / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **own}))
    return out


def both(chatty, tasks, model, monkeypatch, tmp_path, name, suite, task, theirs):
    """Lines of samples, ours and those that lm-eval's tracker writes, and the two scores."""
    from lm_eval.loggers import EvaluationTracker

    metric = {"picks": "acc"}.get(name, "exact_match")
    filter_name = "vote" if name == "votes" else "none"
    spec = SuiteTask(**{"metric": metric, "filter": filter_name, "num_fewshot": 2, **task})
    given = {"batch_size": 8, "include_path": str(tasks), "samples": "all", "share_prefix": False, **suite}
    ours = Evaluator(Suite(name="s", tasks={name: spec}, **given), chatty).evaluate(model)
    samples = theirs.pop("samples", None)
    result = run_lm_eval(chatty, tasks, [name], samples, monkeypatch, num_fewshot=2, **theirs)
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.model_name_sanitized, tracker.date_id = "m", "d"
    tracker.save_results_samples(name, result["samples"][name])
    lines = (tmp_path / "theirs" / "m" / f"samples_{name}_d.jsonl").read_text().splitlines()
    want = result["results"][name].get(f"{metric},{filter_name}")
    mine = [json.loads(row["sample"]) for row in ours.samples.to_pylist()]
    return mine, [json.loads(line) for line in lines], ours.tasks[name], want


CHAT = {"chat_template": True}, {"apply_chat_template": True}
WARM = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 6}


@pytest.mark.parametrize(
    ("name", "suite", "task", "theirs"),
    [
        ("says", {"gen_kwargs": {"max_gen_toks": 9}}, {"gen_kwargs": WARM}, {"gen_kwargs": WARM}),
        ("votes", {"gen_kwargs": WARM}, {}, {"gen_kwargs": WARM}),
        ("votes", {"repeats": 2, "gen_kwargs": WARM}, {"repeats": 4}, {"gen_kwargs": WARM}),
        ("says", {"system_instruction": "be brief"}, {}, {"system_instruction": "be brief"}),
        ("picks", {"system_instruction": "be brief", **CHAT[0]}, {}, {"system_instruction": "be brief", **CHAT[1]}),
        ("picks", {"fewshot_as_multiturn": False, **CHAT[0]}, {}, {"fewshot_as_multiturn": False, **CHAT[1]}),
        ("picks", {"limit": 0.3, "sample": "first"}, {}, {"limit": 0.3}),
        ("picks", {}, {"documents": [7, 3, 11]}, {"samples": {"picks": [3, 7, 11]}}),
        ("says", {"predict_only": True, "samples": 2}, {}, {"predict_only": True}),
    ],
)
def test_settings_give_what_lm_eval_gives(chatty, tasks, model, monkeypatch, tmp_path, name, suite, task, theirs):
    mine, want, score, value = both(chatty, tasks, model, monkeypatch, tmp_path, name, suite, task, dict(theirs))
    if "predict_only" in suite:  # lm-eval puts a metric "bypass" in place of the others
        want = [{**line, "metrics": []} for line in want]
        assert [line.pop("bypass", None) for line in want] == [None] * len(want)
        assert (score.error, score.n) == (None, 20)
        assert "predictions only" in score.note
    else:
        assert score.value == value
    assert mine == want
    assert len(mine) == score.n


@pytest.mark.parametrize(
    ("suite", "task", "told"),
    [
        ({}, {"picks": {"gen_kwargs": WARM}}, "tasks.picks.gen_kwargs: the task generates nothing"),
        ({"gen_kwargs": WARM}, {"picks": {}, "add": {"skill": "add"}}, "gen_kwargs: no task of the suite generates"),
        ({"gen_kwargs": {"temprature": 1}}, {"says": {}}, "no setting 'temprature'; did you mean temperature"),
        ({}, {"says": {"gen_kwargs": {"max_length": 9}}}, "no setting 'max_length'"),
        ({"gen_kwargs": {"temperature": "hot"}}, {"says": {}}, "temperature is 'hot'; it has to be a number"),
        ({"gen_kwargs": {"do_sample": 1}}, {"says": {}}, "do_sample is 1; it has to be true or false"),
        ({"gen_kwargs": {"until": [3]}}, {"says": {}}, "until is [3]; it has to be a text or a list of texts"),
        ({"gen_kwargs": WARM}, {"says": {}, "picks": {}}, None),
        ({"gen_kwargs": {**WARM, "until": "x", "top_k": 3}}, {"says": {}}, None),
    ],
)
def test_settings_of_generation_that_nothing_reads_are_refused(tasks, suite, task, told):
    given = {
        name: SuiteTask(**{"metric": "exact_match" if name == "says" else "acc", **spec}) for name, spec in task.items()
    }
    problems = check_suite(Suite(name="s", tasks=given, include_path=str(tasks), **suite))
    assert [told in problem for problem in problems] == [True] if told else problems == []


@pytest.mark.parametrize(("thinks", "end"), [(True, "odd"), (False, None), (True, "7")])
def test_thinking_is_switched_and_cut_off(chatty, tasks, model, monkeypatch, tmp_path, thinks, end):
    """The end is a word of the vocabulary, or a token's number; lm-eval's model is given the same arguments."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    spec = SuiteTask(metric="exact_match", num_fewshot=0, gen_kwargs={"max_gen_toks": 30, "until": ["never"]})
    given = {"enable_thinking": thinks, "think_end_token": end, "chat_template": True, "batch_size": 8}
    suite = Suite(name="s", tasks={"says": spec}, include_path=str(tasks), samples="all", **given)
    ours = Evaluator(suite, chatty).evaluate(model)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(chatty), "dtype": "float32", "enable_thinking": thinks, "think_end_token": end},
        tasks=["says"],
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
        apply_chat_template=True,
        gen_kwargs={"max_gen_toks": 30, "until": ["never"]},
        num_fewshot=0,
        task_manager=TaskManager(include_defaults=False, include_path=str(tasks)),
    )
    said = [json.loads(row["sample"]) for row in ours.samples.to_pylist()]
    assert [line["resps"] for line in said] == [s["resps"] for s in theirs["samples"]["says"]]
    assert all(f"<{thinks}>" in line["arguments"]["gen_args_0"]["arg_0"] for line in said)
    if thinks:
        picks = {"picks": SuiteTask(), "says": spec}
        failed = Evaluator(Suite(name="s", tasks=picks, include_path=str(tasks), **given), chatty).problems
        assert list(failed) == ["picks"]
        assert "tasks that generate" in failed["picks"]


def test_what_is_kept_and_told(chatty, tasks, model):
    class Ear:
        def __init__(self):
            self.heard = []

        def note(self, text, level="info"):
            self.heard.append(text)

        def step(self, *_):
            from pipelines.progress import SILENT

            return SILENT.step("")

    ear = Ear()
    specs = {"says": SuiteTask(metric="exact_match"), "picks": SuiteTask(num_fewshot=0)}
    suite = Suite(name="s", tasks=specs, include_path=str(tasks), samples=3, write_out=True, batch_size=8)
    ours = Evaluator(suite, chatty, progress=ear).evaluate(model)
    assert [(row["task"], row["document"]) for row in ours.samples.to_pylist()] == [
        (task, str(k)) for task in specs for k in range(3)
    ]
    assert [text.splitlines()[0] for text in ear.heard] == ["says, document 0:", "picks, document 0:"]
    assert ear.heard[1].splitlines()[1:] == ["add 0 0", "→ 0"]
    suite.samples = "none"
    assert Evaluator(suite, chatty).evaluate(model).samples.num_rows == 0


def test_settings_are_in_the_key_where_they_are_set_and_only_there():
    def of(task=None, **changed):
        return suite_fingerprint(Suite(name="s", tasks={"add": SuiteTask(skill="add", **(task or {}))}, **changed))

    usual = of()
    assert "options" not in usual
    assert not {"documents", "gen_kwargs", "repeats"} & usual["tasks"]["add"].keys()
    assert of(samples="all", write_out=True) == usual
    assert of(fewshot_as_multiturn=False) == usual  # without a chat template there are no turns
    assert of({"gen_kwargs": {"top_p": 1}}) == of(gen_kwargs={"top_p": 1})
    changes = [
        {"system_instruction": "x"}, {"enable_thinking": False}, {"think_end_token": "x"}, {"predict_only": True},
        {"attn_implementation": "eager"}, {"gen_kwargs": {"temperature": 1}}, {"repeats": 2},
        {"task": {"documents": [1]}}, {"task": {"documents": [2]}}, {"task": {"repeats": 3}},
    ]  # fmt: skip
    made = [json.dumps(of(**change), sort_keys=True) for change in (*changes, {})]
    assert len({*made}) == len(made)
    multi = of(chat_template=True, fewshot_as_multiturn=False)
    assert multi["options"] == {"fewshot_as_multiturn": False}
    settings = of({"documents": [4, 2]}, system_instruction="x", gen_kwargs={"temperature": 1})
    about = {"settings": {**settings, "tokenizer": {}}, "base": {"path": "b"}, "experts": [], "model": {}}
    about |= {"recipe": None, "suite": "s", "training": None}
    said = provenance(about)
    assert said["options"] == "system_instruction=x gen_kwargs.temperature=1"
    assert said["sample"] == "documents 2, 4"


def test_wrong_settings_are_told(chatty, tasks):
    specs = {"add": SuiteTask(skill="add", repeats=0)}
    told = check_suite(Suite(name="s", tasks=specs, samples="some", enable_thinking=True))
    assert sorted(line.split()[0] for line in told) == ["enable_thinking", "samples", "tasks.add.repeats"]
    suite = Suite(name="s", tasks={"picks": SuiteTask(documents=[20])}, include_path=str(tasks))
    assert "documents 0 to 19" in Evaluator(suite, chatty).problems["picks"]
