"""Item response theory against simulated models and documents, and the estimate against the design it stands on."""

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.special import expit

from mergeopt_core.statistics import items
from mergeopt_core.statistics.items import Items, fit_items, spread_choice


def world(models, documents, seed=0):
    g = np.random.default_rng(seed)
    a, b, theta = (
        np.exp(0.5 * g.standard_normal(documents)),
        2 * g.standard_normal(documents),
        g.standard_normal(models),
    )
    answers = (g.random((models, documents)) < expit(a * (theta[:, None] - b))).astype(float)
    return Items(a, b), theta, answers, g


def test_many_models_give_the_documents_back(monkeypatch):
    true, theta, answers, _ = world(400, 60)
    losses = []
    real = items.minimize
    monkeypatch.setattr(items, "minimize", lambda f, x, **more: losses.append((f, x)) or real(f, x, **more))
    found = fit_items(answers)
    (loss, start), point = losses[0], np.random.default_rng(1).standard_normal(400 + 120) / 3
    assert check_grad(lambda x: loss(x)[0], lambda x: loss(x)[1], point) < 1e-4 * np.linalg.norm(loss(point)[1])
    assert start.shape == point.shape
    assert np.corrcoef(found.b, true.b)[0, 1] > 0.97
    assert np.corrcoef(np.log(found.a), np.log(true.a))[0, 1] > 0.7
    everything = np.arange(60)
    abilities = [found.ability(everything, row) for row in answers[:100]]
    assert np.corrcoef(abilities, theta[:100])[0, 1] > 0.9


def test_ability_is_where_the_posterior_is_flat():
    true, _, answers, _ = world(1, 30, seed=3)
    theta = true.ability(np.arange(30), answers[0])
    assert true.a @ (answers[0] - true.chance(theta)) == pytest.approx(theta, abs=1e-5)


@pytest.mark.parametrize(("models", "documents", "count"), [(13, 120, 20), (4, 200, 10)])
def test_the_stated_error_holds_and_is_smaller_than_that_of_the_plain_mean(models, documents, count):
    off, stated, plain = [], [], []
    for seed in range(12):
        true, _, answers, g = world(models, documents, seed)
        fitted = fit_items(answers)
        for _ in range(25):
            own = (g.random(documents) < true.chance(g.standard_normal())).astype(float)
            chosen = spread_choice(fitted, count, g)
            estimate, error = fitted.estimate(chosen, own[chosen])
            off.append(estimate - own.mean())
            stated.append(error)
            plain.append(own[g.choice(documents, count, replace=False)].mean() - own.mean())
    rms = np.sqrt(np.mean(np.square(off)))
    assert rms < 0.9 * np.sqrt(np.mean(np.square(plain)))
    assert np.sqrt(np.mean(np.square(stated))) == pytest.approx(rms, rel=0.15)
    assert abs(np.mean(off)) < 0.15 * rms


def test_a_wrong_model_is_right_on_average_and_all_documents_are_no_estimate():
    g, values = np.random.default_rng(0), np.random.default_rng(1).integers(0, 2, 40).astype(float)
    wrong = Items(np.ones(40), g.standard_normal(40))
    drawn = [spread_choice(wrong, 10, g) for _ in range(4000)]
    assert {len(set(one)) for one in drawn} == {10}
    assert np.bincount(np.concatenate(drawn), minlength=40) / 4000 == pytest.approx(np.full(40, 0.25), abs=0.035)
    known = wrong.chance(0.3)
    estimates = [known.mean() + (values[one] - known[one]).mean() for one in drawn]
    assert np.mean(estimates) == pytest.approx(values.mean(), abs=0.01)
    estimate, error = wrong.estimate(np.arange(40), values)
    assert (estimate, error) == (pytest.approx(values.mean()), 0.0)
