"""Tangent-space experts, and merges of them, scored as the linear models that they are."""

from pathlib import Path

import lm_eval
import pyarrow.parquet as pq
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_outputs import CausalLMOutputWithPast

from conf.compose import compose
from conf.errors import UserError
from pipelines.store.samples import DOCUMENTS
from pipelines.store.store import content_key
from pipelines.study.check import check_study
from pipelines.study.layout import lay_out
from pipelines.study.plan import make_plan
from pipelines.study.single import evaluate_model, make_trial, merge_checkpoint
from pipelines.study.sources import access_of
from pipelines.study.sweep import run_study
from pipelines.study.trial import RESULT_VERSION
from pipelines.tiny.lmeval import export_tasks

LIMIT = 40
POOL = (
    *(f"+pools.tangent.tasks.{skill}.skill={skill}" for skill in ("add", "count")),
    "+pools.tangent.base.name=tiny", "+pools.tangent.base.steps=10", "+pools.tangent.training.steps=12",
    "+pools.tangent.optimizer.lr=0.01", "+pools.tangent.finetuning={method: tangent}",
    "suite=custom", "+suite.tasks.add.skill=add", "+suite.tasks.count.skill=count", f"suite.limit={LIMIT}",
    "suite.split=test", "executor.device=cpu", "+method@methods.linear=linear", "name=small",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tangent")


@pytest.fixture(scope="module")
def config_of(folder):
    def config(*more):
        ((composed, _),) = compose([*POOL, f"store={folder}/store", f"runs={folder}/runs", *more])
        return composed

    run_study(config())
    return config


def trials(config):
    return {p.title: p.trial for p in lay_out(config, access_of(config)).planned}


def by_differences(theta0: str, theta: str):
    """f(x; θ0) + J(x; θ0)(θ − θ0) in float64, by a five-point difference of ordinary models."""
    model, other = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (theta0, theta))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    vector = {n: p.detach() - start[n] for n, p in other.named_parameters()}
    forward = model.forward

    def at(h, ids):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(start[n] + h * vector[n])
            return forward(input_ids=ids).logits

    def linear(input_ids, **_):
        h = 0.01
        slope = 8 * (at(h, input_ids) - at(-h, input_ids)) - (at(2 * h, input_ids) - at(-2 * h, input_ids))
        return CausalLMOutputWithPast(logits=at(0.0, input_ids) + slope / (12 * h))

    model.forward = linear
    return model


def test_scores_are_lm_evals_of_the_linear_model(config_of, folder, tmp_path):
    """Expert and merge: lm-eval itself, on finite differences of the ordinary models."""
    config = config_of()
    export_tasks(tmp_path, ["add", "count"], "test", LIMIT)
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path))
    store = access_of(config).store
    found = trials(config)
    merged = f"{tmp_path}/merged"
    experts = found["linear of add, count"].experts
    merge_checkpoint(_merge(config_of, found, f"out={merged}"))
    for title, weights in (("add", experts[0].path), ("linear of add, count", merged)):
        base = found[title].base.path
        oracle = HFLM(pretrained=by_differences(base, weights), tokenizer=AutoTokenizer.from_pretrained(base))
        theirs = lm_eval.simple_evaluate(oracle, tasks=["add", "count"], task_manager=manager, bootstrap_iters=0)
        about = store.entry("results", found[title].key).describe()
        assert about["linearised"] is True
        documents = pq.read_table(store.folder("results", found[title].key) / DOCUMENTS).to_pylist()
        for task in ("add", "count"):
            assert about["tasks"][task]["value"] == pytest.approx(theirs["results"][task]["acc,none"], abs=1e-12)
            want = {str(sample["doc_id"]): sample["acc"] for sample in theirs["samples"][task]}
            assert {r["document"]: r["value"] for r in documents if r["task"] == task} == want


def _merge(config_of, found, *more):
    """The configuration of a command on the experts of the study."""
    trial = found["linear of add, count"]
    experts = ",".join(expert.path for expert in trial.experts)
    return config_of(f"base.path={trial.base.path}", f"experts=[{experts}]", "method=linear", *more)


def test_what_is_linear_and_its_key(config_of):
    linear, network = trials(config_of()), trials(config_of("suite.linearised=false"))
    assert linear["base"].key == network["base"].key, "the base is either"
    for title in ("add", "count", "linear of add, count"):
        one, other = linear[title], network[title]
        assert (one.linearised, other.linearised) == (True, False)
        assert other.key == content_key({"version": RESULT_VERSION, "model": other._model(), "suite": other._suite()})
        assert one.key != other.key
        assert one.model_key == other.model_key, "the weights are the same"
        assert other.about()["linearised"] is False, "that it was scored as a network is recorded"
    assert trials(config_of("suite.linearised=true"))["add"].key == linear["add"].key


def test_a_merge_with_another_kind_of_expert_is_a_network(config_of):
    more = ["+pools.tangent.tasks.count.finetuning={method: plain}"]
    config = config_of(*more)
    assert run_study(config).complete
    found = trials(config)
    assert {title: trial.linearised for title, trial in found.items()} == {
        "base": False, "add": True, "count": False, "linear of add, count": False,
    }  # fmt: skip
    assert "linearised" not in found["linear of add, count"].about()


def test_a_folder_knows_that_it_is_linear(config_of, folder, tmp_path):
    """An expert by its folder, and a merge written to disk, score as in the study."""
    found = trials(config_of())
    merge_checkpoint(_merge(config_of, found, f"out={tmp_path}/merged"))
    store = access_of(config_of()).store
    expert = found["add"].experts[0].path
    for title, path in (("add", expert), ("linear of add, count", f"{tmp_path}/merged")):
        scored = evaluate_model(config_of(f"model={path}")).describe()
        assert scored["linearised"] is True
        assert scored["tasks"] == store.entry("results", found[title].key).describe()["tasks"]
    network = config_of(f"model={expert}", "suite.linearised=false")
    assert make_trial(network, access_of(network)).kind == "base"
    plain = found["base"].base.path
    with pytest.raises(UserError, match="not known at which base"):
        make_trial(config_of(f"model={plain}", "suite.linearised=true"), access_of(config_of()))


def test_a_linear_model_at_the_base_is_the_base(config_of):
    """θ = θ0: the same answers, whatever is said of linearity."""
    base = trials(config_of())["base"].base.path
    one = evaluate_model(config_of(f"model={base}", f"base.path={base}", "suite.linearised=true")).describe()
    assert one["linearised"] is True
    assert one["tasks"] == evaluate_model(config_of(f"model={base}")).describe()["tasks"]


def test_a_choice_that_is_none_is_told(config_of):
    config = config_of("suite.linearised=perhaps")
    assert any("auto, true or false" in str(p) for p in make_plan(config, access_of(config)).problems)


def test_a_training_that_cannot_be_is_told_before_anything_is_made():
    ((config, _),) = compose([*POOL, "pools.tangent.training.precision=bf16"])
    with pytest.raises(UserError, match="all weights in float32"):
        check_study(config)
