"""First commands of a stranger, on models and data of their own: each gives what was asked, or one line and exit 2."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner
from world import ROWS

from cli.app import app
from pipelines.store.store import Store

SUMS = ("suite=custom", "+suite.tasks.sums.metric=acc", "suite.include_path=tasks", "executor.device=cpu")
SKILL = ("suite=custom", "+suite.tasks.add.skill=add", "suite.limit=4", "executor.device=cpu")
OWN = ("--config-dir", "conf")
TRAIN = ("training.steps=1", "executor.device=cpu")


@pytest.fixture
def call(world, tmp_path, run, monkeypatch):
    """Run ``mergebench ARGS`` in the stranger's folder with a store of the test's own: code, output, error."""
    here = tmp_path / "here"
    here.mkdir()
    for path in world.iterdir():
        (here / path.name).symlink_to(path)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def in_folder(*args: str) -> tuple[int, str, str]:
        done = run(*args, cwd=here)
        return done.returncode, done.stdout, done.stderr

    return in_folder


def told(done: tuple[int, str, str]):
    """The JSON of a command that went well."""
    code, out, err = done
    assert code == 0, err
    return json.loads(out)


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.allclose(found[k], wanted[k], atol=2e-6) for k in wanted)


def accuracy(folder: str | Path) -> float:
    """Share of the own task's documents on which the model likes the right option best, by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    right = 0
    for row in ROWS:
        with torch.no_grad():
            scores = model(torch.tensor([tokenizer(row["prompt"])["input_ids"]])).logits[0, -1]
        options = [tokenizer.convert_tokens_to_ids(option) for option in "468"]
        right += "468"[int(scores[options].argmax())] == row["completion"]
    return right / len(ROWS)


def score(done: tuple[int, str, str]) -> float:
    return told(done)[0]["tasks"]["sums"]["value"]


