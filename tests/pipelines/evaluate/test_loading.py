"""What a suite says of how a checkpoint is loaded: its own code, one of its chat templates, quantised weights."""

import dataclasses
import importlib.util
import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch

from conf.errors import UserError
from conf.schema import Executor, SuiteTask
from pipelines.checkpoints.code import runs_code
from pipelines.evaluate import check_suite, suite_fingerprint
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.reader import check_reader
from pipelines.merge.recipe import Recipe
from pipelines.store.provenance import provenance
from pipelines.store.store import Store
from pipelines.study.sources import Access
from pipelines.study.trial import Trial
from pipelines.study.worker import Worker

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = FACTOR * out.logits
        return out
"""
OWN = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


def trial_of(folders, suite, store, method=None):
    """A trial on the first folder, or on a merge of the others over it."""
    base, *experts = (Access(store).source(Access(store).open(str(folder))) for folder in folders)
    kind = "merge" if method else "base"
    recipe = Recipe(base.path, tuple(e.path for e in experts), method, {}, 0, "float32") if method else None
    return Trial(kind, base, tuple(experts), suite, suite_fingerprint(suite), recipe)


@pytest.fixture
def work(tmp_path):
    store = Store(tmp_path / "store")
    return store, Worker(Access(store), Executor(device="cpu"))


@pytest.fixture
def picky(suite):
    return dataclasses.replace(suite, share_prefix=False, tasks={"add": SuiteTask(skill="add")})


@pytest.fixture
def own(folder, tmp_path, monkeypatch):
    """A checkpoint whose model is a class of its own, which turns the logits round."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    out = tmp_path / "own"
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": OWN}))
    (out / "own.py").write_text(CODE.replace("FACTOR", "-1"))
    return out


def test_a_checkpoints_own_code_runs_where_it_is_trusted_by_name(own, folder, picky, model, work, monkeypatch):
    store, worker = work
    trusting = dataclasses.replace(picky, trust_remote_code=[str(own)])
    about = worker.run(trial_of([own], trusting, store))
    model.register_forward_hook(lambda module, inputs, out: setattr(out, "logits", -out.logits))
    theirs = Evaluator(picky, folder).evaluate(model).tasks["add"].value  # the same by hand
    plain = worker.run(trial_of([folder], picky, store))
    assert about["tasks"]["add"]["value"] == theirs != plain["tasks"]["add"]["value"]
    assert about["settings"]["code"][0] in provenance(about)["options"]
    assert trial_of([own], trusting, store).source["trust_remote_code"] is True

    kept = trial_of([own], trusting, store).key
    (own / "own.py").write_text(CODE.replace("FACTOR", "-2"))
    assert trial_of([own], trusting, store).key != kept
    other = dataclasses.replace(picky, trust_remote_code=[str(own), "org/other"])
    assert trial_of([folder], other, store).key == trial_of([folder], picky, store).key  # it has none


def test_code_that_is_not_trusted_is_refused_in_one_line(own, picky, work, tmp_path):
    store, worker = work
    for trust in ([], ["own"], ["org/own"]):
        suite = dataclasses.replace(picky, trust_remote_code=trust)
        (problem,) = check_reader(str(own), suite)
        assert f"suite.trust_remote_code=[{own}]" in problem.do
        became, why, _ = worker.attempt(trial_of([own], suite, store))
        assert (became, why) == ("failed", str(problem))
    snapshot = tmp_path / "models--org--own" / "snapshots" / "abc"
    shutil.copytree(own, snapshot)
    assert runs_code(snapshot, ["org/own"])
    (problem,) = check_reader(str(snapshot), picky)
    assert "[org/own]" in problem.do
    config = json.loads((own / "config.json").read_text())
    foreign = {"AutoConfig": "org/other--own.OwnConfig"}
    (own / "config.json").write_text(json.dumps({**config, "auto_map": foreign}))
    (problem,) = check_reader(str(own), dataclasses.replace(picky, trust_remote_code=[str(own)]))
    assert "another repository" in problem.what


