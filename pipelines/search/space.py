"""What is searched (ranges and choices of a method's parameters), and Optuna's proposals of configurations from it.

The sampler is made anew for each proposal, seeded by the search's seed and the proposal's number: a search that was
interrupted goes on as if it had not been.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import betaincinv

from conf.errors import UserError, nearest
from conf.schema import Search
from conf.values import check_values
from mergeopt_core.merging.info import MethodInfo, Parameter
from pipelines.store.store import content_key

SAMPLERS = ("random", "grid", "tpe", "cmaes", "nsga2", "adamerging")
KEYS = ("low", "high", "log", "step", "beta", "choices", "per_expert")
USUAL: dict[str, dict[str, Any]] = {
    "lambda": {"low": 0.1, "high": 1.5},
    "density": {"low": 0.05, "high": 1.0},
    "drop_rate": {"low": 0.0, "high": 0.95},
    "beta": {"low": 0.0, "high": 0.5},
    "scale": {"low": 0.25, "high": 2.0},
    "off_diagonal": {"low": 0.0, "high": 1.0},
    "common_fraction": {"low": 0.2, "high": 1.0},
    "select_topk": {"low": 0.05, "high": 1.0},
}
"""Ranges that are searched where none are named, by parameter."""
WEIGHTS = {"weight": {"low": 0.0, "high": 1.0, "per_expert": True}}
"""The same for a method that has nothing but weights."""


@dataclass(frozen=True)
class Dimension:
    """One number or word that is searched; its fields are part of the search's key."""

    name: str
    """The parameter, or ``parameter.expert`` where each expert has its own."""
    parameter: str
    expert: int | None = None
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    beta: tuple[float, float] | None = None
    """Drawn as low + (high − low) · Beta(a, b); a sampler then moves over the distribution's quantiles."""
    choices: tuple[Any, ...] = ()
    integer: bool = False

    def value(self, raw: Any) -> Any:
        """What the method is given, from what the sampler proposed."""
        return raw if self.beta is None else self.low + (self.high - self.low) * float(betaincinv(*self.beta, raw))

    def points(self, count: int) -> list[Any]:
        """What a grid tries, as the sampler proposes it: all choices, every step, or ``count`` values of the range."""
        if self.choices:
            return list(self.choices)
        if self.beta is not None:
            return [(i + 0.5) / count for i in range(count)]
        if step := self.step or int(self.integer):
            values = [self.low + i * step for i in range(math.floor((self.high - self.low) / step + 1e-9) + 1)]
        else:
            space = np.geomspace if self.log else np.linspace
            values = list(space(self.low, self.high, 3)[1:2] if count == 1 else space(self.low, self.high, count))
        return [int(v) if self.integer else float(f"{v:.12g}") for v in values]  # without noise in the last digits

    def distribution(self) -> Any:
        """The dimension as Optuna takes it; a Beta-distributed one by its quantiles."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.beta is not None:
            return FloatDistribution(0.0, 1.0)
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


def make_space(space: Mapping[str, Any], info: MethodInfo, experts: Sequence[str]) -> list[Dimension]:
    """The dimensions of a search; UserError naming the nearest names for what the method does not have."""
    dimensions: list[Dimension] = []
    for name, entry in (dict(space) or _usual(info)).items():
        where = f"search.space.{name}"
        try:
            parameter = info.parameter(str(name))
        except ValueError as error:
            raise UserError(str(error), where=where, do=f"see `mergebench methods {info.name}`") from None
        dimensions += _dimensions(parameter, _entry(entry, where), experts, where)
    return dimensions


def with_values(
    method: Mapping[str, Any], dimensions: Sequence[Dimension], raw: Mapping[str, Any], experts: int
) -> dict[str, Any]:
    """The method's configuration with a proposal's values in it; what each expert has of its own becomes a list."""
    made = dict(method)
    for dimension in dimensions:
        value = dimension.value(raw[dimension.name])
        if dimension.expert is None:
            made[dimension.parameter] = value
        else:
            own = made.get(dimension.parameter)
            own = list(own) if isinstance(own, list) else [own] * experts
            own[dimension.expert] = value
            made[dimension.parameter] = own
    return made


def _usual(info: MethodInfo) -> dict[str, Any]:
    names = [p.name for p in info.parameters]
    for usual in (USUAL, WEIGHTS):
        if found := {name: entry for name, entry in usual.items() if name in names}:
            return found
    do = f"name ranges: +search.space.NAME.low=… +search.space.NAME.high=… (it has {', '.join(names) or 'none'})"
    raise UserError(f"{info.name} has no parameter with a usual range", where="search.space", do=do)


def _entry(entry: Any, where: str) -> Mapping[str, Any]:
    if isinstance(entry, (list, tuple)):
        return {"choices": list(entry)}
    if not isinstance(entry, Mapping):
        do = "write {low:0.1,high:1} or [0.1,0.2]"
        raise UserError(f"{entry!r} is neither a range nor choices", where=where, do=do)
    for key in entry:
        if key not in KEYS:
            raise UserError(f"a range has no {key!r}", where=where, do=nearest(str(key), KEYS))
    return entry


def _dimensions(parameter: Parameter, entry: Mapping[str, Any], experts: Sequence[str], where: str) -> list[Dimension]:
    each = entry.get("per_expert", False)
    if each and not parameter.per_expert:
        raise UserError(f"{parameter.name} is one value for all experts", where=where, do="leave per_expert out")
    number = parameter.type in ("float", "int")
    fields = (_range if number and "choices" not in entry else _choices)(parameter, entry, where)
    if not each:
        return [Dimension(parameter.name, parameter.name, **fields)]
    return [Dimension(f"{parameter.name}.{name}", parameter.name, k, **fields) for k, name in enumerate(experts)]


def _choices(parameter: Parameter, entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    known: list[Any] = list(parameter.choices) or ([True, False] if parameter.type == "bool" else [])
    given = entry.get("choices", known)
    if not isinstance(given, (list, tuple)) or not given:
        raise UserError("there is nothing to choose from", where=where, do="write choices: [a, b]")
    for value in given:
        if known and value not in known:
            raise UserError(f"{parameter.name} cannot be {value!r}", where=where, do=nearest(str(value), known))
        if parameter.type in ("float", "int"):
            _check_bounds(parameter, [value], where)
    return {"choices": tuple(given)}


def _range(parameter: Parameter, entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    beta = entry.get("beta")
    low, high = entry.get("low", 0.0 if beta else None), entry.get("high", 1.0 if beta else None)
    if low is None or high is None:
        raise UserError("the range has no ends", where=where, do="give it low and high, or choices")
    _check_bounds(parameter, [low, high], where)
    if not low < high:
        raise UserError(f"the range from {low} to {high} is empty", where=where, do="give it a low below its high")
    if entry.get("log") and low <= 0:
        raise UserError(f"a logarithmic range cannot begin at {low}", where=where, do="give it a low above 0")
    if beta is not None and (not isinstance(beta, (list, tuple)) or len(beta) != 2 or min(beta) <= 0):
        raise UserError(f"beta={beta} is no Beta distribution", where=where, do="write beta: [a, b], both above 0")
    integer = parameter.type == "int"
    clash = [name for name in ("log", "step", "beta") if entry.get(name)]
    if len(clash) > 1 or (integer and beta):
        raise UserError(f"{' and '.join(clash)} do not go together", where=where, do="leave one of them out")
    kind = int if integer else float
    ends = {"low": kind(low), "high": kind(high), "log": bool(entry.get("log", False)), "step": entry.get("step")}
    return ends | {"beta": (float(beta[0]), float(beta[1])) if beta else None, "integer": integer}


def _check_bounds(parameter: Parameter, values: Sequence[Any], where: str) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{parameter.name} is a number, not {value!r}", where=where, do="give it numbers")
        low = -math.inf if parameter.low is None else parameter.low
        high = math.inf if parameter.high is None else parameter.high
        if not low <= value <= high:
            raise UserError(f"{parameter.name} cannot be {value}", where=where, do=f"it goes from {low} to {high}")


def check_sampler(search: Search, dimensions: Sequence[Dimension]) -> int:
    """The number of configurations that the search scores; UserError for settings that do not go together."""
    if search.sampler not in SAMPLERS:
        what = f"no sampler is called {search.sampler!r}"
        raise UserError(what, where="search.sampler", do=nearest(search.sampler, SAMPLERS))
    check_values(search, "search")
    if search.estimate_from is not None and search.objectives:
        what = "what is estimated from a few documents is the mean over tasks"
        raise UserError(what, where="search.estimate_from", do="leave it or search.objectives out")
    if search.sampler == "adamerging":
        return 1
    if search.sampler == "cmaes":
        if search.objectives:
            raise UserError(
                "cmaes has one objective", where="search.objectives", do="choose search=nsga2 or search=tpe"
            )
        if sum(not d.choices for d in dimensions) < 2:
            do = "choose search=tpe, or search a weight an expert"
            raise UserError("cmaes takes two ranges of numbers or more", where="search.sampler", do=do)
        if importlib.util.find_spec("cmaes") is None:
            do = "pip install 'mergebench[search]'"
            raise UserError("the package cmaes is not installed", where="search.sampler", do=do)
    if search.sampler == "grid":
        size = math.prod(len(d.points(search.points)) for d in dimensions)
        return min(size, search.trials or size)
    if search.trials is None:
        what = f"{search.sampler} has no end of its own"
        raise UserError(what, where="search.trials", do="say how many: search.trials=30")
    return search.trials


def import_optuna() -> Any:
    """Optuna, quiet; UserError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("Optuna is not installed", where="search", do="pip install 'mergebench[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def open_study(folder: Path, name: str, directions: Sequence[str] = ("maximize",)) -> Any:
    """The Optuna study of a search, in a journal file in its folder; what it holds already is loaded."""
    optuna = import_optuna()
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return optuna.create_study(storage=storage, study_name=name, directions=list(directions), load_if_exists=True)


def propose(study: Any, search: Search, dimensions: Sequence[Dimension], first_new: int) -> Any:
    """The next Optuna trial; its ``params`` are the proposal.

    ``first_new`` is the number of the first proposal of this run; a grid's points that failed in earlier runs are
    proposed again.
    """
    trials = study.get_trials(deepcopy=False)
    study.sampler = _sampler(trials, search, dimensions, first_new)
    return study.ask({dimension.name: dimension.distribution() for dimension in dimensions})


def _sampler(trials: Sequence[Any], search: Search, dimensions: Sequence[Dimension], first_new: int) -> Any:
    samplers = import_optuna().samplers
    asked = {dimension.name for dimension in dimensions}
    whole = sum(set(trial.params) == asked for trial in trials)  # without one that a kill left half proposed
    seed = int(content_key([search.seed, whole])[:8], 16)
    startup = search.startup
    if search.sampler == "tpe":  # the constant liar counts a batch's other proposals as bad ones
        return samplers.TPESampler(
            n_startup_trials=startup, seed=seed, multivariate=True, constant_liar=search.batch > 1
        )
    if search.sampler == "cmaes":
        return samplers.CmaEsSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)
    if search.sampler == "nsga2":
        return samplers.NSGAIISampler(population_size=max(2, startup), seed=seed)
    sampler = samplers.RandomSampler(seed=seed)
    if search.sampler == "random":
        return sampler
    # Optuna's GridSampler shuffles the grid, never returns to a point that failed, and does not know the points of a
    # journal that was written without it.
    names = [dimension.name for dimension in dimensions]
    seen = [trial.params for trial in trials if trial.state.name != "FAIL" or trial.number >= first_new]
    points = (dict(zip(names, p)) for p in itertools.product(*(d.points(search.points) for d in dimensions)))
    return samplers.PartialFixedSampler(next(point for point in points if point not in seen), sampler)