def step_of_sgd(folder: str, lr: float) -> dict[str, torch.Tensor]:
    """θ − lr · ∇ of the mean loss over all completion tokens of all rows, end of sequence included."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    losses = []
    for row in ROWS:
        start = len(tokenizer(row["prompt"])["input_ids"])
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        likely = model(torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
        losses.append(-likely.gather(1, torch.tensor(ids[start:])[:, None])[:, 0])
    torch.cat(losses).mean().backward()
    return {name: (p - lr * p.grad).detach() for name, p in model.named_parameters()}


SGD = (
    *("optimizer=sgd", "optimizer.lr=0.5", "optimizer.weight_decay=0", "training.schedule=constant"),
    *("training.batch_size=20", "training.clip=0", *TRAIN),
)


@pytest.mark.parametrize("task", [("task.path=mine.jsonl",), ("task=file", "task.path=mine.jsonl"), ("task=own", *OWN)])
@pytest.mark.parametrize("base", [("base.path=base",), ("base=folder", "base.path=base")])
def test_finetune_trains_the_named_base_on_the_named_file(call, base, task):
    (made,) = told(call("finetune", *base, *task, *SGD, "out=expert", "--json"))
    assert (made["name"], made["task"], Path(made["base"]["path"]).name) == ("mine", "mine", "base")
    assert close(weights("expert"), step_of_sgd("base", 0.5))


@pytest.mark.parametrize(
    "given", ["method.weight=[1,2,3]", "+method.weight={a:1,b:2,c:3}", "method.weight={c:3,a:1,b:2}"]
)
def test_merge_takes_a_weight_for_each_of_three_experts(call, given):
    assert call("merge", "base.path=base", "experts=[a,b,c]", given, "out=merged")[0] == 0
    a, b, c = weights("a"), weights("b"), weights("c")
    assert close(weights("merged"), {k: (a[k] + 2 * b[k] + 3 * c[k]) / 6 for k in a})


def test_merge_moves_the_named_base(call):
    args = ("base.path=base", "experts=[a,b]", "method=task_arithmetic", "method.lambda=0.5", "executor.device=cpu")
    assert call("merge", *args, "out=merged")[0] == 0
    base, a, b = weights("base"), weights("a"), weights("b")
    assert close(weights("merged"), {k: base[k] + 0.5 * (a[k] + b[k] - 2 * base[k]) for k in base})


def methods() -> list[str]:
    return [info["name"] for info in json.loads(CliRunner().invoke(app, ["methods", "--json"]).output)]


def test_what_the_page_of_a_method_prints_can_be_run(call):
    for name in methods():
        page = call("methods", name)[1]
        assert "required" not in page
        commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("mergebench ")]
        for command in commands:
            done = call(*(word.replace("out=merged", f"out={name}") for word in command))
            assert done[0] == 0, (command, done[2])
        assert weights(name).keys() == weights("base").keys()
    base, a = weights("base"), weights("a")
    turn = {k: torch.acos((base[k].flatten() @ a[k].flatten()) / (base[k].norm() * a[k].norm())) for k in base}
    halfway = {k: (base[k] + a[k]) * torch.sin(turn[k] / 2) / torch.sin(turn[k]) for k in base}
    assert all(torch.allclose(weights("slerp")[k], halfway[k], atol=1e-4) for k in base)


@pytest.mark.parametrize(
    "asked", [("base.path=base",), ("base=folder", "base.path=base"), ("model=a",), ("model=./c",)]
)
def test_evaluate_scores_what_is_named_and_says_so(call, asked):
    named = asked[-1].partition("=")[2]
    assert score(call("evaluate", *asked, *SUMS, "--json")) == pytest.approx(accuracy(named))
    page = call("evaluate", *asked, *SUMS)[1]
    assert f"custom · {named}" in page
    assert "tiny" not in page
    said = ("suite custom", "fewshot", "sample all", "dtype float32", "device cpu", "batch size 32", "engine lm_eval")
    assert all(word in " ".join(page.split()) for word in (f"base {Path(named).name}", *said)), page


def test_evaluate_scores_a_merge_in_memory_as_its_folder(call):
    merge = ("base.path=base", "experts=[a,b,c]", "method.weight=[1,2,3]")
    assert call("merge", *merge, "out=merged")[0] == 0
    assert score(call("evaluate", *merge, *SUMS, "--json")) == pytest.approx(accuracy("merged"))


def test_evaluate_writes_its_output_whether_new_or_cached(call):
    for out in ("new", "cached"):
        (entry,) = told(call("evaluate", "base.path=base", *SUMS, f"out={out}", "--json"))
        assert json.loads(Path(out, "entry.json").read_text())["key"] == entry["key"]
        assert {"documents.parquet", "lm_eval.json"} <= {file.name for file in Path(out).iterdir()}


def test_a_cached_score_goes_by_the_name_that_is_asked_for(call):
    assert "custom · base" in call("evaluate", "base.path=base", *SKILL)[1]
    assert "custom · ./base" in call("evaluate", "model=./base", *SKILL)[1]


def test_keys_as_ls_prints_them_are_taken_everywhere(call):
    key = told(call("finetune", "base.path=base", "task.path=mine.jsonl", *TRAIN, "--json"))[0]["key"][:10]
    assert key in call("ls")[1]
    store = Path("outputs/store")
    expert = weights(next((store / "experts").glob(f"{key}*")))
    assert call("merge", "base.path=base", f"experts=[{key},experts:{key}]", "out=merged")[0] == 0
    assert close(weights("merged"), expert)
    assert call("evaluate", f"model={key}", *SKILL)[0] == 0
    assert call("evaluate", f"base.path={key}", f"experts=[a,{key}]", *SKILL)[0] == 0
    for command in (("show", key), ("verify", key), ("export", key, "out=exported")):
        assert call(*command)[0] == 0
    scored = told(call("evaluate", "base.path=base", *SKILL, "--json"))[0]["key"][:10]
    code, _, err = call("evaluate", f"model={scored}", *SKILL)
    assert (code, f"mergebench export {scored}" in err) == (2, True)


@pytest.mark.parametrize("key", ["12345678e9", "012e345678"])
def test_a_key_that_has_the_form_of_a_number_is_a_key(call, key):
    base = {"path": "base", "fingerprint": ""}
    about = {"name": "a", "base": base, "finetuning": {"method": "plain"}, "optimizer": {"name": "adamw", "lr": 1e-3}}
    training = {"batch_size": 1, "accumulation": 1, "lora": {"rank": 0}, "steps": 1, "epochs": None}
    with Store("outputs/store").commit("experts", f"{key}0000", {**about, "training": training, "seed": 0}) as draft:
        shutil.copytree("a", draft, dirs_exist_ok=True)
    assert call("merge", "base.path=base", f"experts=[{key},{key}]", "out=merged")[0] == 0
    assert close(weights("merged"), weights("a"))


def test_statistics_as_the_guide_writes_it(call):
    made = told(call("statistics", "experts=[a]", "task=file", "task.path=a.jsonl", "collect.examples=4", "--json"))
    assert {(s["statistic"], s["name"], s["examples"]) for s in made} == {("fisher", "a", 4), ("gram", "a", 4)}
    assert call("statistics", "experts=[b]", "task.path=b.jsonl", "collect.kinds=[gram]")[0] == 0
    assert call("merge", "base.path=base", "experts=[a,b]", "method=regmean", "out=merged")[0] == 0
    code, _, err = call("merge", "base.path=base", "experts=[a,c]", "method=regmean", "out=more")
    assert (code, "statistics of c" in err) == (2, True)


def test_an_own_study_weighs_its_three_experts(call):
    (study,) = told(call("sweep", "+experiment=ours", *OWN, *SUMS, "--json"))
    assert (study["complete"], study["run"]) == (True, 5)
    a, b, c = weights("a"), weights("b"), weights("c")
    model = AutoModelForCausalLM.from_pretrained("base")
    model.load_state_dict({k: (a[k] + 2 * b[k] + 3 * c[k]) / 6 for k in a})
    model.save_pretrained("by-hand")
    AutoTokenizer.from_pretrained("base").save_pretrained("by-hand")
    values = {row["kind"]: row["value"] for row in told(call("results", "--json")) if row["kind"] != "expert"}
    assert values == {"base": pytest.approx(accuracy("base")), "merge": pytest.approx(accuracy("by-hand"))}


def test_every_problem_is_told_when_asked_for(call):
    heads = json.loads(Path("b/config.json").read_text()) | {"num_key_value_heads": 2}
    Path("wide").mkdir()
    for file in Path("b").iterdir():
        (Path("wide") / file.name).symlink_to(file.resolve())
    Path("wide/config.json").unlink()
    Path("wide/config.json").write_text(json.dumps(heads))
    Path("wide/model.safetensors").unlink()
    from safetensors.torch import save_file

    save_file({k: w[:-1].clone() if "proj" in k else w for k, w in weights("b").items()}, "wide/model.safetensors")
    args = ("merge", "base.path=base", "experts=[a,wide]", "out=merged")
    code, out, err = call(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "more; -v lists them all" in err
    problems = json.loads(call(*args, "--json")[1])["problems"]
    assert len(problems) == 1 + sum("proj" in k for k in weights("b"))
    for verbose in (call("-v", *args), call(*args, "-v")):
        assert verbose[2].count("\n") == len(problems)
        assert all(problem["what"] in verbose[2] for problem in problems)


MERGE = ("merge", "base.path=base", "experts=[a,b]", "out=merged")
SCORE = ("evaluate", "base.path=base", *SKILL)
FINETUNE = ("finetune", "base.path=base", "task.path=mine.jsonl", *TRAIN)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        # no base, no task, no model: nothing stands in for them
        (("finetune", "task.path=mine.jsonl"), ["no base is named", "base.path=", "base=tiny"]),
        (("finetune", "base=folder", "task=file", "task.path=mine.jsonl"), ["no base is named"]),
        (("finetune", "base.path=base"), ["no task is named", "task.path="]),
        (("finetune", "base.path=base", "task=file"), ["no task is named"]),
        (("merge", "experts=[a,b]", "out=merged"), ["no base is named"]),
        (("merge", "base.path=base", "out=merged"), ["experts=[a,b]"]),
        (("merge", "base.path=base", "experts=[a,b]"), ["out=DIR"]),
        (("evaluate", *SKILL), ["no model to score", "model=DIR", "base=tiny"]),
        (("evaluate", "experts=[a,b]", *SKILL), ["no base is named"]),
        (("evaluate", "base.name=mine", *SKILL), ["base mine has no path"]),
        (("statistics", "experts=[a]"), ["no task is named"]),
        (("search", "experts=[a,b]", "method=linear", *SKILL, "search.trials=1"), ["no base is named"]),
        (("sweep", "+experiment=nobase", *OWN, *SKILL), ["no base is named", "mine"]),
        # two answers to one question
        (("finetune", "base=tiny", "base.path=base", "task.path=mine.jsonl"), ["base=tiny", "base.path=base"]),
        ((*FINETUNE, "base.layers=3"), ["base.layers", "built-in"]),
        ((*FINETUNE, "task=skills/add"), ["task.path=mine.jsonl", "task.skill=add"]),
        ((*FINETUNE, "training.epochs=2"), ["training.epochs=2", "training.steps"]),
        (("finetune", "base.path=base", "task.path=mine.jsonl", "task.epochs=1", *TRAIN), ["training.steps=1"]),
        (("evaluate", "model=a", "experts=[a,b]", *SKILL), ["experts=[a,b]", "model=…"]),
        (("evaluate", "model=a", "base.path=base", *SKILL), ["base.path=base"]),
        # given and not used
        ((*FINETUNE, "task.split=test"), ["task.split=test", "no splits"]),
        ((*FINETUNE, "task.revision=main"), ["revision"]),
        ((*FINETUNE, "task.messages=chat", "task.prompt=q"), ["task.prompt=q"]),
        ((*FINETUNE, "base.revision=main"), ["no revisions"]),
        ((*FINETUNE, "method=ties"), ["method=ties", "merge"]),
        ((*FINETUNE, "experts=[a]"), ["experts=[a]", "merge"]),
        ((*FINETUNE, "suite=skills"), ["suite=skills", "evaluate"]),
        ((*FINETUNE, "sampler.sizes=[2]"), ["sampler.sizes", "sweep"]),
        ((*FINETUNE, "+experiment=quickstart"), ["+experiment=quickstart", "sweep"]),
        ((*FINETUNE, "optimizer.momentum=0.9"), ["optimizer.momentum", "optimizer=sgd"]),
        ((*FINETUNE, "training.lora.alpha=8"), ["training.lora.rank"]),
        ((*FINETUNE, "executor=ray"), ["executor=ray"]),
        ((*FINETUNE, "seed=1,2", "out=one"), ["2 runs", "out=one"]),
        ((*MERGE, "suite=skills"), ["suite=skills", "evaluate"]),
        ((*MERGE, "model=a"), ["model=a", "evaluate"]),
        ((*MERGE, "task.path=mine.jsonl"), ["task.path", "finetune"]),
        ((*MERGE, "+experiment=quickstart"), ["+experiment=quickstart"]),
        ((*MERGE, "sampler.draws=2"), ["sampler.draws=2"]),
        (("merge", "--mergekit-config", "x.yaml", "base.path=base", "out=merged"), ["base.path=base"]),
        ((*SCORE, "method=ties"), ["method=ties", "experts=[…]"]),
        ((*SCORE, "seed=3"), ["seed=3"]),
        ((*SCORE, "name=mine"), ["name=mine"]),
        ((*SCORE, "+experiment=quickstart"), ["+experiment=quickstart"]),
        ((*SCORE, "executor.workers=2"), ["executor.workers=2", "executor=ray"]),
        (("sweep", "+experiment=quickstart", "base.path=base"), ["base.path=base", "pools.NAME.base.path"]),
        (("sweep", "+experiment=quickstart", "training.steps=3"), ["pools.NAME.training.steps"]),
        (("sweep", "+experiment=quickstart", "method=ties"), ["+method@methods.NAME"]),
        (("sweep", "+experiment=quickstart", "experts=[a,b]"), ["experts=[a,b]"]),
        (("sweep", "+experiment=beside", *OWN), ["base", "conf"]),
        (("ls", "model=a"), ["model=a"]),
        # not here
        ((*FINETUNE[:-1], "executor.device=cuda:99"), ["no device cuda:99"]),
        ((*MERGE, "executor.device=cuda:99"), ["no device cuda:99"]),
        ((*SCORE[:-1], "executor.device=cuda:99"), ["no device cuda:99"]),
        (("finetune", "base.path=base", "task.path=nothing.jsonl"), ["nothing.jsonl"]),
        (("evaluate", "model=deadbeef00", *SKILL), ["deadbeef00", "mergebench ls"]),
        (("evaluate", "model=nothing/here", *SKILL), ["nothing/here"]),
        # wrong in itself
        ((*MERGE, "method.weight=[1,2,3]"), ["3 values for 2 experts"]),
        ((*MERGE, "method.weight={a:1}"), ["no value for expert b"]),
        ((*MERGE, "method.weight={a:1,b:2,z:3}"), ["a value for z"]),
        ((*MERGE, "method=slerp"), ["takes 1 experts, not 2"]),
        (("plan", "+experiment=ours", *OWN, *SKILL, "methods.weighted.weight=[1,2]"), ["2 values for 3 experts"]),
        (("finetune", "base.path=base", "task=broken", *OWN), ["no YAML", "task/broken.yaml:2"]),
        (("sweep", "+experiment=broken", *OWN), ["no YAML", "experiment/broken.yaml"]),
        (("evaluate", "model=a", *SUMS, "suite.include_path=broken"), ["no YAML", "broken/sums.yaml"]),
        ((*FINETUNE, "task.prompt=question"), ["question", "task.prompt"]),
    ],
    ids=lambda value: " ".join(value)[:70] if isinstance(value, tuple) else "",
)
def test_one_line_and_exit_code_2(call, args, words):
    before = {path.name for path in Path().iterdir()}
    code, out, err = call(*args)
    assert code == 2, out + err
    assert (out, err.count("\n"), err.startswith("error ")) == ("", 1, True), err
    for word in words:
        assert word in err
    assert {path.name for path in Path().iterdir()} <= before | {"outputs"}
