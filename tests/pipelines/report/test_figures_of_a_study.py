"""Data of figures that a study declares, against plain numpy on the per-document scores."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import study
from test_views import STATISTICS, TASKS, accuracy, merges, of_size, read, rows, single  # noqa: F401

from conf.schema import FigureView, Views
from pipelines.report import write_report


def drawn(rows, tmp_path, **views):  # noqa: F811
    report = write_report(rows, tmp_path, statistics=STATISTICS, title="t", views=Views(figures=views))
    assert {f"figures/{name}{end}" for name in views for end in (".csv", ".png", ".svg")} <= set(report.paths)
    return report


def test_accuracy_by_size_in_a_panel_a_base_with_the_papers_band(rows, tmp_path):  # noqa: F811
    view = FigureView(where={"training": "plain"}, lines=["method"], panels="base", band="std", singles=True,
                      references=["base", "best_expert", "mean_expert"])  # fmt: skip
    report = drawn(rows, tmp_path, f=view)
    data = read(tmp_path / "figures", "f", ["panel", "line", "x"])
    for pool, base in (("plain", "1b"), ("plain_3b", "3b")):
        scores = np.array([accuracy(r) for r in of_size(merges(rows, pool=pool, method="linear"), 2)])
        point = data.loc[(base, "linear", 2)]
        assert point["y"] == pytest.approx(scores.mean(), rel=1e-5)
        assert point["high"] - point["y"] == pytest.approx(np.std(scores, ddof=1), rel=1e-3)
        singles = [accuracy(r) for r in rows if r.pool == pool and r.kind == "expert"]
        assert data.loc[(base, "linear", 1), "y"] == pytest.approx(np.mean(singles), rel=1e-5)
        heights = report.series["f"].references.set_index(["panel", "name"])["y"]
        bottom = next(accuracy(r) for r in rows if r.pool == pool and r.kind == "base")
        assert heights[base].to_dict() == pytest.approx(
            {"pre-trained": bottom, "best expert": max(singles), "mean of experts": np.mean(singles)}
        )


def test_one_panel_a_task_and_a_measure_as_axis(rows, tmp_path):  # noqa: F811
    tasks = FigureView(where={"pool": "plain"}, lines=["method"], panels="task", band="none")
    norms = FigureView(kind="scatter", where={"pool": "plain"}, x="update_norm", lines=["method"], points=["n"])
    drawn(rows, tmp_path, tasks=tasks, norms=norms)
    own = of_size(merges(rows, pool="plain", method="ties"), 2)
    data = read(tmp_path / "figures", "tasks", ["panel", "line", "x"])
    for task in TASKS:
        assert data.loc[(task, "ties", 2), "y"] == pytest.approx(np.mean([accuracy(r, [task]) for r in own]), rel=1e-5)
    points = pd.read_csv(tmp_path / "figures" / "norms.csv")
    pairs = points[points["line"] == "ties"].iloc[0]
    assert pairs["x"] == pytest.approx(np.mean([r.columns["update_norm"] for r in own]), rel=1e-5)
    assert pairs["y"] == pytest.approx(np.mean([accuracy(r) for r in own]), rel=1e-5)


def test_bars_radar_heat_contour_and_histogram(tmp_path):
    rows = [  # noqa: F811
        replace(r, key=f"{r.key}{a}{b}", parameters={"lambda": a, "density": b}, label=f"{r.label} {a} {b}")
        for a in (0.1, 0.5)
        for b in (0.2, 0.4)
        for r in study(skills=3, n=30, sizes=(2,), methods={"ties": 0.0}, seed=int(10 * a + 100 * b))
        if r.kind == "merge"
    ]
    base = study(skills=3, n=30, sizes=())
    views = {
        "heat": FigureView(kind="heat", x="lambda", y="density"),
        "contour": FigureView(kind="contour", x="lambda", y="density"),
        "bars": FigureView(kind="bars", x="task", lines=["lambda"]),
        "radar": FigureView(kind="radar", x="task", lines=["lambda"], where={"density": 0.4}),
        "spread": FigureView(kind="histogram", x="score", lines=["lambda"]),
        "curve": FigureView(x="lambda", y="difference", lines=["density"]),
    }
    drawn([*base, *rows], tmp_path, **views)
    cell = [r for r in rows if r.parameters == {"lambda": 0.5, "density": 0.2}]
    heat = read(tmp_path / "figures", "heat", ["x", "y"])
    assert heat.loc[(0.5, 0.2), "z"] == pytest.approx(np.mean([accuracy(r, TASKS[:3]) for r in cell]), rel=1e-5)
    surface = read(tmp_path / "figures", "contour", ["x", "y"])["z"]
    pd.testing.assert_series_equal(surface, heat["z"])
    datasets = json.loads((tmp_path / "figures" / "contour.vl.json").read_text())["datasets"].values()
    (lines,) = (pd.DataFrame(data) for data in datasets if "level" in data[0])
    low, high = surface.min(), surface.max()
    assert sorted(lines["level"].unique()) == pytest.approx(np.linspace(low, high, 12)[1:-1], abs=1e-5)
    for x, y, level in lines[["x", "y", "level"]].itertuples(index=False):  # on edges of the grid, at their height
        a, b = (x - 0.1) / 0.4, (y - 0.2) / 0.2
        assert min(a, b, 1 - a, 1 - b) == pytest.approx(0, abs=1e-6)
        ends = ((0.1, 1 - a), (0.5, a)), ((0.2, 1 - b), (0.4, b))
        height = sum(surface[left, right] * p * q for left, p in ends[0] for right, q in ends[1])
        assert height == pytest.approx(level, abs=1e-5)
    half = [r for r in rows if r.parameters["lambda"] == 0.5]
    bars = read(tmp_path / "figures", "bars", ["line", "x"])
    assert bars.loc[("lambda=0.5", "med"), "y"] == pytest.approx(
        np.mean([accuracy(r, ["med"]) for r in half]), rel=1e-5
    )
    radar = read(tmp_path / "figures", "radar", ["line", "x"])
    own = [accuracy(r, ["add"]) for r in half if r.parameters["density"] == 0.4]
    assert radar.loc[("lambda=0.5", "add"), "y"] == pytest.approx(np.mean(own), rel=1e-5)
    spread = pd.read_csv(tmp_path / "figures" / "spread.csv")
    assert spread.groupby("line")["y"].sum().to_dict() == {"lambda=0.1": 3, "lambda=0.5": 3}
    curve = read(tmp_path / "figures", "curve", ["line", "x"])
    assert curve.loc[("density=0.2", 0.5), "y"] == pytest.approx(
        np.mean([accuracy(r, TASKS[:3]) for r in cell]) - accuracy(base[0], TASKS[:3]), abs=1e-6
    )
