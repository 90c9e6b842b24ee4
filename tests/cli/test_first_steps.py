"""First looks of a stranger at what there is and what came out, and the mistakes made there, at 80 columns."""

import json
import re
import sys
from pathlib import Path

import mergebench
import pytest
from test_first_commands import OWN, SKILL, call, close, weights  # noqa: F401

from cli import terminal
from cli.app import main
from cli.completion import complete_override

MERGED = ("base.path=base", "experts=[a,b]")
TRAINED = ("base.path=base", "task.path=mine.jsonl", "training.steps=1")
KINDS = {"results": 5, "merges": 1}
"""Entries of the study that the fixture runs: the base, three experts and their merge, which is kept."""


@pytest.fixture(scope="module")
def swept(world, tmp_path_factory):
    """A store with the results of a study over found experts."""
    store = tmp_path_factory.mktemp("swept") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        patch.setattr(sys, "argv", ["mergebench", "sweep", "+experiment=ours", *OWN, *SKILL, "suite.samples=all",
                                    "keep=all", f"store={store}", f"runs={store.parent}"])  # fmt: skip
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
    return store


@pytest.fixture
def screen(monkeypatch):
    """A terminal of a width."""

    def of(width):
        monkeypatch.setattr(terminal, "out", terminal.Screen(width=width, force_terminal=True, no_color=True))

    return of


def plain(text):
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@pytest.mark.parametrize("width", [80, 120])
def test_methods_breaks_no_word(call, screen, width):  # noqa: F811
    known = [info["name"] for info in json.loads(call("methods", "--json")[1])]
    whole = set(re.findall(r"[\w-]+", call("methods")[1]))
    screen(width)
    code, out, _ = call("methods")
    lines = plain(out).splitlines()
    assert code == 0
    assert max(map(len, map(str.rstrip, lines))) <= width
    for name in known:
        assert any(name in line.split() for line in lines), name
    assert set(re.findall(r"[\w-]+", plain(out))) <= whole


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["ls", "results", "report"])
def test_names_stand_whole_at_the_width_of_a_terminal(call, screen, swept, command, width):  # noqa: F811
    screen(width)
    own = ("+experiment=ours", *OWN, *SKILL, "suite.samples=all", f"runs={swept.parent}") if command == "report" else ()
    code, out, err = call(command, *own, f"store={swept}")
    assert code == 0, err
    lines = plain(out).splitlines()
    assert max(len(line.rstrip()) for line in lines if str(swept.parent) not in line) <= width
    for word in ("base", "weighted" if command == "report" else "linear"):
        assert any(word in line.replace("(", " ").split() for line in lines), out


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--kind", "results"), 5),
        (("--kind", "results", "linear"), 1),
        (("--kind", "merges"), 1),
        (("--kind", "results", "--kind", "merges"), 6),
        (("linear",), 1),
        (("LINEAR", "a"), 1),
        (("weighted",), 1),  # a kept merge goes by the name that the study gave its method
        (("nothing-like-it",), 0),
        (("--kind", "experts"), 0),
    ],
)
def test_ls_finds_by_kind_and_text(call, swept, words, count):  # noqa: F811
    code, out, err = call("ls", *words, f"store={swept}", "--json")
    assert (code, len(json.loads(out))) == (0, count), err
    assert call("ls", *words, f"store={swept}")[0] == 0


def test_show_is_a_card_for_people(call, swept):  # noqa: F811
    for kind, count in KINDS.items():
        keys = [path.name for path in (swept / kind).iterdir()]
        assert len(keys) == count
        code, out, _ = call("show", f"{kind}:{keys[0][:10]}", f"store={swept}")
        assert code == 0
        assert keys[0] in out
        assert len(out.splitlines()) < 40
        assert not out.lstrip().startswith("{")
        assert not re.search(r"\b\d{8,}\b(?!\.)", out.replace(keys[0], ""))  # bytes and seconds are in people's units


def test_the_page_leads_to_the_documents_of_each_score(swept):
    page = (swept.parent / "ours" / "report.html").read_text()
    links = json.loads(re.search(r'id="samples">(.*?)</script>', page)[1])
    assert set(links) == {path.name for path in (swept / "results").iterdir()}
    for path in links.values():
        assert (swept.parent / "ours" / path).read_text().count('class="document"') == 4


