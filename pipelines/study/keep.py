"""What a study holds on to in the store: its record, and merged checkpoints (none, the best of each pool, or all)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from conf.schema import Config
from pipelines.checkpoints.fingerprint import WeightHash
from pipelines.merge.card import model_card
from pipelines.merge.write import write_merge
from pipelines.progress import SILENT, Progress
from pipelines.store.provenance import markdown, training_columns, training_of
from pipelines.store.records import mean_score, write_record
from pipelines.store.store import KINDS, Store, content_key
from pipelines.study.layout import Planned
from pipelines.study.plan import Plan
from pipelines.study.sources import Access, fields_without
from pipelines.study.trial import Trial
from pipelines.study.worker import Worker

IRRELEVANT = ("store", "runs", "out", "executor", "statistics", "keep", "trackers")
"""Parts of a configuration that change nothing of what a study refers to."""


def keep_merges(config: Config, plan: Plan, access: Access, progress: Progress = SILENT) -> list[str]:
    """Write the merges that ``keep`` asks for into the store; returns the keys of all that are kept.

    ``best`` is the merge with the highest mean over tasks, of each pool and each suite that its subsets are scored on.
    A kept merge is merged anew, on the device that trials run on, and is to the bit the one that was scored.
    """
    chosen = {p.trial.model_key: p for p in _chosen(config, plan, access.store) if p.trial is not None}
    missing = [planned for key, planned in chosen.items() if not access.store.has("merges", key, whole=True)]
    if missing:
        worker = Worker(access, config.executor)
        with progress.step("keep merges", len(missing)) as step:
            for planned in missing:
                _keep(planned, worker)
                step.advance(1, merge=planned.label)
    return list(chosen)


def _chosen(config: Config, plan: Plan, store: Store) -> list[Planned]:
    if config.keep == "none":
        return []
    merges = [p for p in plan.layout.planned if p.kind == "merge" and p.trial is not None and p.split is None]
    scores = [mean_score(p.trial.key, store) for p in merges if p.trial is not None]
    scored = [(planned, score) for planned, score in zip(merges, scores) if score is not None]
    if config.keep == "all":
        return [planned for planned, _ in scored]
    groups: dict[tuple[str, str], list[tuple[Planned, float]]] = defaultdict(list)
    main = {(p.pool, p.suite.name): p.suite.attack for p in reversed(merges)}  # a suite stands before its attacks
    for planned, score in scored:
        group = planned.pool, planned.suite.name
        if planned.suite.attack == main[group]:
            groups[group].append((planned, score))
    return [max(group, key=lambda pair: pair[1])[0] for group in groups.values()]


def _keep(planned: Planned, worker: Worker) -> None:
    trial, store = planned.trial, worker.access.store
    assert trial is not None
    with store.claim("merges", trial.model_key):
        if store.has("merges", trial.model_key):
            return
        merge, scored = worker.merge(trial), trial.about()
        merge.digest = WeightHash()
        about = {name: scored[name] for name in ("model", "names", "base", "experts", "statistics", "recipe")}
        about["name"] = planned.title
        with store.commit("merges", trial.model_key, about) as draft:
            write_merge(merge, draft, device=str(worker.device))
            trained = training_columns(training_of(expert.path) for expert in trial.experts)
            card = f"{model_card(merge, planned.title).rstrip()}\n\n{markdown({'pool': planned.pool, **trained})}"
            (draft / "README.md").write_text(card, encoding="utf-8")
            about["weights"] = merge.digest.hexdigest()


def record_study(config: Config, plan: Plan, access: Access, kept: Sequence[str] = ()) -> Path:
    """Write what a study refers to; the same study again takes the place of its earlier record.

    Of merges these are the ``kept`` ones where only the best are kept, otherwise all of its merges that there are.
    """
    pending = [unmade.key for unmade in plan.layout.unmade if unmade.key]
    keys = trial_keys(plan.layout.trials, access.store) | {"pending": pending}
    if config.keep == "best" and kept:
        keys["merges"] = sorted(kept)
    trials = [(p.pool, p.trial.key) for p in plan.layout.planned if p.trial is not None]
    pools = {name: [key for pool, key in trials if pool == name] for name in config.pools}
    return write_record(access.store, plan.name, "sweep", content_key(fields_without(config, *IRRELEVANT)), keys, pools)


def trial_keys(trials: Iterable[Trial], store: Store) -> dict[str, list[str]]:
    """Keys of trials, and of the bases, experts, statistics and kept merges of the store that belong to them."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for trial in trials:
        found["results"].add(trial.key)
        found["statistics"].update(source.fingerprint for source in trial.information)
        for source in (trial.base, *trial.experts):
            kind, key = Path(source.path).parent.name, Path(source.path).name
            if kind in ("bases", "experts", "merges") and store.has(kind, key):
                found[kind].add(key)
        if trial.merge is not None and store.has("merges", trial.model_key):
            found["merges"].add(trial.model_key)
    return {kind: sorted(keys) for kind, keys in found.items()}
