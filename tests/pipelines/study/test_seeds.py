"""Several training seeds of a pool: experts of each, merges of experts of one seed, and what the report makes of it."""

import numpy as np
import pandas as pd
import pytest

from conf.errors import UserError
from pipelines.search.experts import chosen_experts
from pipelines.store.provenance import training_costs
from pipelines.study.layout import lay_out
from pipelines.study.plan import make_plan
from pipelines.study.sources import access_of
from pipelines.study.sweep import run_study, trial_rows

SEEDS = "pools.tiny.seeds=[0,1]"


@pytest.fixture
def plans(small_study):
    return lambda config: make_plan(config, access_of(config))


def test_every_seed_has_its_experts_and_merges(small_study, plans):
    one, both = plans(small_study()), plans(small_study(SEEDS))
    assert one.new == 1 + 3 + 2 * 2
    assert [unmade.what for unmade in both.layout.unmade] == [
        f"expert {name} of tiny (seed 1)" for name in ("add", "dist", "count")
    ]
    assert (both.new, both.waiting) == (one.new, one.new - 1), "there is one base"
    assert {t.key for t in both.layout.trials} == {t.key for t in one.layout.trials}, "those of seed 0 are the same"

    done = run_study(small_study(SEEDS))
    assert done.complete
    assert done.outcome.done == 2 * one.new - 1
    planned = lay_out(small_study(SEEDS), access_of(small_study(SEEDS))).planned
    own = {run: {p.trial.experts[0].path for p in planned if p.kind == "expert" and p.run == run} for run in (0, 1)}
    assert len(own[0] | own[1]) == 6
    for p in (p for p in planned if p.kind == "merge"):
        assert {expert.path for expert in p.trial.experts} <= own[p.run]
    for path in own[1]:
        cost = training_costs(path)
        assert cost["train_tokens"] > 0
        assert 1e8 < cost["train_memory"] < 1e11
        assert 0 < cost["train_seconds"] < 100


def test_the_report_averages_over_seeds(small_study):
    done = run_study(small_study(SEEDS))
    rows = [r for r in trial_rows(done.plan, access_of(small_study(SEEDS))) if r.scores]
    lines = {(line.kind, line.method): line for line in done.report.leaderboard}
    for method in ("linear", "dare"):
        merges = [r for r in rows if r.method == method]
        assert {r.provenance["training_seed"] for r in merges} == {0, 1}
        line = lines["merge", method]
        assert (line.merges, line.planned) == (4, 4)
        assert line.score.estimate == pytest.approx(np.mean([r.scores["add"] for r in merges]))
        best = []
        for merge in merges:
            parents = [r for r in rows if r.kind == "expert" and r.run == merge.run and r.experts[0] in merge.experts]
            assert len(parents) == 2
            best.append(max(r.scores["add"] for r in parents))
        gap = np.mean([r.scores["add"] for r in merges]) - np.mean(best)
        assert line.to_best.estimate == pytest.approx(gap), "each against experts of its own seed"
    own = pd.read_csv(done.folder / "tables" / "experts.csv").set_index("label")["own"]
    seeds = [r.scores["add"] for r in rows if r.kind == "expert" and r.experts == ("add",)]
    assert (len(seeds), own["add"]) == (2, pytest.approx(np.mean(seeds), rel=1e-5))
    frame = pd.read_csv(done.folder / "trials.csv")
    assert len(frame) == len(rows)


def test_seeds_of_what_was_found_and_of_a_search_are_refused(small_study, tiny_pool, plans):
    with pytest.raises(UserError, match="of one training each"):
        plans(small_study(SEEDS, f"+pools.tiny.experts.found.path={tiny_pool.experts[0]}"))
    with pytest.raises(UserError, match="experts of one training seed"):
        chosen_experts(small_study(SEEDS))
