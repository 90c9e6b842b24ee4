import json
import shutil

import pytest
from safetensors.torch import load_file, save_file


def refused(done, *words: str) -> None:
    """One line on standard error, exit code 2, no traceback, and the words that help."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 1
    for word in words:
        assert word in errors[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["sweep", "+experiment=quickstat"], ["quickstat", "quickstart"]),
        (["sweep"], ["no study", "+experiment=quickstart"]),
        (["merge", "method=tiess"], ["tiess", "ties"]),
        (["merge", "method.denzity=1"], ["method.denzity", "conf/method/linear.yaml"]),
        (["methods", "tsvm"], ["tsvm"]),
        (["evaluate", "model=no/such/folder", "online=false"], ["no/such/folder"]),
        (["finetune", "+finetuning.scal=1"], ["scal"]),
        (["show", "zzzz"], ["zzzz", "mergebench ls"]),
        (["evaluate", "executor.device=tpu9"], ["tpu9", "executor.device"]),
    ],
)
def test_one_line_and_exit_code_2(run, tmp_path, args, words):
    where = [] if args[0] == "methods" else [f"store={tmp_path}/store", f"runs={tmp_path}/runs"]
    refused(run(*args, *where), *words)


def test_a_folder_that_is_no_model(run, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(run("evaluate", f"model={tmp_path}/empty", f"store={tmp_path}/store"), "empty")


def test_shapes_that_do_not_fit(run, tmp_path, tiny_pool):
    other = tmp_path / "other"
    other.mkdir()
    weights = load_file(tiny_pool.experts[0] + "/model.safetensors")
    name = next(n for n in weights if n.endswith("up_proj.weight"))
    weights[name] = weights[name][:-1].clone()
    save_file(weights, other / "model.safetensors")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{tiny_pool.experts[0]}/{file}", other)
    done = run(
        "merge",
        f"base.path={tiny_pool.base}",
        f"experts=[{tiny_pool.experts[0]},{other}]",
        f"out={tmp_path}/out",
        f"store={tmp_path}/store",
    )
    refused(done, name)
    assert not (tmp_path / "out").exists()


def test_problems_of_a_plan_are_all_told_as_json(run, tmp_path):
    done = run(
        "plan", "+experiment=quickstart", "+suite.tasks.nope.task=no_such_task", f"store={tmp_path}/store", "--json"
    )
    assert done.returncode == 2
    assert any("no_such_task" in problem["what"] for problem in json.loads(done.stdout)[0]["problems"])


def test_a_task_without_a_score_is_named_beside_the_others(run, tmp_path, tiny_pool):
    suite = ["suite=custom", "+suite.tasks.add={skill: add, limit: 0.05}", "+suite.tasks.odd={skill: odd, metric: f1}"]
    done = run("evaluate", f"model={tiny_pool.base}", *suite, f"store={tmp_path}/store")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "no metric f1" in " ".join(done.stdout.split())
    assert " 18 " in done.stdout  # a share of 356 items