def test_compare_takes_what_results_wrote(call, swept):  # noqa: F811
    assert call("results", "--samples", "answers", f"store={swept}")[0] == 0
    one, two, *_ = sorted(str(path) for path in Path("answers").iterdir())
    code, out, err = call("compare", one, two, f"store={swept}", "--json")
    assert code == 0, err
    assert json.loads(out)["differences"][0]["documents"] == 4
    keys = [Path(name).name.rpartition("__")[2] for name in (one, two)]
    again = json.loads(call("compare", *keys, f"store={swept}", "--json")[1])
    assert [d["difference"] for d in again["differences"]] == [d["difference"] for d in json.loads(out)["differences"]]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("extract", "base.path=base", "model=a", "out=x"), ["out_adapter=16"]),
        (("extract", "base.path=base", "out_adapter=4", "out=x"), ["model=DIR"]),
        (("extract", "base.path=base", "model=a", "out_adapter=0", "out=x"), ["rank of 1 or more"]),
        (("extract", "base.path=base", "model=nowhere", "out_adapter=4", "out=x"), ["nowhere"]),
        (("merge", *MERGED, "out_adapter=eight", "out=x"), ["out_adapter=eight", "whole number"]),
        (("diagnose", "base.path=base"), ["'experts=[A,B]'"]),
        (("diagnose", "base", "a"), ["'base'", "key=value"]),
        (("diagnose", *MERGED, "method=ties"), ["method=ties"]),
        (("diagnose", "base.path=base", "experts=[mine.jsonl]"), ["mine.jsonl is a file"]),
        (("calibrate",), ["+experiment=quickstart"]),
        (("calibrate", "+experiment=quickstrat"), ["quickstart"]),
        (("search", *MERGED, "method=ties", *SKILL, "search.trials=0"), ["search.trials"]),
        (("finetune", *TRAINED, "finetuning=mergopt", "finetuning.offsets=expert"), ["noise or pool or experts"]),
        (("finetune", *TRAINED, "finetuning=mergopt", "finetuning.offsets=experts"), ["finetuning.experts=[A,B]"]),
        (("finetune", *TRAINED, "finetuning.offsets=pool"), ["finetuning.offsets"]),
        (("finetune", "base=tiny_clip", "+task.images={skill: digit}", "training.steps=1"), ["digit", "digits"]),
        (("evaluate", "base=tiny_clip", "suite=picturs"), ["pictures"]),
        (("finetune", "base.path=base", "+task.images={skill: digits}", "training.steps=1"), ["the base reads text"]),
        (("show",), ["'KEY'", "mergebench show --help"]),
        (("shwo", "ab"), ["shwo", "show"]),
        (("ls", "--jsn"), ["--jsn", "--json"]),
        (("gc", "--older-than", "never"), ["--older-than", "valid number"]),
        (("results", "--samples"), ["--samples", "requires an argument"]),
        (("compare",), ["two results"]),
        (("compare", "a"), ["two results"]),
        (("compare", "a", "b"), ["no per-document scores", "a", "lm_eval --log_samples"]),
        (("compare", "nowhere", "a"), ["nowhere"]),
        (("compare", "mine.jsonl", "a"), ["mine.jsonl"]),
        (("compare", "a", "b", "--power", "2"), ["power 2"]),
        (("compare", "a", "b", "suite=skills"), ["suite=skills"]),
        (("show", "deadbeef"), ["deadbeef", "mergebench ls"]),
        (("show", "ab"), ["ab", "four or more"]),
        (("show", "results:deadbeef"), ["results:deadbeef"]),
        (("ls", "--kind", "result"), ["results"]),
        (("ls", "kind=reslts"), ["results"]),
        (("methods", "tiess"), ["tiess", "ties"]),
        (("methods", "task-arithmetic"), ["task_arithmetic"]),
        (("push", "deadbeef", "me/mine"), ["deadbeef"]),
        (("export", "deadbeef", "out=x"), ["deadbeef"]),
        (("results", "--samples", "a"), ["a"]),
        (("results", "--samples", "new"), ["suite.samples=all"]),
        (("sweep", "+experiment=quickstrat"), ["quickstart"]),
        (("sweep", "experiment=quickstart"), ["+experiment=quickstart"]),
        (("sweep", "+experiment=ours"), ["ours"]),  # its folder is not named
        (("sweep", "+experiment=ours", "--config-dir", "nowhere"), ["nowhere"]),
        (("sweep", "+experiment=ours", *OWN, *SKILL, "trackers=[wandbb]"), ["wandbb", "wandb"]),
        (("evaluate", "model=a", *SKILL, "trackers=[wandb]"), ["trackers", "sweep"]),
        (("evaluate", "model=a", *SKILL[:-1], "suite.samples=some"), ["samples is some"]),
        (("evaluate", "model=a", "suite=skils"), ["skills"]),
        (("finetune", "base.path=base", "task.path=mine.jsonl", "finetuning=mergop"), ["mergopt"]),
        (("merge", "base=base", "experts=[a]", "out=m"), ["base.path=base"]),
        (("merge", "base.path=base", "experts=a", "out=m"), ["'experts=[a]'"]),
        (("merge", "base=tinny", "experts=[a]", "out=m"), ["did you mean tiny"]),
        (("finetune", "base=org/base", "task.path=mine.jsonl"), ["base.path=org/base"]),
        (("finetune", "base.path=base", "task=mine.jsonl"), ["task.path=mine.jsonl"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(call, args, words):  # noqa: F811
    before = {path.name for path in Path().iterdir()}
    code, out, err = call(*args)
    assert (code, out) == (2, ""), out + err
    assert (err.count("\n"), err.startswith("error ")) == (1, True), err
    for word in words:
        assert word in err
    assert {path.name for path in Path().iterdir()} <= before | {"outputs"}


def test_a_model_becomes_an_adapter_that_gives_it_back(call):  # noqa: F811
    code, out, err = call("diagnose", *MERGED)
    assert (code, "nearly orthogonal" in out) == (0, True), err
    assert call("extract", "base.path=base", "model=a", "out_adapter=16", "out=adapter")[0] == 0
    assert call("merge", "base.path=base", "experts=[adapter,b]", "out=of-adapter")[0] == 0
    assert call("merge", *MERGED, "out=of-models")[0] == 0
    assert close(weights("of-adapter"), weights("of-models"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: mergebench.merge("base.path=base", experts=["a", "b"]), "out=DIR"),
        (lambda: mergebench.merge("base.path=base", experts=["a", "nowhere"], out="m"), "nowhere"),
        (lambda: mergebench.merge(base="base", experts=["a"], out="m"), "base.path=base names a folder"),
        (lambda: mergebench.evaluate(*SKILL, model="nowhere"), "nowhere"),
        (lambda: mergebench.evaluate(*SKILL, model="a", limit=3), "limit"),
        (lambda: mergebench.study("+experiment=quickstrat"), "quickstart"),
        (lambda: mergebench.study(*OWN), "config"),
        (lambda: mergebench.compare("a", "b"), "no per-document scores"),
        (lambda: mergebench.compare("a"), "two results"),
        (lambda: mergebench.finetune("base.path=base", task={"path": "nowhere.jsonl"}), "nowhere.jsonl"),
    ],
    ids=str.split(
        "no-out no-expert base-as-text no-model unknown-setting no-experiment flag no-scores one-result no-file"
    ),
)
def test_a_mistake_from_python_is_the_same_line(call, wrong, words):  # noqa: F811
    with pytest.raises(mergebench.UserError, match=re.escape(words)) as caught:
        wrong()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("suite=", "suite=skills"),
        ("executor=", "executor=ray"),
        ("finetuning=m", "finetuning=mergopt"),
        ("optimizer=", "optimizer=adamw"),
        ("+experiment=in_the", "+experiment=in_the_wild"),
        ("+pool@pools.mine=ti", "+pool@pools.mine=tiny"),
        ("+scale=", "+scale=tiny"),
        ("task=skills/ad", "task=skills/add"),
    ],
)
def test_what_is_typed_is_completed(typed, offered):
    assert offered in complete_override(typed)
