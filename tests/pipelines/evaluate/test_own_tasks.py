"""Task files of our own: TRACE's scores against independent ones, programs against their tests, LiveBench's checks."""

import base64
import json
import pickle
import zlib

import pytest

from conf.schema import Suite, SuiteTask
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.sandbox import isolation
from pipelines.evaluate.tasks.code import checks as code
from pipelines.evaluate.tasks.livebench import checks as livebench
from pipelines.evaluate.tasks.trace import metrics

SOURCE = "About 95 species are currently accepted."
REFERENCES = [
    "About 95 species are currently known.",
    "About 95 species are now accepted.",
    "95 species are now accepted.",
]


def test_sari_of_the_published_example():
    # the value that Hugging Face's metric card gives for this example
    assert 100 * metrics.sari(SOURCE, "About 95 you now get in.", REFERENCES) == pytest.approx(26.953601953601954)


def test_sari_by_hand():
    assert metrics.sari("a b", "a b", ["a b"]) == pytest.approx(1.0)
    # one word each: source a, output b, reference c. unigrams: nothing kept (P = 1 of none, R = 1 of none: F1 1),
    # a deleted rightly (1), b added wrongly (0); longer n-grams: nothing to do, 1 each
    assert metrics.sari("a", "b", ["c"]) == pytest.approx(((1 + 1 + 0) + 3 * 3) / 12)
    # no output is one empty word, as Hugging Face splits it: a not kept (0), b of a and b deleted rightly (1/2), the
    # empty word added wrongly (0); "a b" deleted rightly, nothing else to do
    assert metrics.sari("a b", "", ["a"]) == pytest.approx(((0 + 0.5 + 0) + 3 * 3) / 12)


@pytest.mark.parametrize(
    ("output", "answer", "right"),
    [
        *[("A", "A", 1), (" b.", "B", 1), ("Answer: C", "C\nBecause", 1), ("(A)", "B", 0), ("", "A", 0)],
        *[
            ("Apples", "A", 0),
            ("A long time ago", "A", 0),
            ("A支持", "A", 1),
            ("A\nbecause", "A", 1),
            ("A. no", "A", 1),
        ],
    ],
)
def test_letters(output, answer, right):
    assert metrics.letter({"answer": answer}, [output])["acc"] == right


def test_exact_match_is_equality_of_strings():
    doc = {"answer": "A"}
    assert [metrics.letter(doc, [o])["exact_match"] for o in ("A", " A\n", "A.", "a", "", "A支持")] == [
        1,
        1,
        0,
        0,
        0,
        0,
    ]
    assert [metrics.number({"answer": "12"}, [o])["exact_match"] for o in ("12", "12.0", "is 12")] == [1, 0, 0]
    doc = {"answer": "B\nIt is so."}  # the release compares the first characters
    assert [metrics.reasoned(doc, [o])["exact_match"] for o in ("B", "Because", "(B)", "")] == [1, 1, 0, 0]
    assert [metrics.reasoned(doc, [o])["acc"] for o in ("B", "Because", "(B)", "")] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("output", "answer", "right"), [("1,536", "1536", 1), ("is 3.0 kg", "3", 1), ("4", "3", 0), ("x", "3", 0)]
)
def test_numbers(output, answer, right):
    assert metrics.number({"answer": answer}, [output])["acc"] == right


def test_rouge_l_by_hand():
    # longest common subsequence "the cat mat" of 4 and 5 words: P = 3/4, R = 3/5
    score = metrics.summary({"answer": "the cat on the mat"}, ["the cat likes mat"])["rouge_l"]
    assert score == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))


@pytest.mark.parametrize(
    ("answer", "output", "value"),  # what package rouge 1.0.1 gives for (answer, output)
    [
        (
            "The council approved the plan. It passes to the mayor.",
            "the council approved a plan. The mayor it passes to.",
            0.7368421002770082,
        ),
        ("a b c d", "b a d c", 0.4999999950000001),
    ],
)
def test_rouge_l_of_the_release(answer, output, value):
    assert metrics.summary({"answer": answer}, [output])["rouge_l_trace"] == pytest.approx(value, abs=1e-15)
    assert metrics.summary({"answer": answer}, [""])["rouge_l_trace"] == 0


