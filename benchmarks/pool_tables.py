"""Tables of ``benchmarks.pool_training``: differences in points of accuracy, paired by seed, with 95% t-intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.pool_training import WAYS
from mergeopt_core.statistics import holm

BEST = "best of all"


def read(folder: Path) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """The cells, and a line a merge: test score (mean over its skills), ratio to the own experts, worst skill."""
    cells = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    lines = []
    for cell in cells:
        where = {key: cell[key] for key in ("size", "steps", "seed", "way")}
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for merge in cell.get("merges", ()):
            groups.setdefault(tuple(merge["group"]), []).append(merge)
        for group, merges in groups.items():
            best = max(merges, key=lambda merge: max(merge["validation"].values()))
            own, base = (np.mean([cell[part][skill] for skill in group]) for part in ("own", "base"))
            for merge in [*merges, {**best, "merger": BEST}]:
                score = float(np.mean(merge["scores"]))
                lines.append(where | {
                    "merger": merge["merger"], "n": len(group), "group": "+".join(group), "score": score,
                    "ratio": score / own, "worst": min(merge["scores"]), "scale": merge["scale"],
                    "kept": (score - base) / (own - base),
                })  # fmt: skip
        if "own" in cell:
            own = float(np.mean(list(cell["own"].values())))
            lines.append(where | {"merger": "own skill", "n": 1, "group": "", "score": own})
    return cells, pd.DataFrame(lines)


def by_seed(frame: pd.DataFrame, way: str, value: str = "score") -> pd.Series:
    """The mean over subsets of every seed."""
    return frame[frame["way"] == way].groupby("seed")[value].mean()


def compare(frame: pd.DataFrame, way: str, reference: str) -> tuple[float, float, float, int]:
    """Mean difference in points, half of its interval, p of a paired t-test, seeds."""
    points = 100 * (by_seed(frame, way) - by_seed(frame, reference)).dropna()
    n = len(points)
    if n < 2:
        return (float(points.mean()) if n else math.nan), math.nan, math.nan, n
    error = float(points.std(ddof=1) / math.sqrt(n))
    p = float(stats.ttest_1samp(points, 0.0).pvalue) if error else math.nan
    return float(points.mean()), float(stats.t.ppf(0.975, n - 1)) * error, p, n


def told(found: Sequence[tuple[float, float, float, int]]) -> list[str]:
    """Differences with intervals; an asterisk where Holm's p over all of the row is below 0.05."""
    known = [p for _, _, p, _ in found if not math.isnan(p)]
    corrected = iter(holm(known) if known else [])
    stars = [not math.isnan(p) and next(corrected) < 0.05 for _, _, p, _ in found]
    return [
        "" if math.isnan(mean) else f"{mean:+.1f} ± {half:.1f}{'*' if star else ''}"
        for (mean, half, _, _), star in zip(found, stars, strict=True)
    ]


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def report(folder: Path) -> None:
    """Print all tables."""
    cells, frame = read(folder)
    mergers = [m for m in dict.fromkeys(frame["merger"]) if m not in (BEST, "own skill")]
    for (size, steps), part in frame.groupby(["size", "steps"]):
        ways = list(dict.fromkeys(part["way"]))
        seeds = {way: part[part["way"] == way]["seed"].nunique() for way in ways}
        reference = "plain x1.1" if "plain x1.1" in ways else "plain"
        columns: list[tuple[str, Callable[[pd.DataFrame], pd.Series]]] = [
            (m, lambda f, m=m: f["merger"] == m) for m in ("own skill", *mergers, BEST)
        ]
        head = ["training", "seeds", *(name for name, _ in columns)]
        rows = [[reference, seeds[reference], *(f"{100 * by_seed(part[pick(part)], reference).mean():.1f}"
                                                for _, pick in columns)]]  # fmt: skip
        rows += [[way, seeds[way], *told([compare(part[pick(part)], way, reference) for _, pick in columns])]
                 for way in ways if way != reference]  # fmt: skip
        table(f"{size}, {steps} steps: points against {reference}, mean over n", head, rows)
        for way in ("pool 5", "experts (two rounds)"):
            numbers = sorted(n for n in part["n"].unique() if n > 1)
            rows = [[n, *told([compare(part[(part["n"] == n) & (part["merger"] == m)], way, reference)
                               for m in (*mergers, BEST)])] for n in numbers]  # fmt: skip
            if way in ways:
                table(f"{size}, {steps} steps: {way} by n, against {reference}", ["n", *mergers, BEST], rows)
        of_part = [c for c in cells if (c["size"], c["steps"]) == (size, steps)]
        if "pool 5, outsiders" in ways:
            mixed(part, of_part, reference, [*mergers, BEST])
        lists(part, of_part, reference)


