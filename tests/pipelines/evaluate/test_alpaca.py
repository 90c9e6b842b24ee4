"""AlpacaEval with a judge on loopback: whom it asks, and its win rates against the package run by itself."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from conf.schema import Judge, Suite, SuiteTask
from pipelines.evaluate import check_suite, suite_fingerprint
from pipelines.evaluate.evaluator import Evaluator

REFERENCE = "the reference, rather long"


class Handler(BaseHTTPRequestHandler):
    """A judge of OpenAI's protocol that prefers the reference, save for the instructions "add 0" and "add 3"."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(request)
        text = request["messages"][-1]["content"].partition("# Task:")[2]  # the annotator shows an example before it
        first = REFERENCE in text.partition("## Output (b):")[0]
        if "add 0" in text or "add 3" in text:
            first = not first
        best = json.dumps({"best_output": f"Output ({'a' if first else 'b'})"})
        call = {"id": "c", "type": "function", "function": {"name": "print_best_model", "arguments": best}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "usage": usage}
        data = json.dumps({**answer, "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def data(tmp_path):
    """A mirror with twelve instructions, and what the package's regression knows of them."""
    place = tmp_path / "tatsu-lab" / "alpaca_eval"
    place.mkdir(parents=True)
    rows = [
        {"instruction": f"add {k}", "output": REFERENCE + "!" * k, "generator": "r", "dataset": "d"} for k in range(12)
    ]
    (place / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(rows))
    lines = [f"{k},{0.3 * (k % 5) - 0.5},{k % 2},{0.1 * k - 0.6},False,gamed" for _ in "ab" for k in range(12)]
    head = "index,instruction_difficulty,preference,std_delta_len,not_gamed_baseline,model"
    (place / "df_gamed.csv").write_text("\n".join([head, *lines]) + "\n")
    return tmp_path


def suite_of(server, metric, **task):
    judge = Judge(annotator="chatgpt_fn", model="my-judge", address=f"http://127.0.0.1:{server.server_port}/v1")
    spec = SuiteTask(metric=metric, gen_kwargs={"max_gen_toks": 4}, **task)
    return Suite(name="s", tasks={"alpaca_eval_2": spec}, judge=judge, samples="all", batch_size=4)


def test_a_local_judge_is_asked_by_the_named_annotator(folder, model, data, server, monkeypatch):
    pytest.importorskip("alpaca_eval", reason="the extra alpaca is not installed")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    suite = suite_of(server, "win_rate", documents=[0, 1, 2, 5])
    assert check_suite(suite, str(data)) == []
    evaluation = Evaluator(suite, folder, datasets=str(data)).evaluate(model)
    score = evaluation.tasks["alpaca_eval_2"]
    assert (evaluation.errors, score.value, score.n) == ({}, 0.25, 4)
    assert {request["model"] for request in server.asked} == {"my-judge"}
    assert all(request["tools"][0]["function"]["name"] == "print_best_model" for request in server.asked)
    assert len(server.asked) == 4


def test_length_controlled_win_rate_is_the_packages(folder, model, data, server, monkeypatch):
    """The package's own run on the same outputs, all twelve in order, asking the same judge."""
    alpaca_eval = pytest.importorskip("alpaca_eval", reason="the extra alpaca is not installed")
    from alpaca_eval.metrics import glm_winrate

    suite = suite_of(server, "length_controlled_win_rate")
    ours = Evaluator(suite, folder, datasets=str(data)).evaluate(model)
    assert ours.errors == {}
    both = ours.lm_eval["results"]["alpaca_eval_2"]
    outputs = [json.loads(row["sample"]) for row in ours.samples.to_pylist()]
    said = [{"instruction": o["doc"]["instruction"], "output": o["resps"][0][0], "generator": "m"} for o in outputs]
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(data / "tatsu-lab/alpaca_eval/df_gamed.csv"))
    theirs, _ = alpaca_eval.evaluate(
        model_outputs=said,
        reference_outputs=[{k: o["doc"][k] for k in ("instruction", "output", "generator")} for o in outputs],
        annotators_config="chatgpt_fn",
        name="m",
        output_path=None,
        precomputed_leaderboard=None,
        fn_metric="get_length_controlled_winrate",
        metric_kwargs={"save_weights_dir": None},
        sort_by="length_controlled_winrate",
        is_return_instead_of_print=True,
        caching_path=None,
        annotation_kwargs={
            "openai_api_base": suite.judge.address,
            "openai_api_keys": ["none"],
            "client_config_path": "/dev/null",
        },
    )
    row = theirs.loc["m"]
    assert ours.tasks["alpaca_eval_2"].value == pytest.approx(row["length_controlled_winrate"] / 100)
    assert both["win_rate,none"] == pytest.approx(row["win_rate"] / 100)
    assert row["length_controlled_winrate"] != pytest.approx(row["win_rate"])
    assert len(server.asked) == 24  # once for both of our metrics


def test_the_judge_is_in_the_key_by_annotator_and_model(data, server):
    def of(**changed):
        judge = Judge(**{**vars(suite_of(server, "win_rate").judge), **changed})
        tasks = {"alpaca_eval_2": SuiteTask(metric="win_rate")}
        return suite_fingerprint(Suite(name="s", tasks=tasks, judge=judge), str(data))

    assert of() == of(address="http://another/v1")
    assert of(annotator="alpaca_eval_gpt4") != of() != of(model="another")
    skill = {"add": SuiteTask(skill="add")}
    assert suite_fingerprint(Suite(name="s", tasks=skill, judge=Judge(model="m"))) == suite_fingerprint(
        Suite(tasks=skill)
    )


def test_an_unknown_annotator_is_told(data, server):
    pytest.importorskip("alpaca_eval", reason="the extra alpaca is not installed")
    suite = suite_of(server, "win_rate")
    suite.judge.annotator = "chatgpt_fnn"
    assert "did you mean chatgpt_fn" in check_suite(suite, str(data))[0]
    suite.judge.model = None
    assert "judge.address wants judge.model" in check_suite(suite, str(data))[0]