@pytest.fixture(scope="session")
def trace_mirror(data, tmp_path_factory):
    """TRACE's folders in a mirror, from files of the same shape."""
    out = tmp_path_factory.mktemp("trace")
    names = {
        "trace_cstance": "C-STANCE",
        "trace_fomc": "FOMC",
        "trace_scienceqa": "ScienceQA",
        "trace_numglue_cm": "NumGLUE-cm",
        "trace_numglue_ds": "NumGLUE-ds",
        "qmsum_standin_meetingbank": "MeetingBank",
        "asset_standin_20minuten": "20Minuten",
    }
    for ours, theirs in names.items():
        folder = out / "TRACE" / theirs
        folder.mkdir(parents=True)
        for split, name in (("train", "train"), ("validation", "eval"), ("test", "test")):
            lines = (data / ours / f"{split}.jsonl").read_text().splitlines()
            rows = [{k: json.loads(line)[k] for k in ("prompt", "answer")} for line in lines[:40]]
            (folder / f"{name}.json").write_text(json.dumps(rows))
    return out


def test_trace_suite_runs_on_files_of_its_shape(trace_mirror, folder, model):
    metric = {"trace_meetingbank": "rouge_l_trace", "trace_20minuten": "sari_trace"}
    names = ("cstance", "fomc", "scienceqa", "numglue_cm", "numglue_ds", "meetingbank", "20minuten")
    tasks = {f"trace_{n}": SuiteTask(metric=metric.get(f"trace_{n}", "acc"), limit=2) for n in names}
    evaluator = Evaluator(Suite(name="trace", tasks=tasks, batch_size=2), folder, datasets=str(trace_mirror))
    assert evaluator.problems == {}
    for task in evaluator.tasks:  # the longest answers are not what this test is about
        for requests in task.leaves[0].instances:
            requests[0].arguments[1]["max_gen_toks"] = 4
    evaluation = evaluator.evaluate(model)
    assert evaluation.errors == {}
    assert all(score.n == 2 and 0 <= score.value <= 1 for score in evaluation.tasks.values())


def test_trace_prompts_quote_their_paragraph(trace_mirror):
    rows = json.loads((trace_mirror / "TRACE" / "20Minuten" / "test.json").read_text())
    for row in rows[:5]:
        paragraph = row["prompt"].split("Paragraph:\n")[1].split("\n\nSimplification")[0]
        same = metrics.simplification(row, [row["answer"]])["sari"]
        assert same == pytest.approx(metrics.sari(paragraph, row["answer"], [row["answer"]]))
        assert same > metrics.simplification(row, [paragraph])["sari"]
        whole = metrics.simplification(row, [row["answer"]])["sari_trace"]
        assert whole == pytest.approx(metrics.sari(row["prompt"], row["answer"], [row["answer"]]))


def test_humaneval_and_mbpp_solutions_pass_and_others_do_not(data):
    for name, check, solution in (
        ("humaneval", code.humaneval, "canonical_solution"),
        ("mbpp", code.mbpp, "code"),
    ):
        lines = (data / name / "test.jsonl").read_text().splitlines()[:3]
        for document in map(json.loads, lines):
            assert check(document, [document[solution]]) == {"pass@1": 1.0}
            assert check(document, ["    return None" if name == "humaneval" else "x = 1"]) == {"pass@1": 0.0}
            for end in ("exit()", "raise SystemExit", "__import__('os')._exit(0)"):
                assert check(document, [f"    {end}\n{end}" if name == "humaneval" else end]) == {"pass@1": 0.0}


def test_mbpp_builds_what_its_setup_asks_for(shared):
    lines = (shared / "data" / "mbpp" / "test.jsonl").read_text().splitlines()
    (document,) = (document for document in map(json.loads, lines) if document["task_id"] == 367)  # a tree of Nodes
    assert code.mbpp(document, [document["code"]]) == {"pass@1": 1.0}
    assert code.mbpp(document, [document["code"].replace("return True", "return False")]) == {"pass@1": 0.0}


def test_humaneval_takes_helpers_from_the_prompt(shared):
    lines = (shared / "data" / "humaneval" / "test.jsonl").read_text().splitlines()
    document = next(d for d in map(json.loads, lines) if d["task_id"] == "HumanEval/32")
    assert code.humaneval(document, [document["canonical_solution"]]) == {"pass@1": 1.0}
    assert code.humaneval(document, ["    return 0\n\ndef poly(xs, x): return 0\n"]) == {"pass@1": 0.0}


