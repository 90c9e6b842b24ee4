"""A search that scores configurations on a few documents: what is run, what is estimated, what is refused."""

import numpy as np
import pytest

from conf.errors import UserError
from pipelines.search import estimate
from pipelines.search.run import run_search
from pipelines.store.store import Store
from pipelines.study.worker import Worker

SETTINGS = ("search=grid", "+search.space.lambda=[0.1,0.3,0.5,0.7,0.9]", "search.top=2", "search.estimate_from=4")


def test_configurations_see_a_few_documents_and_the_best_see_all(make, own_store, monkeypatch):
    found, store = run_search(make(*SETTINGS)), Store(own_store)
    sizes = [
        (about["trial"], task["split"], len(estimate.documents_of_entry(store, entry)["add"]))
        for entry in store.entries("results")
        for about in [entry.describe()]
        for task in [about["settings"]["tasks"]["add"]]
    ]
    counted = {size: sizes.count(size) for size in set(sizes)}
    tests = counted.pop(("merge", "test", 12))
    assert counted == {
        ("base", "validation", 12): 1, ("expert", "validation", 12): len(found.experts),
        ("merge", "validation", 4): 5, ("merge", "validation", 12): 3,
    }  # fmt: skip
    assert tests == 2 - found.best.default
    whole = [c for c in found.candidates if c.whole and not c.default]
    rest = [c for c in found.candidates if not c.whole]
    assert (len(whole), len(rest)) == (2, 3)
    assert min(c.estimate[0] for c in whole) >= max(c.estimate[0] for c in rest)
    for c in whole:
        tasks = estimate.documents_of(c.tuning, store)
        assert c.score == pytest.approx(np.mean([np.mean([*task.values()]) for task in tasks.values()]))
    assert found.best.whole
    assert "estimates of the 2 best were off by" in found.estimates
    monkeypatch.setattr(Worker, "run", lambda *_: pytest.fail("what was scored is scored again"))
    again = run_search(make(*SETTINGS))
    assert [(c.score, c.estimate) for c in again.candidates] == [(c.score, c.estimate) for c in found.candidates]


def test_all_documents_need_no_estimate(make):
    found = run_search(make(*SETTINGS[:3], "search.estimate_from=12"))
    assert all(c.estimate[1] == 0 for c in found.candidates if not c.default)
    plain = run_search(make(*SETTINGS[:3]))
    whole = [(c.values, c.score) for c in found.candidates if c.whole]
    assert [(v, pytest.approx(s)) for v, s in whole] == [(c.values, c.score) for c in plain.candidates][: len(whole)]


def test_what_cannot_be_estimated_is_refused(make, monkeypatch):
    with pytest.raises(UserError, match=r"the mean over tasks.*search\.estimate_from"):
        run_search(make(*SETTINGS, "search.objectives=[mean,worst]"))
    own = estimate.read_table
    monkeypatch.setattr(estimate, "read_table", lambda *a: (t := own(*a)).set_column(3, "value", [[5.0] * t.num_rows]))
    with pytest.raises(UserError, match=r"add: acc is no mean"):
        run_search(make(*SETTINGS))
