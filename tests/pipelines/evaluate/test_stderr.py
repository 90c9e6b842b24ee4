"""Standard errors against lm-eval's own bootstrap."""

import math

import numpy as np
import pytest
from lm_eval.api import metrics

from pipelines.evaluate.score import standard_error

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "a", "dog", "that", "ran", "away"]


def pairs(n, labels):
    rng = np.random.default_rng(0)
    gold = rng.integers(0, labels, n)
    said = np.where(rng.random(n) < 0.6, gold, rng.integers(0, labels, n))
    return list(zip(gold.tolist(), said.tolist()))


def texts(n):
    rng = np.random.default_rng(1)
    return [
        (" ".join(rng.permutation(WORDS)), " ".join(rng.permutation(WORDS)[: rng.integers(5, 13)])) for _ in range(n)
    ]


CASES = {
    "mcc": (metrics.matthews_corrcoef, pairs(80, 2), 500),
    "mcc of three": (metrics.matthews_corrcoef, pairs(80, 3), 500),
    "f1": (metrics.f1_score, pairs(80, 2), 500),
    "bleu": (metrics.bleu, texts(30), 200),
    "chrf": (metrics.chrf, texts(30), 200),
    "chrf++": (metrics.chrfpp, texts(30), 200),
    "ter": (metrics.ter, texts(15), 60),
    "perplexity": (metrics.perplexity, np.random.default_rng(2).normal(-2, 1, 60).tolist(), 2000),
    "mean": (metrics.mean, [0.0, 1.0, 1.0, 0.0, 1.0], 0),
}


@pytest.mark.parametrize("name", CASES)
def test_standard_errors_are_lm_evals(name, monkeypatch, capfd):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    aggregate, values, draws = CASES[name]
    want = metrics.stderr_for_metric(aggregate, bootstrap_iters=draws or 1)(values)
    got = standard_error(aggregate, values, 1234)
    assert got == standard_error(aggregate, values, 1234)
    assert got == pytest.approx(want, rel=0.25 if draws else 1e-12)


def test_what_has_no_standard_error_in_lm_eval_has_none():
    assert math.isnan(standard_error(max, [1.0, 2.0], 0))
    assert math.isnan(standard_error(metrics.mean, [1.0], 0))
    assert standard_error(metrics.matthews_corrcoef, [(1, 1)] * 5, 0) == 0
