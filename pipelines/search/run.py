"""One search: proposals scored on the tuned split until there are enough, then the best one on the reported split."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from conf.errors import UserError
from conf.schema import Config
from mergeopt_core.merging.mergekit_api import describe
from pipelines.checks import check_method
from pipelines.executors import Crew, Outcome, crew
from pipelines.progress import SILENT, Progress, Step
from pipelines.search.judge import Candidate, Found, intervals, paired_difference, rank
from pipelines.search.samplers import check_sampler, import_optuna, open_study, propose
from pipelines.search.setting import Setting, expert_names, make_setting, same_split, tuning_suites
from pipelines.search.space import Dimension, make_space, with_values
from pipelines.shelf.scores import mean_score
from pipelines.shelf.studies import trial_keys, write_record
from pipelines.store import content_key
from pipelines.trial import Trial


def run_search(config: Config, progress: Progress = SILENT) -> Found:
    """Search a method's parameters; what earlier runs of the same search scored is not scored again.

    Raises UserError for a space, sampler, suite or split that is wrong, before anything is spent.
    """
    import_optuna()
    method, _ = check_method(config.method, experts=expert_names(config))
    dimensions = make_space(config.search.space, describe(method), expert_names(config))
    goal = check_sampler(config.search, dimensions)
    suites = tuning_suites(config)
    setting = make_setting(config, suites, progress)
    with crew(config.executor, setting.access) as workers:
        return _Search(setting, dimensions, goal, workers, progress).run()


class _Search:
    """A search while it runs."""

    def __init__(self, setting: Setting, dimensions: Sequence[Dimension], goal: int, workers: Crew, progress: Progress):
        self.setting, self.dimensions, self.goal, self.progress = setting, dimensions, goal, progress
        self.workers = workers
        self.config, self.search = setting.config, setting.config.search
        self.store = setting.access.store
        self.default = setting.trial(self.config.method, setting.tuning)
        self.identity = self._identity()
        self.failed: dict[str, str] = {}
        self.interrupted = False
        self.trials: list[Trial] = []
        """All trials that the search refers to."""

    def run(self) -> Found:
        folder = self.store.root / "searches" / self.identity
        with self.store.claim("searches", self.identity, wait=False) as mine:
            if not mine:
                raise UserError(
                    "another process runs this very search", where=str(folder), do="wait for it, or stop it"
                )
            study = open_study(folder, self.identity)
            with self.progress.step("search", self.goal) as step:
                self._score([self.default])
                if reason := self.failed.get(self.default.key):
                    raise UserError(f"the default configuration could not be scored: {reason}", where="method")
                self._propose(study, step)
            found = self._found(study)
            if found.best is not None and not self.interrupted:
                self._report(found)
            self._write(found)
        return found

    def _identity(self) -> str:
        search = dataclasses.asdict(self.search)
        told = {name: search[name] for name in ("sampler", "points", "startup", "batch", "seed")}
        space = [dataclasses.asdict(dimension) for dimension in self.dimensions]
        return content_key({"default": self.default.key, "space": space, "search": told})

    def _propose(self, study: Any, step: Step) -> None:
        """Ask and score until enough configurations have a score, or as many as that have failed."""
        since = len(study.get_trials(deepcopy=False))
        step.advance(len(_in_state(study, "COMPLETE")))
        self._run(study, _in_state(study, "RUNNING"), step)  # what a killed run was about
        left = self.goal - len(_in_state(study, "COMPLETE"))
        alone = self.search.sampler in ("random", "grid")
        while left > 0 and not self.interrupted:
            size = left if alone else min(left, self.search.batch)
            self._run(study, [propose(study, self.search, self.dimensions, since) for _ in range(size)], step)
            left -= size

    def _run(self, study: Any, asked: Sequence[Any], step: Step) -> None:
        """Score proposals, and tell the study of each as soon as it has its score."""
        waiting: dict[str, list[Any]] = {}
        trials = []
        for proposal in asked:
            if set(proposal.params) != {dimension.name for dimension in self.dimensions}:
                study.tell(proposal.number, state=_state("FAIL"))  # killed while it was being proposed
                continue
            trial = self._trial(proposal.params)
            waiting.setdefault(trial.key, []).append(proposal)
            trials.append(trial)

        def tell(trial: Trial, became: str = "done", _: int = 0) -> None:
            if became == "started":
                return
            score = mean_score(trial, self.store)
            for proposal in waiting.pop(trial.key, []):
                if score is None:
                    study.tell(proposal.number, state=_state("FAIL"))
                else:
                    study.tell(proposal.number, score)
                step.advance(1, score=score)

        self._score(trials, tell)

    def _score(self, trials: Sequence[Trial], tell: Any = lambda *_: None) -> None:
        """Run the trials that have no result; ``tell`` hears of every one as it ends."""
        distinct = {trial.key: trial for trial in trials}
        self.trials += distinct.values()
        new = [trial for trial in distinct.values() if not self.store.has("results", trial.key, complete=True)]
        for trial in distinct.values():
            if trial not in new:
                tell(trial)
        self._record()
        outcome = Outcome()
        if new and not self.interrupted:
            outcome = self.workers.run(new, tell)
        self.failed |= {failure.trial.key: failure.reason for failure in outcome.failures}
        self.interrupted = self.interrupted or outcome.interrupted

    def _trial(self, raw: dict[str, Any]) -> Trial:
        method = with_values(self._method(), self.dimensions, raw, len(self.setting.subjects))
        return self.setting.trial(method, self.setting.tuning)

    def _method(self) -> dict[str, Any]:
        """The configured method, all parameters filled in."""
        assert self.default.merge is not None
        return {"method": self.default.merge.method, **self.default.merge.parameters}

    def _values(self, raw: dict[str, Any]) -> dict[str, Any]:
        return {d.name: d.value(raw[d.name]) for d in self.dimensions}

    def _found(self, study: Any) -> Found:
        own = self._method()
        configured = {d.name: _of(own[d.parameter], d.expert) for d in self.dimensions}
        score = mean_score(self.default, self.store)
        candidates = [] if score is None else [Candidate(configured, True, self.default, score)]
        complete = _in_state(study, "COMPLETE")
        for proposal in complete:
            trial = self._trial(proposal.params)
            candidates.append(Candidate(self._values(proposal.params), False, trial, proposal.value, proposal.number))
        setting, config = self.setting, self.config
        return Found(
            name=config.name or "search",
            method=str(own["method"]),
            experts=[subject.name for subject in setting.subjects],
            sampler=self.search.sampler,
            split=self.search.split,
            report=self.search.report,
            same_split=same_split(config),
            folder=self.store.root / "searches" / self.identity,
            candidates=rank(candidates),
            tried=len(complete),
            failed=self.failed,
            interrupted=self.interrupted,
            confidence=config.statistics.confidence,
        )

    def _report(self, found: Found) -> None:
        """Intervals on the tuned split; the best and the default, and no other, on the reported one."""
        shown = found.candidates[: self.search.top]
        shown += [c for c in found.candidates if c.default and c not in shown]
        held = [c for c in shown if self.store.has("results", c.tuning.key)]
        for candidate, interval in zip(
            held, intervals([c.tuning for c in held], self.store, self.config.statistics)[0]
        ):
            candidate.validation = interval
        ends = [found.candidates[0], next(c for c in found.candidates if c.default)]
        tests = [self._on_test(candidate) for candidate in ends]
        self._score(tests)
        if any(mean_score(trial, self.store) is None for trial in tests):
            return
        scores, _, _ = intervals(tests, self.store, self.config.statistics)
        for candidate, interval in zip(ends, scores):
            candidate.test = interval
        found.difference = paired_difference(tests[0], tests[1], self.store, self.config.statistics)

    def _on_test(self, candidate: Candidate) -> Trial:
        recipe = candidate.tuning.merge
        assert recipe is not None
        return self.setting.trial({"method": recipe.method, **recipe.parameters}, self.setting.reporting)

    def _record(self) -> None:
        """Hold on to the search's checkpoints and results, those about to be made too."""
        name = self.config.name or "search"
        write_record(self.store, name, "search", self.identity, trial_keys(self.trials, self.store))

    def _write(self, found: Found) -> None:
        """The search as JSON, and as a table of what was tried."""
        self._record()
        found.interrupted = self.interrupted
        (found.folder / "search.json").write_text(json.dumps(found.to_dict(), indent=1) + "\n")
        names = [dimension.name for dimension in self.dimensions]
        with (found.folder / "trials.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["number", *names, "score", "key"])
            for c in found.candidates:
                number = "default" if c.default else c.number
                writer.writerow([number, *(c.values[name] for name in names), c.score, c.tuning.key])


def _in_state(study: Any, name: str) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == name]


def _state(name: str) -> Any:
    return getattr(import_optuna().trial.TrialState, name)


def _of(value: Any, expert: int | None) -> Any:
    """A parameter's value, or the one that an expert has."""
    return value[expert] if expert is not None and isinstance(value, (list, tuple)) else value
