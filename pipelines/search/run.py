"""One search: configurations are scored on the tuned split until there are enough, the best one on the reported one."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from conf.errors import UserError, nearest
from conf.schema import Checkpoint, Config, Pool, Sampler, Suite
from mergeopt_core.merging.mergekit_api import describe
from pipelines.evaluate import check_suite, suite_fingerprint
from pipelines.progress import SILENT, Progress, Step
from pipelines.search.result import Candidate, SearchResult, bootstrap
from pipelines.search.space import check_sampler, import_optuna, make_space, open_study, propose, with_values
from pipelines.store.records import mean_score, write_record
from pipelines.store.store import content_key
from pipelines.study.collect import make_pools
from pipelines.study.executors import Workers, open_workers
from pipelines.study.information import need_information, pool_experts
from pipelines.study.keep import trial_keys
from pipelines.study.recipes import check_method, make_recipe
from pipelines.study.selection import check_split, on_split, same_documents
from pipelines.study.sources import access_of, make_base
from pipelines.study.trial import Outcome, Trial, open_merge


def run_search(config: Config, progress: Progress = SILENT) -> SearchResult:
    """Search a method's parameters; what earlier runs of the same search scored is not scored again.

    Raises UserError for a space, sampler, suite or split that is wrong, before anything is spent.
    """
    search = _Search(config, progress)
    with open_workers(config.executor, search.access) as workers:
        return search.run(workers)


def chosen_experts(config: Config) -> tuple[Pool, list[str]]:
    """The pool (one of their own for experts that are given by path) and the names of its merged experts, in order."""
    if len(config.pools) > 1:
        what = f"a search takes one pool, not {len(config.pools)}"
        raise UserError(what, where="pools", do="leave the others out: ~pools.NAME")
    if config.pools:
        (pool,) = config.pools.values()
        if pool.seeds:
            what = "a search merges experts of one training seed"
            raise UserError(what, where="pools.*.seeds", do="give seed in place of seeds")
        known = [*pool.experts, *pool.tasks]
        for name in config.experts:
            if name not in known:
                raise UserError(f"the pool has no expert {name!r}", where="experts", do=nearest(name, known))
        return pool, list(config.experts) or known
    if not config.experts:
        do = "choose a pool, +pool@pools.tiny=tiny, or name experts: experts=[a,b]"
        raise UserError("there is nothing to merge", where="experts", do=do)
    names = [Path(path).name for path in config.experts]
    names = names if len(set(names)) == len(names) else list(config.experts)
    found = {name: Checkpoint(path=path) for name, path in zip(names, config.experts)}
    return Pool(base=config.base, experts=found), names


def tuned_and_reported(config: Config, suite: Suite) -> tuple[Suite, Suite]:
    """The suite on the split that is tuned on, and on the one that is reported.

    Raises UserError for a suite that is wrong, and where both splits are the same one and ``search.force`` is off.
    """
    search = config.search
    check_split(suite, search.split, "search.split")
    check_split(suite, search.report, "search.report")
    tuned, reported = on_split(suite, search.split), on_split(suite, search.report)
    for one in (tuned, reported):
        if problems := check_suite(one, config.datasets, config.online):
            raise UserError(problems[0], where=f"suite {suite.name}", do="mend the suite")
    same = same_documents(tuned, reported)
    if same and not search.force:
        what = f"{same[0]} would be tuned on the split that is reported"
        do = "choose another search.split or search.report, such as search.split=train, or set search.force=true"
        raise UserError(what, where=f"search.split={search.split}, search.report={search.report}", do=do)
    return tuned, reported


class _Search:
    """A search: made by checking all of it and opening what is merged, then run."""

    def __init__(self, config: Config, progress: Progress):
        import_optuna()
        self.config, self.search, self.progress = config, config.search, progress
        self.pool, self.names = chosen_experts(config)
        self.method, parameters = check_method(config.method, experts=self.names)
        self.parameters = {"method": self.method, **parameters}
        self.dimensions = make_space(self.search.space, describe(self.method), self.names)
        self.count = check_sampler(self.search, self.dimensions)
        self.suite = self.pool.suite or config.suite
        self.tuned, self.reported = tuned_and_reported(config, self.suite)
        self.access = access_of(config)
        self.store = self.access.store
        self.default = self._open()
        settings = {name: getattr(self.search, name) for name in ("sampler", "points", "startup", "batch", "seed")}
        space = [dataclasses.asdict(dimension) for dimension in self.dimensions]
        self.key = content_key({"default": self.default.key, "space": space, "search": settings})
        self.folder = self.store.root / "searches" / self.key
        self.trials: list[Trial] = []
        """All trials that the search refers to."""
        self.failed: dict[str, str] = {}
        self.interrupted = False

    def _open(self) -> Trial:
        """Open what is merged, made first where it is missing; the default's trial, its merge checked by headers."""
        config, access = self.config, self.access
        study = dataclasses.replace(
            config, pools=config.pools or {"": self.pool}, methods={"search": config.method}, sampler=Sampler()
        )
        make_pools(study, access, self.progress)
        self.base = make_base(self.pool.base, access, self.progress)
        known = {expert.name: expert for expert in pool_experts(self.pool, access)}
        chosen = [known[name] for name in self.names]
        self.experts = tuple(expert.source for expert in chosen)
        access.fetch(self.progress, [expert.path for expert in self.experts])
        self.information = need_information(self.method, chosen, access, config.collect)
        default = self._trial(config.method, self.tuned)
        assert default.merge is not None
        open_merge(default.merge, self.base, self.experts, self.information, access.open).check()
        return default

    def _trial(self, method: Mapping[str, Any], suite: Suite) -> Trial:
        """The trial of one configuration of the method on one of the two suites."""
        recipe = make_recipe(self.config, method, self.names)
        fingerprint, names = suite_fingerprint(suite, self.config.datasets), tuple(self.names)
        return Trial("merge", self.base, self.experts, suite, fingerprint, recipe, names, self.information)

    def run(self, workers: Workers) -> SearchResult:
        self.workers = workers
        with self.store.claim("searches", self.key, wait=False) as mine:
            if not mine:
                what = "another process runs this very search"
                raise UserError(what, where=str(self.folder), do="wait for it, or stop it")
            study = open_study(self.folder, self.key)
            with self.progress.step("search", self.count) as step:
                self._score([self.default])
                if reason := self.failed.get(self.default.key):
                    raise UserError(f"the default configuration could not be scored: {reason}", where="method")
                self._propose(study, step)
            result = self._result(study)
            if not self.interrupted:
                self._report(result)
            result.interrupted = self.interrupted
            self._record()
            self._write(result)
        return result

    def _propose(self, study: Any, step: Step) -> None:
        """Ask and score until enough configurations have a score, or as many as that have failed."""
        first_new = len(study.get_trials(deepcopy=False))
        step.advance(len(_in_state(study, "COMPLETE")))
        self._tell(study, _in_state(study, "RUNNING"), step)  # what a killed run was about
        left = self.count - len(_in_state(study, "COMPLETE"))
        batch = left if self.search.sampler in ("random", "grid") else self.search.batch
        while left > 0 and not self.interrupted:
            size = min(left, batch)
            self._tell(study, [propose(study, self.search, self.dimensions, first_new) for _ in range(size)], step)
            left -= size

    def _tell(self, study: Any, proposals: Iterable[Any], step: Step) -> None:
        """Score proposals, and tell the study of each as soon as it has its score."""
        states = import_optuna().trial.TrialState
        trials, waiting = [], defaultdict(list)  # several proposals may come to the same trial
        for proposal in proposals:
            if set(proposal.params) != {dimension.name for dimension in self.dimensions}:
                study.tell(proposal.number, state=states.FAIL)  # killed while it was being proposed
                continue
            trials.append(self._proposed(proposal))
            waiting[trials[-1].key].append(proposal.number)

        def on_score(trial: Trial, score: float | None) -> None:
            for number in waiting.pop(trial.key, []):
                study.tell(number, score, state=states.FAIL if score is None else states.COMPLETE)
                step.advance(1, score=score)

        self._score(trials, on_score)

    def _score(self, trials: Sequence[Trial], on_score: Callable[[Trial, float | None], None] | None = None) -> None:
        """Run the trials that have no result; ``on_score`` is told of each as it ends, and its score if it has one."""

        def on_trial(trial: Trial, status: str = "done", _: int = 0) -> None:
            if on_score and status != "started":
                on_score(trial, mean_score(trial.key, self.store))

        distinct = {trial.key: trial for trial in trials}
        self.trials += distinct.values()
        self._record()  # what is about to be made too, so that nothing collects it meanwhile
        new = [trial for key, trial in distinct.items() if not self.store.has("results", key, complete=True)]
        for trial in distinct.values():
            if trial not in new:
                on_trial(trial)
        outcome = self.workers.run(new, on_trial) if new and not self.interrupted else Outcome()
        self.failed |= {failure.trial.key: failure.reason for failure in outcome.failures}
        self.interrupted = self.interrupted or outcome.interrupted

    def _proposed(self, proposal: Any) -> Trial:
        method = with_values(self.parameters, self.dimensions, proposal.params, len(self.experts))
        return self._trial(method, self.tuned)

    def _result(self, study: Any) -> SearchResult:
        complete, candidates = _in_state(study, "COMPLETE"), []
        for proposal in complete:
            values = {d.name: d.value(proposal.params[d.name]) for d in self.dimensions}
            candidates.append(Candidate(values, False, self._proposed(proposal), proposal.value, proposal.number))
        if (score := mean_score(self.default.key, self.store)) is not None:
            configured = {d.name: _of(self.parameters[d.parameter], d.expert) for d in self.dimensions}
            candidates.append(Candidate(configured, True, self.default, score))
        return SearchResult(
            search=self.config.name or "search",
            method=self.method,
            experts=list(self.names),
            sampler=self.search.sampler,
            tuned_on=self.search.split,
            reported_on=self.search.report,
            tuned_on_reported_split=same_documents(self.tuned, self.reported),
            tried=len(complete),
            failed=self.failed,
            confidence=self.config.statistics.confidence,
            candidates=candidates,
            folder=self.folder,
        )

    def _report(self, result: SearchResult) -> None:
        """Intervals on the tuned split; the best and the default, and no other, on the reported one."""
        best, default = result.best, result.default
        assert best is not None
        assert default is not None
        shown = [c for c in result.top(self.search.top) if self.store.has("results", c.tuning.key)]
        panel = bootstrap([c.tuning for c in shown], self.store, self.config.statistics)
        for candidate, score, draws in zip(shown, panel.scores, panel.replicates):
            candidate.validation = panel.interval(score, draws)
        recipes = [end.tuning.merge for end in (best, default) if end.tuning.merge]
        tests = [self._trial({"method": recipe.method, **recipe.parameters}, self.reported) for recipe in recipes]
        self._score(tests)
        if any(mean_score(trial.key, self.store) is None for trial in tests):
            return
        panel = bootstrap(tests, self.store, self.config.statistics)
        scores, draws = panel.scores, panel.replicates
        best.test, default.test = panel.interval(scores[0], draws[0]), panel.interval(scores[1], draws[1])
        differing = panel.differing([0], [1]) if panel.samples.documents else None
        result.difference = panel.interval(scores[0] - scores[1], draws[0] - draws[1], differing)

    def _record(self) -> None:
        """Hold on to the search's checkpoints and results."""
        name = self.config.name or "search"
        write_record(self.store, name, "search", self.key, trial_keys(self.trials, self.store))

    def _write(self, result: SearchResult) -> None:
        """The search as JSON, and as a table of what was tried."""
        (self.folder / "search.json").write_text(json.dumps(result.to_dict(), indent=1) + "\n")
        rows = [
            {"number": "default" if c.default else c.number, **c.values, "score": c.score, "key": c.tuning.key}
            for c in result.candidates
        ]
        pd.DataFrame(rows, dtype=object).to_csv(self.folder / "trials.csv", index=False)


def _in_state(study: Any, name: str) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == name]


def _of(value: Any, expert: int | None) -> Any:
    """A parameter's value, or the one that an expert has."""
    return value[expert] if expert is not None and isinstance(value, (list, tuple)) else value
