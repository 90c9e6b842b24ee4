"""One search: configurations are scored on the tuned split until there are enough, the best one on the reported one."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from conf.errors import UserError, redacted
from conf.schema import Config, Sampler, Suite
from mergeopt_core.merging.mergekit_api import describe
from pipelines.evaluate import check_suite, suite_fingerprint
from pipelines.progress import SILENT, Progress, Step
from pipelines.search.entropy import descend
from pipelines.search.estimate import Estimator
from pipelines.search.experts import category_experts, chosen_experts
from pipelines.search.objectives import make_objectives
from pipelines.search.result import Candidate, SearchResult, bootstrap, draw_front
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
from pipelines.study.worker import Worker

DESCENT = ("steps", "lr", "documents", "blocks")
"""Settings of search=adamerging that are part of its key."""


def run_search(config: Config, progress: Progress = SILENT) -> SearchResult:
    """Search a method's parameters; what earlier runs of the same search scored is not scored again.

    Raises UserError for a space, sampler, suite or split that is wrong, before anything is spent.
    """
    search = _Search(config, progress)
    with open_workers(config.executor, search.access) as workers:
        if config.search.category_experts is not None:
            search = search.of_category_experts(workers)
        return search.run(workers)


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
        self.descends = self.search.sampler == "adamerging"
        if self.descends and (self.method != "adamerging" or self.search.space or self.search.objectives):
            do = "choose method=adamerging, and leave search.space and search.objectives out"
            raise UserError("adamerging searches its own coefficients", where="search.sampler", do=do)
        info = describe(self.method)
        self.dimensions = [] if self.descends else make_space(self.search.space, info, self.names)
        self.found: list[Candidate] = []
        self.count = check_sampler(self.search, self.dimensions)
        self.suite = self.pool.suite or config.suite
        self.tuned, self.reported = tuned_and_reported(config, self.suite)
        self.objectives = make_objectives(self.search.objectives, self.suite)
        self.access = access_of(config)
        self.store = self.access.store
        self.default = self._open()
        settings = {name: getattr(self.search, name) for name in ("sampler", "points", "startup", "batch", "seed")}
        settings |= {n: value for n in ("objectives", "estimate_from") if (value := getattr(self.search, n))}
        settings |= {name: getattr(self.search, name) for name in DESCENT} if self.descends else {}
        space = [dataclasses.asdict(dimension) for dimension in self.dimensions]
        self.key = content_key({"default": self.default.key, "space": space, "search": settings})
        self.folder = self.store.root / "searches" / self.key
        self.trials: list[Trial] = []
        """All trials that the search refers to."""
        self.failed: dict[str, str] = {}
        self.interrupted = False
        self.estimator: Estimator | None = None

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

    def of_category_experts(self, workers: Workers) -> _Search:
        """The search over those experts alone that are best at tasks which tell them apart (SoCE)."""
        threshold, trials = self.search.category_experts, self._alone()[1:]
        assert threshold is not None
        workers.run([t for t in trials if not self.store.has("results", t.key, complete=True)], lambda *_: None)
        scores = {}
        for name, trial in zip(self.names, trials):
            if mean_score(trial.key, self.store) is None:
                raise UserError(f"{name} could not be scored on {self.search.split}", where="search.category_experts")
            tasks = self.store.entry("results", trial.key).describe()["tasks"]
            scores[name] = {task: entry["value"] for task, entry in tasks.items()}
        kept = category_experts(scores, threshold)
        self.progress.note(f"category experts: {', '.join(kept)}, of {len(self.names)}")
        given = kept if self.config.pools else [self.config.experts[self.names.index(name)] for name in kept]
        narrow = _Search(dataclasses.replace(self.config, experts=given), self.progress)
        narrow.trials += trials
        return narrow

    def _alone(self) -> list[Trial]:
        """The trials of the base and of every expert alone on the tuned split."""
        fingerprint = suite_fingerprint(self.tuned, self.config.datasets)
        base = Trial("base", self.base, (), self.tuned, fingerprint)
        pairs = zip(self.names, self.experts)
        return [base, *(Trial("expert", self.base, (e,), self.tuned, fingerprint, names=(name,)) for name, e in pairs)]

    def _estimate(self, count: int) -> None:
        """From now on score configurations on a few documents, chosen by what base and experts answer to all."""
        known = self._alone()
        self._score(known)
        if self.interrupted:
            return
        if failed := [self.failed[trial.key] for trial in known if trial.key in self.failed]:
            raise UserError(f"base and experts could not all be scored: {failed[0]}", where="search.estimate_from")
        self.estimator = Estimator(self.tuned, known, self.store, count, self.search.seed)

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
            study = open_study(self.folder, self.key, [objective.direction for objective in self.objectives])
            with self.progress.step("search", self.count) as step:
                self._score([self.default])
                if reason := self.failed.get(self.default.key):
                    raise UserError(f"the default configuration could not be scored: {reason}", where="method")
                if self.search.estimate_from is not None and not self.descends:
                    self._estimate(self.search.estimate_from)
                if not self.interrupted:
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
        if self.descends:
            return self._descend(step)
        first_new = len(study.get_trials(deepcopy=False))
        step.advance(len(_in_state(study, "COMPLETE")))
        self._tell(study, _in_state(study, "RUNNING"), step)  # what a killed run was about
        left = self.count - len(_in_state(study, "COMPLETE"))
        batch = left if self.search.sampler in ("random", "grid") else self.search.batch
        while left > 0 and not self.interrupted:
            size = min(left, batch)
            self._tell(study, [propose(study, self.search, self.dimensions, first_new) for _ in range(size)], step)
            left -= size

    def _descend(self, step: Step) -> None:
        """Find the coefficients by the entropy of answers, and score them as the one configuration."""
        worker, given = Worker(self.access, self.config.executor, self.progress), self.parameters["weight"]
        start = given if isinstance(given, list) else [given] * len(self.names)
        state = self.folder / "descent.json"
        found = descend(worker, self.default, self._alone()[1:], start, self.search, state, self.progress)
        trial = self._trial({**self.parameters, **found}, self.tuned)
        self._score([trial])
        if (scores := self._scores(trial)) is not None:
            self.found = [Candidate(_means(found, self.names), False, trial, scores[0], 1, scores)]
            step.advance(1, score=scores[0])

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

        def on_score(trial: Trial, scores: list[float] | None) -> None:
            for number in waiting.pop(trial.key, []):
                study.tell(number, scores, state=states.FAIL if scores is None else states.COMPLETE)
                step.advance(1, score=scores and scores[0])

        self._score(trials, on_score)

    def _score(
        self, trials: Sequence[Trial], on_score: Callable[[Trial, list[float] | None], None] | None = None
    ) -> None:
        """Run the trials that have no result; ``on_score`` is told of each as it ends, and its scores."""

        def on_trial(trial: Trial, status: str = "done", _: int = 0) -> None:
            if on_score and status != "started":
                on_score(trial, self._scores(trial))

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

    def _scores(self, trial: Trial) -> list[float] | None:
        """What a trial comes to in every objective; None where one of them is not known."""
        if self.estimator is not None and trial.suite is self.estimator.suite:
            found = self.estimator.of(trial)
            return found and [found[0]]
        scores = [objective.of(trial.key, self.store) for objective in self.objectives]
        return [score for score in scores if score is not None] if None not in scores else None

    def _proposed(self, proposal: Any) -> Trial:
        method = with_values(self.parameters, self.dimensions, proposal.params, len(self.experts))
        return self._trial(method, self.estimator.suite if self.estimator else self.tuned)

    def _result(self, study: Any) -> SearchResult:
        complete, candidates = _in_state(study, "COMPLETE"), list(self.found)
        for proposal in complete:
            values = {d.name: d.value(proposal.params[d.name]) for d in self.dimensions}
            trial = self._proposed(proposal)
            candidates.append(Candidate(values, False, trial, proposal.values[0], proposal.number, proposal.values))
        self._score_whole(candidates)
        if (scores := self._scores(self.default)) is not None:
            configured = {d.name: _of(self.parameters[d.parameter], d.expert) for d in self.dimensions}
            configured |= _means(self.parameters, self.names) if self.descends else {}
            candidates.append(Candidate(configured, True, self.default, scores[0], None, scores))
        return SearchResult(
            search=self.config.name or "search",
            method=self.method,
            experts=list(self.names),
            sampler=self.search.sampler,
            objectives=self.objectives,
            tuned_on=self.search.split,
            reported_on=self.search.report,
            tuned_on_reported_split=same_documents(self.tuned, self.reported),
            tried=len(complete) + len(self.found),
            failed=self.failed,
            confidence=self.config.statistics.confidence,
            candidates=candidates,
            folder=self.folder,
        )

    def _score_whole(self, candidates: list[Candidate]) -> None:
        """Score the best of candidates that were estimated on all documents; the others stay estimated."""
        if self.search.estimate_from is None or self.descends:
            return
        candidates[:] = {c.tuning.key: c for c in reversed(candidates)}.values()
        for candidate in candidates:
            candidate.whole = False
            candidate.estimate = self.estimator.of(candidate.tuning) if self.estimator else None
        finalists = sorted(candidates, key=lambda c: (-c.score, c.number))[: self.search.top if self.estimator else 0]
        trials = self._on([c.tuning for c in finalists], self.tuned)
        self._score(trials)
        for candidate, trial in zip(finalists, trials):
            if scores := self._scores(trial):
                candidate.tuning, candidate.score, candidate.scores, candidate.whole = trial, scores[0], scores, True

    def _report(self, result: SearchResult) -> None:
        """Intervals on the tuned split; the best and the default, and no other, on the reported one.

        With several objectives every configuration on the front is reported, and there is no best one.
        """
        if self.search.objectives:
            self._report_front(result)
            return
        best, default = result.best, result.default
        assert best is not None
        assert default is not None
        shown = [c for c in result.top(self.search.top) if c.whole and self.store.has("results", c.tuning.key)]
        panel = bootstrap([c.tuning for c in shown], self.store, self.config.statistics)
        for candidate, score, draws in zip(shown, panel.scores, panel.replicates):
            candidate.validation = panel.interval(score, draws)
        tests = self._on([best.tuning, default.tuning], self.reported)
        self._score(tests)
        if any(mean_score(trial.key, self.store) is None for trial in tests):
            return
        panel = bootstrap(tests, self.store, self.config.statistics)
        scores, draws = panel.scores, panel.replicates
        best.test, default.test = panel.interval(scores[0], draws[0]), panel.interval(scores[1], draws[1])
        differing = panel.differing([0], [1]) if panel.samples.documents else None
        result.difference = panel.interval(scores[0] - scores[1], draws[0] - draws[1], differing)

    def _on(self, trials: Sequence[Trial], suite: Suite) -> list[Trial]:
        """The same merges on another suite."""
        recipes = [trial.merge for trial in trials if trial.merge]
        return [self._trial({"method": recipe.method, **recipe.parameters}, suite) for recipe in recipes]

    def _report_front(self, result: SearchResult) -> None:
        shown = [*result.front, *(c for c in result.candidates if c.default and c not in result.front)]
        tests = self._on([c.tuning for c in shown], self.reported)
        self._score(tests)
        for candidate, trial in zip(shown, tests):
            candidate.reported = self._scores(trial)
        if len(self.objectives) > 1:
            draw_front(result, self.folder / "front")

    def _record(self) -> None:
        """Hold on to the search's checkpoints and results."""
        name = self.config.name or "search"
        write_record(self.store, name, "search", self.key, trial_keys(self.trials, self.store))

    def _write(self, result: SearchResult) -> None:
        """The search as JSON, and as a table of what was tried."""
        (self.folder / "search.json").write_text(redacted(json.dumps(result.to_dict(), indent=1)) + "\n")
        rows = [
            {
                "number": "default" if c.default else c.number,
                **c.values,
                **dict(zip([o.name for o in self.objectives] if self.search.objectives else ["score"], c.scores)),
                **(dict(zip(("estimate", "error"), c.estimate or (None, None))) if self.estimator else {}),
                "key": c.tuning.key,
            }
            for c in result.candidates
        ]
        pd.DataFrame(rows, dtype=object).to_csv(self.folder / "trials.csv", index=False)


def _in_state(study: Any, name: str) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == name]


def _of(value: Any, expert: int | None) -> Any:
    """A parameter's value, or the one that an expert has."""
    return value[expert] if expert is not None and isinstance(value, (list, tuple)) else value


def _means(parameters: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Each expert's coefficient of AdaMerging, averaged over the blocks and what is outside of them."""
    weight, count = parameters["weight"], len(names)
    rows = [weight if isinstance(weight, list) else [weight] * count, *parameters["blocks"].values()]
    return {f"weight.{name}": round(fmean(column), 6) for name, column in zip(names, zip(*rows))}
