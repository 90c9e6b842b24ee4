"""Tasks of every kind (groups, few-shots, Matthews, generation, rolling, chat) against lm-eval itself."""

import contextlib
import json
import os
from types import SimpleNamespace

import pytest
import yaml

from conf.schema import Suite, SuiteTask
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.lookup import lm_eval_tasks


def run_lm_eval(folder, where, tasks, samples, monkeypatch, include=(), **settings):
    """lm-eval's own evaluation in this process, with the mirror as working directory."""
    import datasets.config
    import huggingface_hub.constants
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(where)
    paths = [str(lm_eval_tasks() / name) for name in ("mmlu/default", "glue", "gsm8k")]
    return lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={folder},dtype=float32",
        tasks=tasks,
        samples=samples,
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False, include_path=[*paths, str(where), *include]),
        **settings,
    )


def chosen(evaluator):
    return {leaf.name: leaf.ids for task in evaluator.tasks for leaf in task.leaves}


def test_group_is_aggregated_as_lm_eval_does(folder, mirror, model, monkeypatch):
    task = SuiteTask(limit=3, num_fewshot=2)
    evaluator = Evaluator(Suite(name="s", tasks={"mmlu_stem": task}, batch_size=8), folder, datasets=str(mirror))
    ours = evaluator.evaluate(model)
    theirs = run_lm_eval(folder, mirror, ["mmlu_stem"], chosen(evaluator), monkeypatch, num_fewshot=2)
    score = ours.tasks["mmlu_stem"]
    assert score.value == pytest.approx(theirs["results"]["mmlu_stem"]["acc,none"])
    assert score.n == ours.documents.num_rows == 3 * len(theirs["samples"])
    assert 0 < score.stderr < 0.2
    want = {
        f"{name}:{i}": s["acc"]
        for name, rows in theirs["samples"].items()
        for i, s in zip(chosen(evaluator)[name], rows)
    }
    got = {r["document"]: r["value"] for r in ours.documents.to_pylist()}
    assert got == want
    assert ours.lm_eval["groups"].keys() == theirs["groups"].keys()


def test_matthews_keeps_gold_and_prediction(folder, mirror, model, monkeypatch):
    tasks = {"cola": SuiteTask(metric="mcc", limit=40)}
    evaluator = Evaluator(Suite(name="s", tasks=tasks, batch_size=8), folder, datasets=str(mirror))
    ours = evaluator.evaluate(model)
    theirs = run_lm_eval(folder, mirror, ["cola"], chosen(evaluator), monkeypatch)
    assert ours.errors == {}
    assert ours.tasks["cola"].value == pytest.approx(theirs["results"]["cola"]["mcc,none"])
    rows = ours.documents.to_pylist()
    gold = [r["value"] for r in rows if r["metric"] == "mcc.0"]
    said = [r["value"] for r in rows if r["metric"] == "mcc.1"]
    assert list(zip(gold, said)) == [tuple(map(float, s["mcc"])) for s in theirs["samples"]["cola"]]


def test_generation_gives_lm_evals_own_text(folder, mirror, model, monkeypatch):
    tasks = {"gsm8k": SuiteTask(metric="exact_match", filter="flexible-extract", num_fewshot=0, limit=2)}
    evaluator = Evaluator(Suite(name="s", tasks=tasks, batch_size=2), folder, datasets=str(mirror))
    heard = []
    apply = evaluator.tasks[0].leaves[0].task.apply_filters
    leaf = evaluator.tasks[0].leaves[0]
    monkeypatch.setattr(
        leaf.task, "apply_filters", lambda: (heard.extend(r.resps[0] for r in leaf.task.instances), apply())
    )
    told = []
    step = SimpleNamespace(advance=lambda n=1, **fields: told.append((n, fields["task"])))
    bar = SimpleNamespace(step=lambda label, total: told.append(total) or contextlib.nullcontext(step))
    ours = evaluator.evaluate(model, progress=bar)
    assert told == [2, (2, "gsm8k")]
    theirs = run_lm_eval(folder, mirror, ["gsm8k"], chosen(evaluator), monkeypatch, num_fewshot=0)
    rows = [s for s in theirs["samples"]["gsm8k"] if s["filter"] == "flexible-extract"]
    assert heard == [s["resps"][0][0] for s in rows]
    assert ours.answer_length == sum(len(s["resps"][0][0]) for s in rows) / len(rows) > 0
    assert ours.tasks["gsm8k"].metric == "exact_match,flexible-extract"
    assert ours.tasks["gsm8k"].value == theirs["results"]["gsm8k"]["exact_match,flexible-extract"]


