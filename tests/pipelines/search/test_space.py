"""The space of a search: checked against the method, turned into proposals and configurations."""

import math

import pytest
from scipy.stats import beta as beta_distribution

from conf.errors import UserError
from conf.schema import Search
from mergeopt_core.merging.mergekit_api import describe
from pipelines.search.space import Dimension, check_sampler, import_optuna, make_space, propose, with_values

TIES, DARE = describe("ties"), describe("dare")
EXPERTS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("info", "space", "words"),
    [
        (TIES, {"densty": {"low": 0, "high": 1}}, ["densty", "density", "mergebench methods ties"]),
        (TIES, {"density": {"low": 0.1, "hihg": 1}}, ["hihg", "high"]),
        (TIES, {"density": {"low": 0.1, "high": 1.5}}, ["density cannot be 1.5"]),
        (TIES, {"density": {"low": 0.5, "high": 0.5}}, ["empty"]),
        (TIES, {"density": {"low": 0.1}}, ["low and high"]),
        (TIES, {"density": 0.3}, ["neither a range nor choices"]),
        (TIES, {"lambda": {"low": 0, "high": 1, "log": True}}, ["logarithmic"]),
        (TIES, {"lambda": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}, ["log and step"]),
        (TIES, {"lambda": {"beta": [1]}}, ["no Beta distribution"]),
        (TIES, {"lambda": {"low": 0, "high": 1, "per_expert": True}}, ["one value for all experts"]),
        (TIES, {"lambda": {"choices": ["much"]}}, ["is a number"]),
        (DARE, {"base_method": {"choices": ["tie"]}}, ["base_method cannot be 'tie'", "ties"]),
        (describe("karcher"), {}, ["no parameter with a usual range", "max_iter"]),
    ],
)
def test_what_the_method_does_not_have_is_refused_with_the_nearest(info, space, words):
    with pytest.raises(UserError) as raised:
        make_space(space, info, EXPERTS)
    for word in words:
        assert word in str(raised.value)


def test_usual_ranges_where_none_are_named():
    assert [d.name for d in make_space({}, TIES, EXPERTS)] == ["lambda", "density"]
    weights = make_space({}, describe("linear"), EXPERTS)
    assert [(d.name, d.expert) for d in weights] == [("weight.a", 0), ("weight.b", 1), ("weight.c", 2)]


def test_values_take_the_place_of_the_configured_ones():
    space = {"density": {"low": 0, "high": 1, "per_expert": True}, "lambda": [0.5, 1.0], "normalize": {}}
    dimensions = make_space(space, TIES, EXPERTS)
    raw = {"density.a": 0.1, "density.b": 0.2, "density.c": 0.3, "lambda": 0.5, "normalize": False}
    made = with_values({"method": "ties", "density": 0.9, "weight": 1.0}, dimensions, raw, 3)
    assert made == {
        "method": "ties",
        "density": [0.1, 0.2, 0.3],
        "weight": 1.0,
        "lambda": 0.5,
        "normalize": False,
    }


def test_grids_have_ends_steps_and_choices():
    assert Dimension("x", "x", low=0.1, high=0.7).points(4) == [0.1, 0.3, 0.5, 0.7]
    assert Dimension("x", "x", low=0.01, high=100, log=True).points(5) == [0.01, 0.1, 1, 10, 100]
    assert Dimension("x", "x", low=0, high=0.7, step=0.2).points(9) == [0, 0.2, 0.4, 0.6]
    assert Dimension("x", "x", low=2, high=4, integer=True).points(1) == [2, 3, 4]
    assert Dimension("x", "x", low=0.0, high=1.0).points(1) == [0.5]


def drawn(dimensions, seed, numbers):
    """Configurations that the random sampler proposes, and their numbers; earlier ones are in the study's journal."""
    study = import_optuna().create_study()
    return [propose(study, Search(sampler="random", seed=seed), dimensions, 0).params for _ in range(numbers)]


def test_a_beta_dimension_is_drawn_by_its_quantiles():
    dimension = Dimension("lambda", "lambda", low=0.5, high=1.5, beta=(2.0, 5.0))
    for quantile in (0.05, 0.5, 0.95):
        assert dimension.value(quantile) == pytest.approx(0.5 + beta_distribution(2, 5).ppf(quantile))
    values = [dimension.value(params["lambda"]) for params in drawn([dimension], 0, 400)]
    assert sum(values) / 400 == pytest.approx(0.5 + 2 / 7, abs=4 * 0.16 / math.sqrt(400))


def test_draws_depend_on_the_seed_and_their_number_alone():
    both = [Dimension("a", "a"), Dimension("b", "b", low=0.01, high=1.0, log=True)]
    first = drawn(both, 3, 8)
    assert first == drawn(both, 3, 8)
    assert len({params["a"] for params in first + drawn(both, 4, 8)}) == 16
    logs = [math.log(params["b"]) for params in drawn(both, 0, 400)]
    assert sum(logs) / 400 == pytest.approx(math.log(0.1), abs=4 * math.log(100) / math.sqrt(12 * 400))


def test_counts_of_configurations():
    space = make_space({"density": {"low": 0.1, "high": 1}, "lambda": [0.1, 0.2]}, TIES, EXPERTS)
    assert check_sampler(Search(sampler="grid", trials=None, points=3), space) == 6
    assert check_sampler(Search(sampler="grid", trials=4, points=3), space) == 4
    with pytest.raises(UserError, match=r"search\.trials=30"):
        check_sampler(Search(sampler="random", trials=None), space)
    with pytest.raises(UserError, match="two ranges"):
        check_sampler(Search(sampler="cmaes"), space)
    with pytest.raises(UserError, match=r"tpee.*did you mean tpe"):
        check_sampler(Search(sampler="tpee"), space)


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_proposal_that_a_kill_left_half_made_changes_no_later_one(sampler):
    optuna, dimensions = import_optuna(), [Dimension("a", "a"), Dimension("b", "b")]
    found = []
    for killed in (False, True):
        study = optuna.create_study()
        for number in range(4):
            if killed and number == 2:
                study.tell(study.ask().number, state=optuna.trial.TrialState.FAIL)
            proposal = propose(study, Search(sampler=sampler, seed=3), dimensions, 0)
            study.tell(proposal.number, proposal.params["a"])
            found.append(proposal.params)
    assert found[:4] == found[4:]
