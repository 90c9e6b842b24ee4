"""Comparing results of other people's tools: read as they write them, judged by formulas written out here."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conf.errors import UserError
from conf.schema import Statistics
from mergeopt_core.statistics import detectable, documents_needed
from pipelines.compare.compare import MEAN, compare_results
from pipelines.compare.scores import read_scores
from pipelines.store.store import Store

DATE = "2026-03-04T05-06-07.123456"


def write_samples(folder, task, values, metric="acc", filter_="none", date=DATE, hashes=None):
    """What lm_eval --log_samples leaves behind, cut down to what is read."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"doc_id": i, "doc_hash": f"{i if hashes is None else hashes[i]:x}" * 9, "filter": filter_,
         "metrics": [metric, "text"], metric: value, "text": "no number"}
        for i, value in enumerate(values)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"samples_{task}_{date}.jsonl").write_text(text)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def scored(tmp_path):
    rng = np.random.default_rng(3)
    a = {"one": rng.integers(0, 2, 80), "two": rng.integers(0, 2, 50)}
    b = {"one": np.where(rng.random(80) < 0.25, 1, a["one"]), "two": np.where(rng.random(50) < 0.2, 1, a["two"])}
    for name, tasks in (("a", a), ("b", b)):
        for task, values in tasks.items():
            write_samples(tmp_path / name / "model", task, values.tolist())
    return a, b


def test_differences_of_two_models(tmp_path, store, scored):
    a, b = scored
    found = compare_results([str(tmp_path / "a"), str(tmp_path / "b")], store, Statistics())
    rows = {d.task: d for d in found.differences}
    assert set(rows) == {"one", "two", MEAN}
    p = {}
    for task in ("one", "two"):
        row, gap = rows[task], (b[task] - a[task]).astype(float)
        won, lost = int((gap > 0).sum()), int((gap < 0).sum())
        p[task] = stats.binomtest(won, won + lost).pvalue
        assert row.difference == pytest.approx(gap.mean())
        assert row.p == pytest.approx(p[task])
        error = gap.std(ddof=1) / math.sqrt(len(gap))
        multiple = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
        assert row.detectable == pytest.approx(multiple * error)
        assert row.needed == pytest.approx(len(gap) * (multiple * error / gap.mean()) ** 2)
        assert (row.low, row.high) == pytest.approx((gap.mean() - 1.96 * error, gap.mean() + 1.96 * error), abs=0.02)
    first, last = sorted(p, key=p.get)
    assert rows[first].p_holm == pytest.approx(2 * p[first])
    assert rows[last].p_holm == pytest.approx(max(p[last], 2 * p[first]))
    assert rows[MEAN].difference == pytest.approx((rows["one"].difference + rows["two"].difference) / 2)
    assert rows[MEAN].documents == 130


def test_a_difference_of_the_detectable_size_is_found_as_often_as_is_said():
    rng = np.random.default_rng(0)
    n, spread, error = 200, 0.5, 0.5 / math.sqrt(200)
    size = detectable(error, level=0.05, power=0.8)
    gaps = rng.normal(size, spread, (4000, n))
    found = np.abs(gaps.mean(axis=1)) / (gaps.std(axis=1, ddof=1) / math.sqrt(n)) > stats.t.ppf(0.975, n - 1)
    assert found.mean() == pytest.approx(0.8, abs=0.025)
    assert documents_needed(size / 2, error, n) == pytest.approx(4 * n)
    assert math.isnan(documents_needed(0.0, error, n))
    with pytest.raises(ValueError, match="between 0 and 1"):
        detectable(error, power=1.0)


def test_three_models_are_three_pairs_corrected_together(tmp_path, store, scored):
    rng = np.random.default_rng(5)
    for task, count in (("one", 80), ("two", 50)):
        write_samples(tmp_path / "c" / "model", task, rng.random(count).tolist())
    found = compare_results([str(tmp_path / name) for name in "abc"], store, Statistics())
    assert [(d.a, d.b) for d in found.overall] == [("a", "b"), ("a", "c"), ("b", "c")]
    raw = sorted(d.p for d in found.overall)
    assert min(d.p_holm for d in found.overall) == pytest.approx(min(1, 3 * raw[0]))
    assert {d.test for d in found.differences if d.task == "one"} == {"mcnemar", "sign flips"}