def mixed(part: pd.DataFrame, cells: Sequence[dict[str, Any]], reference: str, mergers: Sequence[str]) -> None:
    """Merges of experts of a pool with plainly trained ones of the same base."""
    way = "pool 5, outsiders"
    pools = {c["seed"]: {*list(c["own"])[: WAYS[way].members]} for c in cells if c["way"] == way}
    both = [bool(row.group) and row.seed in pools and 0 < len(pools[row.seed] & {*row.group.split("+")}) < row.n
            for row in part.itertuples()]  # fmt: skip
    part = part[both]
    found = told([compare(part[part["merger"] == m], way, reference) for m in mergers])
    table(f"{way}: merges of both kinds ({len(pools)} seeds)", ["training", *mergers], [[way, *found]])


def lists(part: pd.DataFrame, cells: Sequence[dict[str, Any]], reference: str) -> None:
    """What does not fit into differences: λ, ratios, worst skill, joint training, seconds."""
    joint = {cell["seed"]: float(np.mean(list(cell["scores"].values()))) for cell in cells if cell["way"] == "joint"}
    rows = []
    for way in dict.fromkeys(part["way"]):
        own = part[(part["way"] == way) & (part["n"] == part["n"].max()) & (part["merger"] == BEST)]
        trained = [c for c in cells if c["way"] == way and "train" in c]
        zero = {c["seed"]: float(np.mean(list(c["base"].values()))) for c in trained if "base" in c}
        shares = [(score - zero[seed]) / (joint[seed] - zero[seed])
                  for seed, score in zip(own["seed"], own["score"]) if seed in joint]  # fmt: skip
        rows.append([
            way, f"{own['ratio'].mean():.3f}", f"{own['kept'].mean():.3f}",
            f"{np.mean(shares):.3f}" if shares else "", f"{own['worst'].mean():.3f}",
            f"{np.mean([c['norm'] for c in trained if 'norm' in c] or [math.nan]):.2f}",
            f"{np.median([c['train'] for c in trained] or [math.nan]):.1f}",
        ])  # fmt: skip
    head = ["training", "merged ÷ expert", "gain kept", "share of joint", "worst skill", "‖Δ‖", "s of training"]
    table(f"all {part['n'].max()} experts, best of all merges", head, rows)
    if joint:
        print(f"\njoint training: {100 * np.mean(list(joint.values())):.1f} ({len(joint)} seeds)")
    for merger in ("TA", "TIES"):
        lines = []
        for way in (reference, "pool 5"):
            for n in sorted({len(m["group"]) for c in cells for m in c.get("merges", ())}):
                curves = [m["validation"] for c in cells if c["way"] == way for m in c.get("merges", ())
                          if m["merger"] == merger and m["n"] == n]  # fmt: skip
                if curves:
                    lines.append([way, n, *(f"{100 * np.mean([c[k] for c in curves]):.1f}" for k in curves[0])])
        if lines:
            scales = next(iter(m["validation"] for c in cells for m in c.get("merges", ()) if m["merger"] == merger))
            table(f"{merger} by λ, on validation", ["training", "n", *scales], lines)
