"""Tasks that score with packages of their own: AlpacaEval with a judge on loopback, LiveBench's instructions."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from conf.schema import Suite, SuiteTask
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.tasks.livebench import checks


class Judge(BaseHTTPRequestHandler):
    """A judge of OpenAI's protocol that prefers the reference, save for the instruction "add 0"."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"]
        outputs = asked[asked.index("Here are the outputs") :]
        first = outputs.index("the reference") < outputs.index('"model_2"')
        if "add 0" in asked:
            first = not first
        ranks = ["model_1", "model_2"] if first else ["model_2", "model_1"]
        text = str([{"model": name, "rank": place} for place, name in enumerate(ranks, 1)])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
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


def test_alpaca_eval_asks_its_judge(folder, model, tmp_path, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("IS_ALPACA_EVAL_2", "False")
    pytest.importorskip("alpaca_eval", reason="the extra alpaca is not installed")
    place = tmp_path / "tatsu-lab" / "alpaca_eval"
    place.mkdir(parents=True)
    configs = {"config_name": "alpaca_eval", "data_files": [{"split": "eval", "path": "eval.jsonl"}]}
    (place / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [configs]})}---\n")
    rows = [{"instruction": f"add {k}", "output": "the reference", "generator": "r", "dataset": "d"} for k in range(5)]
    (place / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = SuiteTask(metric="win_rate", limit=4)
    evaluator = Evaluator(Suite(name="s", tasks={"alpaca_eval": task}), folder, datasets=str(tmp_path))
    assert evaluator.problems == {}
    for requests in evaluator.tasks[0].leaves[0].instances:
        requests[0].arguments[1]["max_gen_toks"] = 4
    evaluation = evaluator.evaluate(model)
    server.shutdown()
    assert evaluation.errors == {}
    score = evaluation.tasks["alpaca_eval"]
    assert (score.value, score.n) == (0.25, 4)


def test_livebench_instructions_by_ifevals_checkers():
    pytest.importorskip("langdetect")
    names = ["punctuation:no_comma", "length_constraints:number_words"]
    doc = {"turns": ["Say something."], "instruction_id_list": names}
    doc["kwargs"] = [{}, {"num_words": 3, "relation": "at least"}]
    assert checks.instruction(doc, ["one two three four"]) == {"score": 1.0}
    assert checks.instruction(doc, ["one, two, three"]) == {"score": 0.25}  # not all, half of them
    assert checks.instruction(doc, ["one, two"]) == {"score": 0.0}
    assert checks.instruction(doc, [""]) == {"score": 0.0}
