"""Experts that are best at tasks which tell them apart, against the definition written out."""

import itertools

import numpy as np
import pytest

from conf.errors import UserError
from pipelines.search.experts import category_experts
from pipelines.search.run import run_search
from pipelines.store.records import studies
from pipelines.store.store import Store


def scores(table):
    tasks = [f"t{j}" for j in range(len(table[0]))]
    return {f"e{i}": dict(zip(tasks, row)) for i, row in enumerate(table)}


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_the_definition(threshold):
    table = np.random.default_rng(3).random((6, 5))
    apart = set()
    for i, j in itertools.combinations(range(5), 2):
        a, b = table[:, i] - table[:, i].mean(), table[:, j] - table[:, j].mean()
        if abs(a @ b / np.sqrt((a @ a) * (b @ b))) < threshold:
            apart |= {i, j}
    wanted = sorted({f"e{table[:, i].argmax()}" for i in apart})
    assert category_experts(scores(table), threshold) == wanted


def test_tasks_that_rank_all_alike_choose_nobody():
    with pytest.raises(UserError, match="the tasks rank all experts alike"):
        category_experts(scores([[0.1, 0.2], [0.2, 0.4], [0.5, 1.0]]), 0.5)
    with pytest.raises(UserError, match="e2 is best at every such task"):
        category_experts(scores([[0.1, 0.4], [0.2, 0.1], [0.5, 0.5]]), 0.99)


def test_a_search_over_category_experts(make, own_store, monkeypatch):
    seen = []

    def chosen(scores, threshold):
        seen.append((scores, threshold))
        return list(scores)[1:]

    monkeypatch.setattr("pipelines.search.run.category_experts", chosen)
    found = run_search(make("method=linear", "search.trials=2", "search.category_experts=0.3"))
    (scores, threshold), store = seen[0], Store(own_store)
    alone = [e.describe() for e in store.entries("results") if e.describe()["recipe"] is None]
    assert {one["settings"]["tasks"]["add"]["split"] for one in alone} == {"validation"}
    assert sorted(scores.values(), key=str) == sorted(
        ({task: entry["value"] for task, entry in one["tasks"].items()} for one in alone), key=str
    )
    assert (threshold, found.experts) == (0.3, list(scores)[1:])
    assert all(len(c.tuning.experts) == len(found.experts) for c in found.candidates)
    assert {one["key"] for one in alone} <= set(studies(store)[0].results)