@pytest.fixture(scope="session")
def code_mirror(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("code")
    (out / "openai").mkdir()
    (out / "openai" / "openai_humaneval").symlink_to(data / "humaneval")
    (out / "google-research-datasets" / "mbpp").mkdir(parents=True)
    (out / "google-research-datasets" / "mbpp" / "full").symlink_to(data / "mbpp")
    splits = "".join(f"  - split: {s}\n    path: full/{s}.jsonl\n" for s in ("prompt", "test"))
    page = f"---\nconfigs:\n- config_name: full\n  data_files:\n{splits}---\n"
    (out / "google-research-datasets" / "mbpp" / "README.md").write_text(page)
    return out


def test_programming_tasks_build_lm_evals_prompts(code_mirror, folder, model):
    tasks = {
        "humaneval_limited": SuiteTask(metric="pass@1", limit=1),
        "mbpp_limited": SuiteTask(metric="pass@1", limit=1),
    }
    suite = Suite(name="s", tasks=tasks, run_code=True, batch_size=1)
    evaluator = Evaluator(suite, folder, datasets=str(code_mirror))
    assert evaluator.problems == {}
    prompts = [task.leaves[0].instances[0][0].args[0] for task in evaluator.tasks]
    assert prompts[0].startswith(("def", "from", "\n", "import"))
    assert prompts[1].count("[BEGIN]") == 4
    assert prompts[1].count("[DONE]") == 3
    lines = (code_mirror / "google-research-datasets" / "mbpp" / "full" / "prompt.jsonl").read_text().splitlines()
    shown = [row["text"] for row in map(json.loads, lines) if row["task_id"] in (2, 3, 4)]
    assert len(shown) == 3
    assert all(text in prompts[1] for text in shown)
    for task in evaluator.tasks:
        task.leaves[0].instances[0][0].arguments[1]["max_gen_toks"] = 4
    evaluation = evaluator.evaluate(model)
    assert evaluation.errors == {}
    assert evaluation.versions["sandbox"] == isolation()


def test_livebench_typos():
    doc = {"ground_truth": "A mended sentence."}
    assert livebench.typos(doc, ["Here it is:\n\nA mended\nsentence.\n"]) == {"score": 1.0}
    assert livebench.typos(doc, ["A mendde sentence."]) == {"score": 0.0}


def contest(public, private, **more):
    return {
        "public_test_cases": json.dumps(public),
        "private_test_cases": private,
        "original_json": {"metadata": json.dumps(more)},
        "partial_solution": None,
    }


def test_livebench_contests():
    stdin = [{"input": "2 3\n", "output": "5\n", "testtype": "stdin"}]
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(stdin)))).decode()
    answer = "```python\na, b = map(int, input().split())\nprint(a {} b)\n```"
    assert livebench.coding(contest(stdin, packed), [answer.format("+")]) == {"score": 1.0}
    assert livebench.coding(contest(stdin, packed), [answer.format("-")]) == {"score": 0.0}
    call = [{"input": "[1, 2]\n3", "output": "[1, 2, 3]", "testtype": "functional"}]
    program = "```\nclass Solution:\n    def f(self, xs: List[int], x):\n        return xs + [x]\n```"
    if_wrong = program.replace("[x]", "[]")
    question = contest(call, "[]", func_name="f")
    assert livebench.coding(question, [program]) == {"score": 1.0}
    assert livebench.coding(question, [if_wrong]) == {"score": 0.0}
    assert livebench.coding(question, [program.replace("xs + [x]", "tuple(xs + [x])")]) == {"score": 1.0}
    assert livebench.coding(question, ["```\nexit()\n```"]) == {"score": 0.0}
    nested = contest([{"input": "1", "output": "[[1, 2]]", "testtype": "functional"}], "[]", func_name="f")
    assert livebench.coding(nested, ["```\ndef f(x): return [(1, 2)]\n```"]) == {"score": 1.0}


def test_packed_tests_may_not_import_anything():
    class Evil:
        def __reduce__(self):
            return (print, ("imported",))

    packed = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(pickle.UnpicklingError, match="no place in test cases"):
        livebench.hidden_tests(packed)
