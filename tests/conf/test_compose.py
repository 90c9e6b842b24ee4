import itertools

import pytest
from omegaconf import OmegaConf

from conf.compose import compose, groups, to_yaml
from conf.errors import UserError
from conf.schema import Base, Config


def only(*overrides: str) -> Config:
    ((config, _),) = compose(list(overrides))
    return config


def test_defaults_are_typed():
    config = only()
    assert isinstance(config, Config)
    assert config.base == Base()  # none: a base is named, never assumed
    assert config.optimizer.name == "adamw"


def test_values_reach_the_dataclasses():
    config = only("optimizer.lr=0.5", "executor.threads=2", "experts=[a,b/c]", "training.lora.rank=8")
    assert config.optimizer.lr == 0.5
    assert config.executor.threads == 2
    assert config.experts == ["a", "b/c"]
    assert config.training.lora.rank == 8


def test_studies_take_methods_in_and_out():
    config = only(
        "+experiment=quickstart", "methods.ties.density=0.4", "~methods.linear", "+method@methods.della=della"
    )
    assert config.methods["ties"]["density"] == 0.4
    assert config.methods["della"]["method"] == "della"
    assert "linear" not in config.methods


def test_a_dictionary_of_dataclasses_takes_new_entries():
    config = only("+suite.tasks.mine={skill:add,limit:3}", "+pools.p.tasks.t.skill=add")
    assert (config.suite.tasks["mine"].skill, config.suite.tasks["mine"].limit) == ("add", 3)
    assert config.pools["p"].tasks["t"].skill == "add"
    assert config.pools["p"].optimizer.name == "adamw"


@pytest.mark.parametrize("first", [0, 1])
def test_a_choice_inside_a_pool_wins_over_the_pools_own_whatever_their_order(first):
    pool, sam = "+pool@pools.p=tiny", "+finetuning@pools.p.finetuning=sam"
    finetuning = only(*((pool, sam) if first == 0 else (sam, pool))).pools["p"].finetuning
    assert finetuning == only("finetuning=sam").finetuning


def test_values_go_in_in_the_order_in_which_they_are_given():
    config = only("+pools.p.tasks.t.skill=add", "pools.p.seed=3", "seed=1", "++seed=2", "optimizer.betas.0=0.5")
    assert (config.pools["p"].seed, config.seed, config.optimizer.betas) == (3, 2, [0.5, 0.999])


def test_an_attack_may_be_named_without_its_suite():
    both = compose(["suite=robustness", "attack=deepwordbug,none"])
    assert [config.suite.attack for config, _ in both] == ["deepwordbug", "none"]


def test_sweep_grammar_is_the_product():
    composed = compose(["seed=1,2", "optimizer.lr=0.1,0.2,0.3"])
    assert {(c.seed, c.optimizer.lr) for c, _ in composed} == {(s, lr) for s in (1, 2) for lr in (0.1, 0.2, 0.3)}


def test_printed_configuration_composes_to_itself():
    _, tree = compose(["+experiment=quickstart"])[0]
    again = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(to_yaml(tree)))
    assert OmegaConf.to_object(again) == OmegaConf.to_object(tree)


def test_own_folder_of_choices(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("method: ties\ndensity: 0.7\n")
    ((config, _),) = compose(["method=mine"], config_dir=str(tmp_path))
    assert config.method["density"] == 0.7
    with pytest.raises(UserError, match="no such folder"):
        compose([], config_dir=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+experiment=quickstat"], ["quickstat", "quickstart", "conf/experiment/"]),
        (["method=tiess"], ["tiess", "ties", "conf/method/"]),
        (["methd=ties"], ["methd", "method"]),
        (["optimizer.lrr=3"], ["optimizer.lrr", "lr", "conf/optimizer/adamw.yaml"]),
        (["optimizer.lr=abc"], ["optimizer.lr=abc", "abc", "Float"]),
        (["+experiment=quickstart", "methods.ties.densty=.1"], ["densty", "density", "conf/method/ties.yaml"]),
        (["+experiment=quickstart", "~methods.tiess"], ["tiess", "ties"]),
        (["+optimizer.foo=1"], ["optimizer.foo", "conf/schema.py"]),
        (["+optimizer.lr=3"], ["there already", "plus sign"]),
        (["+experiment=quickstart", "+method@methods.x=delta"], ["delta", "della"]),
        (["+suite.tasks.x={skil:add}"], ["skil", "skill"]),
        (["+pools.x.sed=1"], ["pools.x.sed", "seed"]),
        (["~optimizer.lr"], ["optimizer.lr", "has to have a value"]),
        (["+pool@pools.p=tiny", "pools.p.suite.limit=3"], ["pools.p.suite", "as a whole"]),
        (["foo"], ["cannot read", "foo", "key=value"]),
        (["base.path=[1"], ["cannot read"]),
        (["sampler.sizes=[a]"], ["sampler.sizes", "Integer"]),
    ],
)
def test_what_is_misspelt_is_answered_with_what_is_valid(overrides, words):
    with pytest.raises(UserError) as caught:
        compose(overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_every_choice_composes():
    """No YAML of the house is broken: each choice of each group (experiments have tests of their own)."""
    of_pictures = [f"+images@suite.tasks.{name}.images={name}" for name in groups()["images"]]
    ((config, _),) = compose(["suite=custom", *of_pictures])
    assert list(config.suite.tasks) == groups()["images"]
    written = {"scale": "+scale", "pool": "+pool@pools.p"}
    each = {
        written.get(group, group): found for group, found in groups().items() if group not in ("experiment", "images")
    }
    for chosen in itertools.zip_longest(*each.values()):  # a choice of every group at a time
        compose([f"{key}={choice}" for key, choice in zip(each, chosen) if choice is not None])


def test_the_studies_of_a_sweep_have_names_of_their_own():
    names = [config.name for config, _ in compose(["+experiment=quickstart", "seed=1,2", "suite.limit=10"])]
    assert names == ["quickstart/seed=1", "quickstart/seed=2"]
    assert only("+experiment=quickstart").name == "quickstart"


def test_pools_stand_as_they_are_written_not_as_the_defaults_list_has_them(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /pool@pools.sam: tiny\n  - /finetuning@pools.sam.finetuning: sam\n"
        "  - /pool@pools.plain: tiny\n  - _self_\nname: mine\npools:\n  plain: {seed: 3}\n  sam: {seed: 3}\n"
    )
    ((config, tree),) = compose(["+experiment=mine"], config_dir=str(tmp_path))
    assert list(config.pools) == list(tree.pools) == ["plain", "sam"]
    assert (config.pools["sam"].finetuning["method"], config.pools["sam"].seed) == ("sam", 3)
    more = ["+experiment=mine", "+pools.b.tasks.add.skill=add", "+pool@pools.a=tiny"]
    assert list(compose(more, config_dir=str(tmp_path))[0][0].pools) == ["plain", "sam", "b", "a"]
    assert next(iter(compose(["+experiment=mergopt_vs_sam"])[0][0].pools)) == "standard"
