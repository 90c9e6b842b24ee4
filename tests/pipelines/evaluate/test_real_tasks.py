"""Real documents under stock task names, against the lm_eval command on the same saved folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conf.schema import Suite, SuiteTask
from pipelines.evaluate.evaluator import Evaluator, forget_answers

TASKS = ("arc_easy", "hellaswag", "boolq", "winogrande")


@pytest.fixture(scope="module")
def evaluator(folder, mirror):
    suite = Suite(name="real", tasks={task: SuiteTask() for task in TASKS}, limit=12, batch_size=8)
    return Evaluator(suite, folder, datasets=str(mirror))


@pytest.fixture(scope="module")
def theirs(evaluator, folder, mirror, tmp_path_factory):
    """``lm_eval run`` as a process of its own, on the same documents; samples by task."""
    out = tmp_path_factory.mktemp("lm_eval")
    chosen = {leaf.name: leaf.ids for task in evaluator.tasks for leaf in task.leaves}
    run = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={folder}"]
    run += ["--tasks", ",".join(TASKS), "--samples", json.dumps(chosen), "--batch_size", "8", "--device", "cpu"]
    run += ["--log_samples", "--output_path", str(out)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, cwd=mirror, env={**os.environ, **offline}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    samples = {}
    for task in TASKS:
        (file,) = Path(out).glob(f"**/samples_{task}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[task] = sorted(rows, key=lambda r: r["doc_id"])
    return samples


def test_equals_the_lm_eval_command(evaluator, theirs, model, mirror):
    where = os.getcwd()
    evaluation = evaluator.evaluate(model)
    assert os.getcwd() == where
    rows = evaluation.documents.to_pylist()
    for task in TASKS:
        for metric in ("acc", "acc_norm"):
            ours = [r["value"] for r in rows if r["task"] == task and r["metric"] == metric]
            assert ours == [s[metric] for s in theirs[task] if metric in s]
        assert evaluation.tasks[task].n == 12
    assert evaluation.versions["share_prefix"]


def test_log_likelihoods_equal_lm_evals(evaluator, theirs, model):
    model.eval()
    with evaluator.lm.holding(model, 8):
        evaluator.scorer.prepare(model)
        for leaf in (leaf for task in evaluator.tasks for leaf in task.leaves):
            evaluator.scorer.run(leaf, model, lambda n, task: None)
            ours = [a for requests in leaf.instances for request in requests for a in request.resps]
            want = [a[0] for s in theirs[leaf.name] for a in s["resps"]]
            # lm-eval sums hundreds of float32 terms: 1e-4, and float32's own rounding where sums are large
            expected = [float(w[0]) for w in want]
            assert [a[0] for a in ours] == pytest.approx(expected, abs=1e-4, rel=1e-6)
            assert [str(a[1]) for a in ours] == [str(w[1]) for w in want]
    forget_answers(evaluator.tasks)
