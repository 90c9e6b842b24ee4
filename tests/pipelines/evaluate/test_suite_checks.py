"""The task index against lm-eval's own, fingerprints that move with what they should, and problems in words."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conf.schema import Suite, SuiteTask
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.lookup import leaves, lm_eval_tasks, scan, task_index
from pipelines.evaluate.suite import check_suite, suite_fingerprint


def suite(**tasks) -> Suite:
    return Suite(name="s", tasks=tasks)


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, pipelines.evaluate; print([m for m in ('torch', 'lm_eval', 'transformers') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[3]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ["arc", "leaderboard", "mmlu", "glue", "headqa", "okapi", "aexams"])
def test_index_equals_lm_evals(folder):
    from lm_eval.tasks import TaskManager

    root = lm_eval_tasks() / folder
    theirs = TaskManager(include_defaults=False, include_path=str(root))
    ours = scan(root)
    assert sorted(ours.tasks) == theirs.all_subtasks
    assert sorted(ours.groups) == theirs.all_groups
    assert sorted(ours.tags) == theirs.all_tags
    for name in theirs.all_subtasks + theirs.all_groups:
        assert str(theirs.task_index[name].yaml_path) == {**ours.tasks, **ours.groups}[name]
    for tag in theirs.all_tags:
        assert set(ours.tags[tag]) == theirs.task_index[tag].tags


def test_members_of_groups_and_tags_are_found():
    index = task_index()
    assert len(leaves("mmlu", index)) == 57
    assert {leaf.name for leaf in leaves("ai2_arc", index)} == {"arc_easy", "arc_challenge"}
    assert len(leaves("leaderboard_bbh", index)) == 24


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "has no tasks"),
        ({"arc_eazy": SuiteTask()}, "did you mean arc_easy"),
        ({"x": SuiteTask(skill="ad")}, "did you mean add"),
        ({"arc_easy": SuiteTask(metric="accuracy")}, "no metric 'accuracy'; did you mean acc"),
        ({"gsm8k": SuiteTask(metric="exact_match")}, "no filter 'none'"),
        ({"humaneval": SuiteTask(metric="pass@1", filter="create_test")}, "suite.run_code=true"),
        ({"arc_easy": SuiteTask(limit=0)}, "tasks.arc_easy.limit is 0"),
        ({"arc_easy": SuiteTask(limit=1.5)}, "limit is 1.5; it has to be a number of documents, or a share"),
        ({"arc_easy": SuiteTask(limit="all")}, "limit is all"),
        ({"arc_easy": SuiteTask(num_fewshot=-1)}, "num_fewshot is -1; it has to be 0 or more"),
    ],
)
def test_problems_are_told(tasks, message):
    assert message in " ".join(check_suite(suite(**tasks)))


def test_missing_data_are_named(tmp_path):
    (problem,) = check_suite(suite(arc_easy=SuiteTask()), datasets=str(tmp_path))
    assert problem == f"task arc_easy: the mirror {tmp_path} has no data set allenai/ai2_arc"
    (tmp_path / "allenai" / "ai2_arc").mkdir(parents=True)
    assert check_suite(suite(arc_easy=SuiteTask()), datasets=str(tmp_path)) == []
    assert "is no folder" in check_suite(suite(arc_easy=SuiteTask()), datasets=str(tmp_path / "absent"))[0]


def test_single_files_on_the_hub_are_mirrored_too(tmp_path, folder, model):
    problems = check_suite(suite(prost=SuiteTask()), datasets=str(tmp_path))
    assert problems == [f"task prost: the mirror {tmp_path} has no data set corypaik/prost"]
    (tmp_path / "corypaik" / "prost" / "data").mkdir(parents=True)
    row = {"context": "A cup.", "ex_question": "Which?", "label": 1, "A": "one", "B": "two", "C": "three", "D": "four"}
    (tmp_path / "corypaik" / "prost" / "data" / "default.jsonl").write_text(json.dumps(row) + "\n")
    evaluation = Evaluator(suite(prost=SuiteTask()), folder, datasets=str(tmp_path)).evaluate(model)
    assert evaluation.errors == {}
    assert evaluation.tasks["prost"].n == 1


def test_a_split_that_the_data_lack_is_told(tmp_path):
    for file in ("main/train.jsonl", "main/test.jsonl"):
        (tmp_path / "openai" / "gsm8k" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "openai" / "gsm8k" / file).write_text('{"question": "1 + 1", "answer": "#### 2"}\n')
    page = "---\nconfigs:\n- config_name: main\n  data_files:\n"
    page += "".join(f"  - {{split: {split}, path: main/{split}.jsonl}}\n" for split in ("train", "test"))
    (tmp_path / "openai" / "gsm8k" / "README.md").write_text(page + "---\n")
    spec = {"metric": "exact_match", "filter": "strict-match"}

    def problems(split):
        return check_suite(suite(gsm8k=SuiteTask(**spec, split=split)), datasets=str(tmp_path), online=False)

    assert problems("train") == problems("test") == problems(None) == []
    (problem,) = problems("validation")
    assert problem.startswith("task gsm8k: gsm8k has no split 'validation'")
    assert "train" in problem


def test_a_split_that_a_task_s_own_files_lack_is_told(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"q": "a"}\n')
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "mine.jsonl")}},
    }
    task |= {"test_split": "test", "output_type": "multiple_choice", "metric_list": [{"metric": "acc"}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    own = Suite(name="s", tasks={"mine": SuiteTask()}, include_path=str(tmp_path))
    assert check_suite(own) == []
    assert check_suite(dataclasses.replace(own, split="validation")) == [
        "task mine: mine has no split 'validation'; valid names: test"
    ]


def test_offline_without_mirror_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert check_suite(suite(arc_easy=SuiteTask()), online=True) == []
    assert "the hub may not be asked" in check_suite(suite(arc_easy=SuiteTask()), online=False)[0]
    (tmp_path / "hub" / "datasets--allenai--ai2_arc").mkdir(parents=True)
    assert check_suite(suite(arc_easy=SuiteTask()), online=False) == []


def test_sound_suites_have_no_problems(mirror):
    assert check_suite(suite(add=SuiteTask(skill="add"))) == []
    real = suite(**{task: SuiteTask() for task in ("arc_easy", "hellaswag", "boolq", "winogrande", "mmlu")})
    assert check_suite(real, str(mirror), online=False) == []


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 7},
        {"split": "validation"},
        {"batch_size": 2},
        {"dtype": "bfloat16"},
        {"seed": 1},
        {"chat_template": True},
        {"attack": "stresstest"},
        {"max_length": 128},
        {"tasks": {"add": SuiteTask(skill="add", num_fewshot=2)}},
        {"tasks": {"add": SuiteTask(skill="odd")}},
        {"tasks": {"add": SuiteTask(skill="add", metric="acc_norm")}},
    ],
)
def test_fingerprint_moves_with_what_changes_a_number(change):
    before = suite(add=SuiteTask(skill="add"))
    after = dataclasses.replace(before, **change)
    assert suite_fingerprint(before) != suite_fingerprint(after)


@pytest.mark.parametrize(("dtype", "matters"), [("float32", True), ("bfloat16", False), ("float16", False)])
def test_sharing_moves_the_fingerprint_only_where_prefixes_can_be_shared(dtype, matters):
    shared, apart = (suite(add=SuiteTask(skill="add")) for _ in range(2))
    shared.dtype = apart.dtype = dtype
    apart.share_prefix = False
    assert (suite_fingerprint(shared) != suite_fingerprint(apart)) == matters


def test_fingerprint_stays_otherwise():
    before = suite(add=SuiteTask(skill="add"), odd=SuiteTask(skill="odd"))
    after = suite(odd=SuiteTask(skill="odd"), add=SuiteTask(skill="add"))
    after.name, after.run_code = "another", True
    assert json.dumps(suite_fingerprint(before), sort_keys=True) == json.dumps(suite_fingerprint(after), sort_keys=True)


def test_fingerprint_follows_data_and_task_files(tmp_path):
    tasks, data = tmp_path / "tasks", tmp_path / "data"
    tasks.mkdir()
    (data / "org" / "set").mkdir(parents=True)
    (data / "org" / "set" / "test.jsonl").write_text("{}\n")
    (tasks / "mine.yaml").write_text("task: mine\ndataset_path: org/set\noutput_type: multiple_choice\n")
    own = Suite(name="s", tasks={"mine": SuiteTask()}, include_path=str(tasks))
    first = suite_fingerprint(own, str(data))
    assert first["tasks"]["mine"]["data"].keys() == {"org/set"}
    (data / "org" / "set" / "test.jsonl").write_text('{"a": 1}\n')
    second = suite_fingerprint(own, str(data))
    (tasks / "mine.yaml").write_text(
        "task: mine\ndataset_path: org/set\noutput_type: multiple_choice\nnum_fewshot: 1\n"
    )
    third = suite_fingerprint(own, str(data))
    assert first != second != third
    assert check_suite(own, str(data)) == []


@pytest.mark.parametrize("changed", ["data.jsonl", "set/train.csv", "below/base.yaml", "below/more.py", "group.yaml"])
def test_fingerprint_follows_everything_that_a_task_reads(changed, tmp_path):
    files = {
        "data.jsonl": "{}",
        "set/train.csv": "a,b",
        "below/base.yaml": "output_type: multiple_choice\ndoc_to_text: !function more.text",
        "below/more.py": "def text(doc): return doc['q']",
        "group.yaml": "group: ours\ntask: [mine, another]\naggregate_metric_list: [{metric: acc}]",
        "mine.yaml": f"task: mine\ninclude: below/base.yaml\ndataset_path: {tmp_path}/set",
        "another.yaml": f"task: another\ndataset_path: json\ndataset_kwargs: {{data_files: ['{tmp_path}/da*.jsonl']}}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    own = Suite(name="s", tasks={"ours": SuiteTask()}, include_path=str(tmp_path))
    assert check_suite(own) == []
    before = suite_fingerprint(own)
    assert suite_fingerprint(own) == before
    (tmp_path / changed).write_text(
        files[changed].replace("}]", ", weight_by_size: false}]").replace("text", "other") + " \n"
    )
    assert suite_fingerprint(own) != before
    (tmp_path / "data.jsonl").unlink()
    assert "there is no" in check_suite(own)[0]


def test_data_of_class_tasks_are_known():
    index = task_index()
    assert [leaf.dataset for leaf in leaves("squadv2", index)] == ["lighteval/squad_v2"]
    assert {leaf.dataset for leaf in leaves("scrolls_qasper", index)} == {"tau/scrolls"}


def test_the_choice_of_documents_is_keyed_where_it_is_not_seeded():
    tasks = {"add": SuiteTask(skill="add", limit=5), "odd": SuiteTask(skill="odd")}
    seeded, first = (suite_fingerprint(Suite(name="s", tasks=tasks, sample=s))["tasks"] for s in ("seeded", "first"))
    assert "sample" not in seeded["add"]
    assert first["add"] == {**seeded["add"], "sample": "first"}
    assert first["odd"] == seeded["odd"]
    assert "did you mean first" in check_suite(Suite(name="s", tasks=tasks, sample="fist"))[0]