def test_a_template_is_taken_by_name(folder, picky, tmp_path):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    turns = "{%% for m in messages %%}%s {{ m.content }} {%% endfor %%}"
    several = {"default": turns % "odd", "terse": turns % "add"}
    for name, template in (("several", several), ("terse", several["terse"]), ("none", None)):
        words.chat_template = template
        words.save_pretrained(tmp_path / name)
        shutil.copy(folder / "config.json", tmp_path / name)

    def prompts(place, template):
        suite = dataclasses.replace(picky, chat_template=template)
        evaluator = Evaluator(suite, tmp_path / place)
        assert evaluator.problems == {}
        return [r.args[0] for r in evaluator.tasks[0].leaves[0].task.instances], evaluator.lm.chat_template(True)

    assert prompts("several", "terse") == prompts("terse", True)
    assert prompts("several", True) != prompts("several", "terse")
    for place, template, known in (("several", "tese", "did you mean terse"), ("none", True, "chat_template=false")):
        suite = dataclasses.replace(picky, chat_template=template)
        (problem,) = check_reader(str(tmp_path / place), suite)
        assert known in str(problem)
        with pytest.raises(UserError, match=known):
            Evaluator(suite, tmp_path / place)


def test_a_named_template_is_in_the_key(folder, picky, tmp_path):
    store, own = Store(tmp_path / "store"), tmp_path / "own"
    shutil.copytree(folder, own)

    def key(template):
        from pipelines.study.sources import tokenizer_fingerprint

        tokenizer_fingerprint.cache_clear()
        return trial_of([own], dataclasses.replace(picky, chat_template=template), store).key

    before = [key(template) for template in (True, "terse", "long")]
    (own / "additional_chat_templates").mkdir()
    (own / "additional_chat_templates" / "terse.jinja").write_text("x")
    after = [key(template) for template in (True, "terse", "long")]
    assert len({*before}) == 3
    assert [a == b for a, b in zip(after, before)] == [True, False, True]


@pytest.mark.parametrize("how", ["8bit", "4bit"])
def test_merged_weights_are_quantised_as_bitsandbytes_does_a_checkpoint(folder, picky, work, how, tmp_path):
    """In memory bit for bit what ``from_pretrained`` with the same settings makes of the merge on disk."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    store, worker = work
    suite = dataclasses.replace(picky, quantization=how)
    moved = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        moved.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    shutil.copytree(folder, tmp_path / "moved")
    moved.save_pretrained(tmp_path / "moved")
    trial = trial_of([folder, folder, tmp_path / "moved"], suite, store, "linear")
    about = worker.run(trial)
    assert about["versions"]["quantization"].startswith(f"{how}, bitsandbytes ")
    worker.model(trial).save_pretrained(tmp_path / "merged")
    settings = BitsAndBytesConfig(**{f"load_in_{how}": True})
    theirs = LlamaForCausalLM.from_pretrained(
        tmp_path / "merged", quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    want = Evaluator(picky, folder).evaluate(theirs)
    assert pq.read_table(store.folder("results", trial.key) / "documents.parquet").equals(want.documents)


def test_quantisation_at_the_loaders_edge(folder, picky, model, work, monkeypatch):
    """A stand-in for what transformers loads: it is given live weights and settings, and what it gives is scored."""
    import transformers

    store, worker = work
    load, asked = transformers.LlamaForCausalLM.from_pretrained, {}

    def coarse(name, **options):
        if name is not None:
            return load(name, **options)
        asked.update(options)
        made = load(folder)
        made.load_state_dict({key: (8 * w).round() / 8 for key, w in options["state_dict"].items()})
        return made

    monkeypatch.setattr(transformers, "BitsAndBytesConfig", lambda **chosen: chosen)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", coarse)
    monkeypatch.setattr("pipelines.evaluate.requests.version", lambda package: "0")
    quantised, plain = (
        worker.run(trial_of([folder], dataclasses.replace(picky, quantization=how), store))["tasks"]["add"]["value"]
        for how in ("4bit", None)
    )
    assert asked["quantization_config"] == {"load_in_8bit": False, "load_in_4bit": True}
    assert quantised != plain
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((8 * weight).round() / 8)
    assert quantised == Evaluator(picky, folder).evaluate(model).tasks["add"].value


def test_what_cannot_be_quantised_is_told(picky, monkeypatch):
    assert "did you mean 8bit" in check_suite(dataclasses.replace(picky, quantization="8bits"))[0]
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    assert "needs the package bitsandbytes" in check_suite(dataclasses.replace(picky, quantization="8bit"))[0]
    told = check_suite(dataclasses.replace(picky, quantization="8bit", linearised=True))
    assert "linearised" in told[0]
    told = check_suite(dataclasses.replace(picky, attn_implementation="eagre"))
    assert told == ["no attn_implementation is called 'eagre'; did you mean eager?"]
    assert "template's name" in check_suite(dataclasses.replace(picky, chat_template=3))[0]
