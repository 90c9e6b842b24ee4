"""Made-up trials whose true scores are known."""

import itertools
import math
import random

import numpy as np
import pyarrow as pa

from pipelines.report import TrialRow

SKILLS = ["add", "dist", "med", "second", "count", "seq", "odd", "close", "at", "back", "most", "unique"]
METHODS = {"ties": 0.03, "task_arithmetic": 0.025, "linear": 0.0, "summed": -0.12}


def table(values, tasks=None):
    """Per-document scores: `{task: [value, …]}`."""
    names = [t for t in values for _ in values[t]]
    return pa.table(
        {
            "task": names,
            "document": [i for t in values for i in range(len(values[t]))],
            "metric": ["acc"] * len(names),
            "value": [float(v) for t in values for v in values[t]],
        }
    )


def row(kind, values, *, experts=(), method=None, pool="tiny", study="demo", lazy=False, **more):
    """A trial with the given per-document scores."""
    documents = table(values)
    label = more.pop("label", (method and f"{method}({'+'.join(experts)})") or "+".join(experts) or "base")
    return TrialRow(
        study=study,
        pool=pool,
        kind=kind,
        method=method,
        label=label,
        experts=tuple(experts),
        parameters={"lambda": 0.4} if method else {},
        key=f"{abs(hash((kind, method, experts, pool))):016x}",
        scores={t: float(np.mean(v)) for t, v in values.items()},
        n={t: len(v) for t, v in values.items()},
        documents=(lambda: documents) if lazy else documents,
        suite=more.pop("suite", "skills"),
        seconds={"merge": 0.1, "evaluate": 0.7},
        **more,
    )


def study(skills=8, n=200, sizes=(2, 4, 8), samples=4, methods=METHODS, pool="tiny", shift=0.0, seed=0, attack="none"):
    """Base, experts and merges in which the gain kept falls with the number of experts."""
    names = SKILLS[:skills]
    draw, pick = np.random.default_rng(seed), random.Random(0)
    ease = {t: np.random.default_rng(i).random(n) for i, t in enumerate(names)}  # shared by all models
    penalty = 0.1 if attack != "none" else 0.0

    def answers(chance):
        own = {t: np.where(draw.random(n) < 0.6, ease[t], draw.random(n)) for t in names}
        return {t: (own[t] < chance[t]) * 1.0 for t in names}

    plain = dict.fromkeys(names, 0.45 - penalty)
    rows = [row("base", answers(plain), pool=pool, attack=attack)]
    for name in names:
        rows.append(row("expert", answers(plain | {name: 0.75 - penalty}), experts=(name,), pool=pool, attack=attack))
    for size in sizes:
        subsets = list(itertools.combinations(names, size))
        for subset in pick.sample(subsets, min(samples, len(subsets))):
            for method, bonus in methods.items():
                kept = 0.3 * (0.9 - 0.5 * math.log2(size) / math.log2(12))
                chance = {t: plain[t] + bonus + shift + (kept if t in subset else 0.01) for t in names}
                rows.append(row("merge", answers(chance), experts=subset, method=method, pool=pool, attack=attack))
    return rows