@pytest.fixture
def own_tasks(tmp_path):
    """A folder of task files: perplexity of texts, and a multiple-choice task with few-shot examples."""
    texts = ["the cat sat on the mat " * 3, "numbers 1 2 3 4 5", "a longer text about nothing at all " * 40]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    rolling = {
        "task": "texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "texts.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    (tmp_path / "texts.yaml").write_text(yaml.safe_dump(rolling))
    rows = [{"q": f"is {i} even", "a": ["no", "yes"], "gold": (i + 1) % 2} for i in range(30)]
    (tmp_path / "even.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    choice = {
        "task": "even",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "even.jsonl"), "train": str(tmp_path / "even.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "training_split": "train",
        "fewshot_split": "train",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "a",
        "doc_to_target": "gold",
        "metric_list": [{"metric": m} for m in ("acc", "acc_norm", "acc_mutual_info", "f1")],
    }
    (tmp_path / "even.yaml").write_text(yaml.safe_dump(choice))
    return tmp_path


def test_include_path_rolling_and_unconditional_requests(folder, own_tasks, model, monkeypatch):
    tasks = {"texts": SuiteTask(metric="bits_per_byte"), "even": SuiteTask(metric="acc_mutual_info", num_fewshot=3)}
    suite = Suite(name="s", tasks=tasks, batch_size=8, include_path=str(own_tasks))
    evaluator = Evaluator(suite, folder)
    ours = evaluator.evaluate(model)
    assert ours.errors == {}
    theirs = run_lm_eval(folder, own_tasks, ["even"], None, monkeypatch, num_fewshot=3)
    rolled = run_lm_eval(folder, own_tasks, ["texts"], None, monkeypatch)
    assert ours.tasks["even"].value == theirs["results"]["even"]["acc_mutual_info,none"]
    assert ours.lm_eval["results"]["even"]["f1,none"] == theirs["results"]["even"]["f1,none"]
    assert ours.tasks["texts"].value == pytest.approx(rolled["results"]["texts"]["bits_per_byte,none"], rel=1e-6)
    assert evaluator.evaluate(model).tasks == ours.tasks


def test_chat_template_is_put_round_prompts(folder, own_tasks, model, monkeypatch, tmp_path):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    words.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant]"
    chatty = tmp_path / "chatty"
    model.save_pretrained(chatty)
    words.save_pretrained(chatty)
    suite = Suite(name="s", tasks={"even": SuiteTask()}, batch_size=8, include_path=str(own_tasks), chat_template=True)
    ours = Evaluator(suite, chatty).evaluate(model)
    theirs = run_lm_eval(chatty, own_tasks, ["even"], None, monkeypatch, apply_chat_template=True)
    got = [r["value"] for r in ours.documents.to_pylist() if r["metric"] == "acc"]
    assert got == [s["acc"] for s in theirs["samples"]["even"]]
    assert theirs["samples"]["even"][0]["arguments"][0][0].startswith("[user] is 0 even")


def test_layout_is_read_by_lm_evals_own_tools(folder, model, suite, tmp_path):
    from lm_eval.utils import handle_non_serializable, make_table

    layout = Evaluator(suite, folder).evaluate(model, name="a merge").lm_eval
    table = make_table(layout)
    assert "|add" in table.replace(" ", "")
    assert "acc" in table
    assert layout["config"]["model_args"] == {"model": "a merge (in memory)"}
    assert layout["results"]["add"]["acc_stderr,none"] > 0
    assert json.loads(json.dumps(layout, default=handle_non_serializable))["n-samples"]["add"]["effective"] == 40


def test_limits_take_the_same_documents_for_all_models(folder, mirror):
    def ids(seed):
        suite = Suite(name="s", tasks={"arc_easy": SuiteTask(limit=25)}, seed=seed)
        return Evaluator(suite, folder, datasets=str(mirror)).tasks[0].leaves[0].ids

    assert ids(1) == ids(1) == sorted(set(ids(1)))
    assert ids(1) != ids(2)
    assert max(ids(1)) > 25
    assert os.environ.get("HF_HUB_OFFLINE") is None
