"""Tasks that are classes, ask for several kinds of answers, and give values of several kinds."""

import json

import datasets.config
import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager

from conf.schema import Suite, SuiteTask
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.suite import suite_fingerprint

SOURCE = """
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

class Mixed(ConfigurableTask):
    VERSION = 1
    DATASET_PATH = "some/set"

    def __init__(self, config=None):
        super().__init__(config={"metadata": {"version": 1}})

    def has_training_docs(self): return False
    def has_validation_docs(self): return True
    def has_test_docs(self): return False
    def validation_docs(self): return self.dataset["train"]
    def doc_to_text(self, doc): return doc["q"]
    def doc_to_target(self, doc): return " yes"

    def construct_requests(self, doc, ctx, chat_template=None, apply_chat_template=False, **kwargs):
        text = Instance("generate_until", doc, (ctx, {"until": ["."], "max_gen_toks": 3}), 0, **kwargs)
        return [text, Instance("loglikelihood", doc, (ctx, " yes"), 0, **kwargs)]

    def process_results(self, doc, results):
        text, (value, _) = results
        parts = {"length": len(text), "above": {"two": np.bool_(value > -5)}}
        return {"acc": np.bool_(len(text) % 2), "value": value, "parts": parts}

    def aggregation(self):
        return {"acc": mean, "value": mean, "parts": len}

    def higher_is_better(self): return {"acc": True, "value": True, "parts": True}
"""


@pytest.fixture
def mixed(tmp_path):
    """A class task in a folder of task files, and a mirror with its data."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mixed.py").write_text(SOURCE)
    (tmp_path / "tasks" / "mixed.yaml").write_text("task: mixed\nclass: !function mixed.Mixed\n")
    data = tmp_path / "mirror" / "some" / "set"
    data.mkdir(parents=True)
    rows = [{"q": f"add {i} {i + 1}"} for i in range(12)]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_mixed_requests_of_a_class_task_from_a_mirror(mixed, folder, model, monkeypatch):
    suite = Suite(name="s", tasks={"mixed": SuiteTask()}, batch_size=4, include_path=str(mixed / "tasks"))
    mirror = str(mixed / "mirror")
    ours = Evaluator(suite, folder, datasets=mirror).evaluate(model)
    assert ours.errors == {}
    monkeypatch.chdir(mirror)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={folder},dtype=float32",
        tasks=["mixed"],
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False, include_path=str(mixed / "tasks")),
    )
    rows = ours.documents.to_pylist()
    values = {m: [r["value"] for r in rows if r["metric"] == m] for m in sorted({r["metric"] for r in rows})}
    samples = theirs["samples"]["mixed"]
    assert values["acc"] == [float(s["acc"]) for s in samples]
    assert values["value"] == pytest.approx([s["value"] for s in samples], abs=1e-4)
    assert values["parts.length"] == [s["parts"]["length"] for s in samples]
    assert values["parts.above.two"] == [float(s["parts"]["above"]["two"]) for s in samples]
    assert isinstance(samples[0]["acc"], np.bool_)
    key = suite_fingerprint(suite, mirror)["tasks"]["mixed"]
    assert key["data"].keys() == {"some/set"}
    (mixed / "mirror" / "some" / "set" / "train.jsonl").write_text(json.dumps({"q": "add"}) + "\n")
    assert suite_fingerprint(suite, mirror)["tasks"]["mixed"] != key


def test_a_result_says_what_lm_evals_own_file_says(mixed, folder, model, monkeypatch, tmp_path):
    from lm_eval.loggers import EvaluationTracker

    tasks = mixed / "tasks"
    (tasks / "kind.jsonl").write_text("".join(json.dumps({"q": f"add {i}", "g": i % 2}) + "\n" for i in range(9)))
    (tasks / "kind.yaml").write_text(
        "task: kind\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: q\n"
        f"dataset_kwargs: {{data_files: {{test: {tasks}/kind.jsonl}}}}\ndoc_to_choice: ['0', '1']\ndoc_to_target: g\n"
        "metric_list: [{metric: acc}, {metric: mcc}]\n"
    )
    source = {"pretrained": str(folder), "dtype": "float32"}
    suite = Suite(name="s", tasks={"kind": SuiteTask(limit=5)}, include_path=str(tasks), batch_size=4, sample="first")
    ours = Evaluator(suite, folder).evaluate(model, source=source).lm_eval
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=source,
        tasks=["kind"],
        limit=5,
        device="cpu",
        batch_size=4,
        bootstrap_iters=100,
        evaluation_tracker=tracker,
        task_manager=TaskManager(include_defaults=False, include_path=str(tasks)),
    )
    tracker.save_results_aggregated(results=theirs, samples=theirs.pop("samples"))
    (file,) = (tmp_path / "out").glob("**/results_*.json")
    saved = json.loads(file.read_text())
    assert saved.keys() - ours.keys() == {"upper_git_hash"}
    assert saved["config"].keys() - ours["config"].keys() == {"model_revision", "model_sha", "batch_sizes", "use_cache"}
    ends = (
        "_token",
        "_sha",
        "hashes",
        "samples",
        "max_length",
        "_source",
        "_better",
        "versions",
        "n-shot",
        "multiturn",
    )
    same = [name for name in saved if name.endswith(ends) or name.startswith("model_name")]
    assert {name: ours[name] for name in same} == {name: saved[name] for name in same}
    assert len(ours["task_hashes"]["kind"]) == 64
    for name in (
        "random_seed",
        "numpy_seed",
        "torch_seed",
        "fewshot_seed",
        "limit",
        "model_args",
        "model_num_parameters",
    ):
        assert ours["config"][name] == saved["config"][name]
    assert ours["results"]["kind"]["mcc_stderr,none"] == pytest.approx(
        saved["results"]["kind"]["mcc_stderr,none"], rel=0.5
    )


def test_documents_of_one_outcome_are_noted(mixed, folder, model):
    page = (
        "dataset_path: json\noutput_type: multiple_choice\ntest_split: train\ndoc_to_text: q\ndoc_to_choice: [a, b]\n"
    )
    page += f"dataset_kwargs: {{data_files: {mixed}/mirror/some/set/train.jsonl}}\nmetric_list: [{{metric: acc}}]\n"
    (mixed / "tasks" / "wrong.yaml").write_text(page + "task: wrong\ndoc_to_target: c\n")
    suite = Suite(name="s", tasks={"wrong": SuiteTask()}, include_path=str(mixed / "tasks"))
    score = Evaluator(suite, folder).evaluate(model).tasks["wrong"]
    assert (score.value, score.stderr) == (0, 0)
    assert score.note == "all 12 documents have the same outcome, 0.0: look at doc_to_target"
