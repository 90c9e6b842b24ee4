"""Who proposes the next configuration: Optuna's samplers, or draws and grids that a number alone determines.

Every sampler is made anew for each proposal, seeded by the search's seed and the proposal's number: a search that was
interrupted goes on as if it had not been.
"""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Search
from pipelines.search.space import Dimension
from pipelines.store import content_key

SAMPLERS = ("random", "grid", "tpe", "cmaes")


def import_optuna() -> Any:
    """Optuna, quiet; UserError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("Optuna is not installed", where="search", do="pip install 'mergebench[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def check_sampler(search: Search, dimensions: Sequence[Dimension]) -> int:
    """The number of configurations that the search scores; UserError for settings that do not go together."""
    if search.sampler not in SAMPLERS:
        raise UserError(
            f"no sampler is called {search.sampler!r}", where="search.sampler", do=nearest(search.sampler, SAMPLERS)
        )
    for name in ("points", "startup", "batch", "top"):
        if getattr(search, name) < 1:
            raise UserError(f"search.{name} is {getattr(search, name)}", where="search", do="give it 1 or more")
    if search.trials is not None and search.trials < 1:
        raise UserError(f"search.trials is {search.trials}", where="search", do="give it 1 or more")
    if search.sampler == "cmaes":
        _check_cmaes(dimensions)
    if search.sampler == "grid":
        size = math.prod(len(d.points(search.points)) for d in dimensions)
        return min(size, search.trials or size)
    if search.trials is None:
        what = f"{search.sampler} has no end of its own"
        raise UserError(what, where="search.trials", do="say how many: search.trials=30")
    return search.trials


def _check_cmaes(dimensions: Sequence[Dimension]) -> None:
    import importlib.util

    if sum(d.range for d in dimensions) < 2:
        do = "choose search=tpe, or search a weight an expert"
        raise UserError("cmaes takes two ranges of numbers or more", where="search.sampler", do=do)
    if importlib.util.find_spec("cmaes") is None:
        do = "pip install 'mergebench[search]'"
        raise UserError("the package cmaes is not installed", where="search.sampler", do=do)


def open_study(folder: Path, name: str) -> Any:
    """The Optuna study of a search, in a journal file in its folder; what it holds already is loaded."""
    optuna = import_optuna()
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)


def distributions(dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """The dimensions as Optuna takes them; a Beta-distributed one by its quantiles."""
    d = import_optuna().distributions
    found: dict[str, Any] = {}
    for dim in dimensions:
        if dim.choices:
            found[dim.name] = d.CategoricalDistribution(dim.choices)
        elif dim.beta is not None:
            found[dim.name] = d.FloatDistribution(0.0, 1.0)
        elif dim.integer:
            found[dim.name] = d.IntDistribution(int(dim.low), int(dim.high), log=dim.log, step=int(dim.step or 1))
        else:
            found[dim.name] = d.FloatDistribution(dim.low, dim.high, log=dim.log, step=dim.step)
    return found


def propose(study: Any, search: Search, dimensions: Sequence[Dimension], since: int) -> Any:
    """The next Optuna trial; its ``params`` are the proposal.

    Args:
        study: the study.
        search: the settings.
        dimensions: what is searched.
        since: number of proposals that earlier runs made; points of a grid that failed in those are tried again.
    """
    found = study.get_trials(deepcopy=False)
    waiting = [trial.number for trial in found if trial.state.name == "WAITING"]
    number = waiting[0] if waiting else len(found)
    study.sampler = _learner(search, number)
    if not waiting and search.sampler == "grid":
        study.enqueue_trial(_next_point(found, search, dimensions, since))
    elif not waiting and (search.sampler == "random" or number < search.startup):
        study.enqueue_trial(_draw(search.seed, number, dimensions))
    return study.ask(distributions(dimensions))


def _learner(search: Search, number: int) -> Any:
    samplers = import_optuna().samplers
    seed = int(content_key([search.seed, number])[:8], 16)
    if search.sampler in ("random", "grid"):
        return samplers.RandomSampler(seed=seed)
    if search.sampler == "cmaes":
        return samplers.CmaEsSampler(n_startup_trials=search.startup, seed=seed, warn_independent_sampling=False)
    return samplers.TPESampler(
        n_startup_trials=search.startup, seed=seed, multivariate=True, constant_liar=search.batch > 1
    )


def _draw(seed: int, number: int, dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """The draw of this number: uniform over ranges (of logarithms, or quantiles) and choices, whatever came before."""
    drawn: dict[str, Any] = {}
    for dim in dimensions:
        rng = random.Random(f"search {seed} {number} {dim.name}")
        if dim.choices:
            drawn[dim.name] = rng.choice(dim.choices)
        elif dim.beta is not None:
            drawn[dim.name] = rng.random()
        elif dim.step or dim.integer:
            drawn[dim.name] = _stepped(dim, rng)
        elif dim.log:
            drawn[dim.name] = min(dim.high, max(dim.low, math.exp(rng.uniform(math.log(dim.low), math.log(dim.high)))))
        else:
            drawn[dim.name] = rng.uniform(dim.low, dim.high)
    return drawn


def _stepped(dim: Dimension, rng: random.Random) -> Any:
    """One of a range's steps; of the logarithms of whole numbers where the range is logarithmic."""
    if dim.log:
        return round(math.exp(rng.uniform(math.log(dim.low), math.log(dim.high))))
    return rng.choice(dim.points(1))


def _next_point(found: Sequence[Any], search: Search, dimensions: Sequence[Dimension], since: int) -> dict[str, Any]:
    """The first point of the grid that was not proposed yet."""
    names = [dim.name for dim in dimensions]
    seen = [trial.params for trial in found if trial.state.name != "FAIL" or trial.number >= since]
    for point in itertools.product(*(dim.points(search.points) for dim in dimensions)):
        proposal = dict(zip(names, point))
        if proposal not in seen:
            return proposal
    raise AssertionError("the grid is used up")
