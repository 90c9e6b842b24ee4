"""Item response theory: a model's score on all documents, estimated from its answers to some of them.

Two-parameter logistic model: P(model m answers document d) = σ(a_d (θ_m − b_d)), with ability θ, difficulty b and
discrimination a. The few models whose answers to all documents are known fix the documents' a and b, with the priors
θ ~ N(0, 1), b ~ N(0, 2²), log a ~ N(0, ½²), as a few answers leave most of them open. Polo et al. 2024
(tinyBenchmarks), https://arxiv.org/abs/2402.14992; for merges Mencattini et al. 2025 (MERGE³), https://arxiv.org/abs/2502.10436.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

Array = NDArray[np.float64]
Places = NDArray[np.int64]

SPREAD_B, SPREAD_LOG_A = 2.0, 0.5
"""Standard deviations of the priors of b and of log a."""


@dataclass(frozen=True)
class Items:
    """Documents of one task: discrimination ``a`` [D] and difficulty ``b`` [D]."""

    a: Array
    b: Array

    def chance(self, ability: float) -> Array:
        """σ(a (θ − b)) ``[D]``: the probability of a right answer to each."""
        return np.asarray(expit(self.a * (ability - self.b)))

    def ability(self, chosen: Places, answers: Array) -> float:
        """θ of highest posterior density given ``answers`` [n] in 0 … 1 to the documents ``chosen`` [n]."""
        a, b = self.a[chosen], self.b[chosen]

        def loss(ability: float) -> float:
            logits = a * (ability - b)
            return float(np.logaddexp(0.0, logits).sum() - answers @ logits + ability**2 / 2)

        return float(minimize_scalar(loss, bounds=(-8.0, 8.0), method="bounded", options={"xatol": 1e-8}).x)

    def estimate(self, chosen: Places, answers: Array) -> tuple[float, float]:
        """Mean over all D documents from ``answers`` [n] to n of them drawn at random, and its standard error.

        mean_D(p) + mean_n(y − p) with p the model's probabilities: right on average however wrong the model is (the
        difference estimator). error² = (1 − n/D) / n · Σ_n (y − p)² / (n − 1). Needs n ≥ 2.
        """
        p, n = self.chance(self.ability(chosen, answers)), len(chosen)
        left = answers - p[chosen]
        variance = (1 - n / len(p)) / n * float(left @ left) / (n - 1)
        return float(p.mean() + left.mean()), float(np.sqrt(variance))


def fit_items(answers: Array) -> Items:
    """Documents' a and b of highest posterior density, with the models' θ, from ``answers`` [models, D] in 0 … 1."""
    models, count = answers.shape

    def loss(flat: Array) -> tuple[float, Array]:
        theta, b, log_a = flat[:models], flat[models : models + count], flat[models + count :]
        a = np.exp(log_a)
        logits = a * (theta[:, None] - b)  # [models, D]
        value = np.logaddexp(0.0, logits).sum() - (answers * logits).sum()
        value += (theta**2).sum() / 2 + ((b / SPREAD_B) ** 2).sum() / 2 + ((log_a / SPREAD_LOG_A) ** 2).sum() / 2
        pull = expit(logits) - answers
        by_theta = (pull * a).sum(axis=1) + theta
        by_b = -(pull * a).sum(axis=0) + b / SPREAD_B**2
        by_log_a = (pull * logits).sum(axis=0) + log_a / SPREAD_LOG_A**2
        return float(value), np.concatenate([by_theta, by_b, by_log_a])

    right = np.clip(answers.mean(axis=0), 0.05, 0.95)
    start = np.concatenate([np.zeros(models), -np.log(right / (1 - right)), np.zeros(count)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return Items(np.exp(found[models + count :]), found[models : models + count])


def spread_choice(items: Items, count: int, generator: np.random.Generator) -> Places:
    """``count`` of D documents, every D/count-th by difficulty from a drawn start: each as likely as another."""
    order, step = np.argsort(items.b, kind="stable"), len(items.b) / count
    places = np.floor(generator.random() * step + step * np.arange(count)).astype(np.int64)
    return np.sort(order[places])