def test_the_newest_run_counts_and_other_documents_are_left_out(tmp_path, store):
    write_samples(tmp_path / "a", "one", [0, 0, 0, 0], date="2025-01-01T00-00-00.1")
    write_samples(tmp_path / "a", "one", [1, 0, 1, 1])
    write_samples(tmp_path / "b", "one", [1, 1, 0, 1, 1], hashes=[0, 1, 2, 9, 4])
    found = compare_results([str(tmp_path / "a"), str(tmp_path / "b")], store, Statistics())
    (row,) = found.differences
    assert (row.documents, row.score_a, row.score_b) == (3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert "2 documents" in found.notes[0]


def test_metrics_of_filters_and_by_name(tmp_path):
    write_samples(tmp_path / "a", "sums", [1, 0], metric="exact_match", filter_="strict-match")
    assert set(read_scores(tmp_path / "a")["metric"]) == {"exact_match,strict-match"}


def test_details_of_lighteval(tmp_path, store):
    for name, values in (("a", [1.0, 0.0, 1.0]), ("b", [1.0, 1.0, 1.0])):
        folder = tmp_path / name / "details" / "model" / DATE
        folder.mkdir(parents=True)
        frame = pd.DataFrame({
            "__doc__": [{"query": f"question {i}"} for i in range(3)],
            "__metric__": [{"em": value, "text": None} for value in values],
        })  # fmt: skip
        frame.to_parquet(folder / f"details_lighteval|gsm8k|0_{DATE}.parquet")
    found = compare_results([str(tmp_path / "a"), str(tmp_path / "b")], store, Statistics())
    assert [(d.task, d.metric, d.difference) for d in found.differences] == [
        ("lighteval|gsm8k|0", "em", pytest.approx(1 / 3))
    ]


def test_lm_eval_itself_beside_our_own_result(tmp_path, store, tiny_pool):
    """One model scored by lm_eval and by us is one model: every document has the same score."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    from conf.compose import compose
    from pipelines.study.single import evaluate_model
    from pipelines.tiny.lmeval import export_tasks

    export_tasks(tmp_path / "tasks", ["add"], "test", 20)
    theirs = lm_eval.simple_evaluate(
        model="hf", model_args=f"pretrained={tiny_pool.base}", tasks=["add"], device="cpu", batch_size=16,
        bootstrap_iters=0, task_manager=TaskManager(include_defaults=False, include_path=str(tmp_path / "tasks")),
    )  # fmt: skip
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.log_experiment_args("hf", "pretrained=x", None, None, fewshot_as_multiturn=False)
    samples = theirs.pop("samples")
    tracker.save_results_aggregated(results=theirs, samples=samples)
    tracker.save_results_samples("add", samples["add"])
    suite = ("suite=custom", "+suite.tasks.add.skill=add", "suite.limit=20", "suite.sample=first")
    ((config, _),) = compose([f"base.path={tiny_pool.base}", *suite, f"store={store.root}"])
    ours = evaluate_model(config)
    found = compare_results([str(tmp_path / "theirs"), ours.key], store, Statistics())
    (row,) = found.differences
    assert (row.documents, row.difference, row.p, row.needed) == (20, 0.0, 1.0, pytest.approx(math.nan, nan_ok=True))
    assert row.score_a == theirs["results"]["add"]["acc,none"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no per-document scores"),
        (
            lambda folder: write_samples(folder / "x", "one", [1]) or write_samples(folder / "y", "one", [1]),
            "results of 2 models, such as x and y",
        ),
        (lambda folder: (folder / f"samples_one_{DATE}.jsonl").write_text('{"doc_id": 1}'), "cannot be read"),
        (lambda folder: (folder / f"samples_one_{DATE}.jsonl").write_text("[1, 2"), "cannot be read"),
        (lambda folder: (folder / f"details_one_{DATE}.parquet").write_text("no parquet"), "cannot be read"),
    ],
)
def test_what_cannot_be_compared(tmp_path, store, make, words):
    (tmp_path / "bad").mkdir()
    make(tmp_path / "bad")
    write_samples(tmp_path / "good", "one", [1, 0])
    with pytest.raises(UserError, match=words):
        compare_results([str(tmp_path / "good"), str(tmp_path / "bad")], store, Statistics())


def test_answers_of_two_programs_are_not_compared(tmp_path, store):
    frame = pd.DataFrame({"task": "one", "document": ["0", "1"], "metric": "acc", "value": [0.0, 1.0]})
    for name, options in (("a", {}), ("b", {"generate_with": "vllm"}), ("c", {"generate_with": "vllm"})):
        (tmp_path / name).mkdir()
        frame.to_parquet(tmp_path / name / "documents.parquet")
        about = {"tasks": {"one": {"metric": "acc"}}, "settings": {"options": options}}
        (tmp_path / name / "entry.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="written by transformers and vllm"):
        compare_results([str(tmp_path / "a"), str(tmp_path / "b")], store, Statistics())
    assert compare_results([str(tmp_path / "b"), str(tmp_path / "c")], store, Statistics()).differences[0].p == 1.0


def test_results_that_share_nothing(tmp_path, store):
    write_samples(tmp_path / "a", "one", [1, 0])
    write_samples(tmp_path / "b", "two", [1, 0])
    with pytest.raises(UserError, match="share no document"):
        compare_results([str(tmp_path / "a"), str(tmp_path / "b")], store, Statistics())
    with pytest.raises(UserError, match=r"no result has a task 'on' .*did you mean one"):
        compare_results([str(tmp_path / "a"), str(tmp_path / "b")], store, Statistics(), tasks=["on"])
