"""Mean ranks against scipy, and the critical differences of Demšar (2006), Table 5."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import METHODS, study
from test_views import STATISTICS

from conf.schema import FigureView, Views
from pipelines.report import write_report
from pipelines.report.ranks import nemenyi


def test_critical_differences_are_the_published_ones():
    for lines, q in {2: 1.960, 4: 2.569, 10: 3.164}.items():
        assert nemenyi(lines, 10) == pytest.approx(q * np.sqrt(lines * (lines + 1) / 60), rel=1e-3)


def test_mean_ranks_over_subsets_and_seeds(tmp_path):
    rows = [
        replace(row, key=f"{row.key}{seed}", label=f"{row.label} {seed}", columns={"training_seed": seed})
        for seed in (0, 1, 2)
        for row in study(skills=4, n=60, sizes=(2, 3), samples=3, seed=seed)
    ]
    view = FigureView(kind="ranks", lines=["method"])
    report = write_report(rows, tmp_path, statistics=STATISTICS, title="t", views=Views(figures={"r": view}))
    data = pd.read_csv(tmp_path / "figures" / "r.csv").set_index("line")
    merges = [row for row in rows if row.method]
    score = {(r.method, r.experts, r.columns["training_seed"]): np.mean(list(r.scores.values())) for r in merges}
    blocks = sorted({key[1:] for key in score}, key=str)
    ranks = stats.rankdata([[-score[(m, *block)] for m in METHODS] for block in blocks], axis=1)
    assert data["y"].to_dict() == pytest.approx(dict(zip(METHODS, ranks.mean(axis=0))), rel=1e-5)
    assert list(data["y"]) == sorted(data["y"])
    seeds = np.array([ranks[[b[1] == s for b in blocks]].mean(axis=0) for s in (0, 1, 2)])
    half = 4.302653 * seeds.std(axis=0, ddof=1) / 3**0.5  # Student's t of two degrees of freedom, 97.5 %
    assert data["low"].to_dict() == pytest.approx(dict(zip(METHODS, seeds.mean(axis=0) - half)), rel=1e-4)
    assert data["high"].to_dict() == pytest.approx(dict(zip(METHODS, seeds.mean(axis=0) + half)), rel=1e-4)
    assert any("over 18 blocks" in note for note in report.series["r"].notes)
