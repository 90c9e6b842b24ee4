"""verify, gc, export, results, statistics and search as a person runs them, in this process."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from cli.app import main

SUITE = ("suite=custom", "+suite.tasks.add.skill=add", "suite.limit=8", "executor.device=cpu")
STUDY = ("+method@methods.linear=linear", "sampler.samples=1", "sampler.sizes=[2]", "sampler.base=false", "name=upkept")


@pytest.fixture
def call(own_store, tmp_path, capsys, monkeypatch):
    """Run ``mergebench -q ARGS`` on a store of the test's own; returns exit code, standard output and error."""

    def run(*args: str) -> tuple[int, str, str]:
        where = [f"store={own_store}", f"runs={tmp_path}/runs"]
        monkeypatch.setattr(sys, "argv", ["mergebench", "-q", *args, *where])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def swept(call, tiny_pool):
    code, out, _ = call("sweep", *tiny_pool.overrides, *SUITE, *STUDY, "--json")
    assert code == 0
    return json.loads(out)[0]


def test_the_store_is_looked_after(call, swept, tmp_path, own_store):
    code, out, _ = call("verify", "--all", "--json")
    assert (code, {c["state"] for c in json.loads(out)}) == (0, {"ok"})
    assert json.loads(call("gc", "--json")[1])["waste"] == []
    code, out, _ = call("gc", "--forget", "upkept", "--kind", "results")
    assert code == 0
    assert "--delete" in out
    told = list(csv.DictReader(io.StringIO(call("results")[1])))
    assert {row["kind"] for row in told} == {"expert", "merge"}
    assert len(json.loads(call("results", "--json", "name=upkept")[1])) == len(told)
    merged = next(row["key"] for row in told if row["kind"] == "merge")
    code, out, _ = call("export", merged[:10], f"out={tmp_path}/out", "--json")
    assert (code, json.loads(out)["key"]) == (0, merged)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    file = own_store / "results" / merged / "entry.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "weights": "0" * 64}))
    code, out, _ = call("verify", f"results:{merged[:10]}")
    assert code == 1
    assert "differs" in out


def test_entries_are_found_by_kind_and_words_and_shown_as_a_card(call, swept):
    entries = json.loads(call("ls", "--json")[1])
    results = json.loads(call("ls", "--kind", "results", "--json")[1])
    assert {entry["kind"] for entry in results} == {"results"}
    assert json.loads(call("ls", "kind=results", "--json")[1]) == results
    assert len(results) == sum(entry["kind"] == "results" for entry in entries) == 4
    assert [entry["made"] for entry in results] == sorted(entry["made"] for entry in results)
    (merged,) = json.loads(call("ls", "linear", "--json")[1])
    assert merged["trial"] == "merge"
    code, card, _ = call("show", merged["key"][:10])
    assert code == 0
    assert merged["key"] in card
    assert "method   linear" in card
    assert f"{merged['tasks']['add']['value']:.4f}" in card
    code, _, err = call("ls", "--kind", "exprts")
    assert (code, "experts" in err) == (2, True)


def test_statistics_and_search_answer_in_json(call, tiny_pool):
    settings = (*tiny_pool.overrides, *SUITE, "collect.examples=3")
    code, out, _ = call("statistics", *tiny_pool.overrides, "collect.examples=3", "collect.kinds=[fisher]", "--json")
    assert (code, [s["statistic"] for s in json.loads(out)]) == (0, ["fisher"] * 3)
    code, out, _ = call("search", *settings, "search.trials=2", "search=random", "method=ties", "--json")
    (told,) = json.loads(out)
    assert (code, told["tried"], told["tuned_on"], told["reported_on"]) == (0, 2, "validation", "test")
    assert told["difference"]["low"] <= told["difference"]["estimate"] <= told["difference"]["high"]
    code, out, _ = call("search", *settings, "search.trials=2", "search=random", "method=ties")
    assert code == 0
    assert "density" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["verify"], ["--all"]),
        (["verify", "zzzz"], ["zzzz", "mergebench ls"]),
        (["gc", "--forget", "nothing"], ["nothing"]),
        (["gc", "--kind", "result"], ["did you mean results"]),
        (["export", "zzzz", "out=x"], ["zzzz"]),
        (["export", "zzzz"], ["out=DIR"]),
        (["results", "--format", "parkuet"], ["parkuet", "parquet"]),
        (["results", "name=nothing"], ["nothing"]),
        (["statistics"], ["expert"]),
        (["statistics", "experts=[x]"], ["task=skills/add"]),
        (["statistics", "experts=[x]", "task=skills/add", "collect.kinds=[fischer]"], ["did you mean fisher"]),
        (["search"], ["experts=[a,b]"]),
        (["search", "experts=[a,b]", "method=ties", "+search.space.densty.low=0"], ["densty", "density"]),
        (["search", "experts=[a,b]", "search.sampler=tpx"], ["tpx", "tpe"]),
        (["search", "experts=[a,b]", "suite=skills", "search.split=test"], ["search.force=true"]),
        (["search", "experts=[a,b]", "suite=skills", "search.split=validaton"], ["validaton"]),
        (["prefetch", "suite=skills"], ["out=DIR"]),
        (["prefetch", "suite=skills", "out=x", "online=false"], ["online=true"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(call, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*args)
    assert code == 2, err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error")]) == 1
    for word in words:
        assert word in err
    assert not Path("x").exists()
