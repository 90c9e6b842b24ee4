"""Tables and figures that a study declares, against plain numpy on the per-document scores."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import study

from conf.compose import compose
from conf.errors import UserError
from conf.schema import FigureView, Statistics, TableView, Views
from pipelines.report import write_report
from pipelines.report.grouping import beside
from pipelines.report.views import NAMES
from pipelines.study.check import check_study

STATISTICS = Statistics(resamples=200)
SHAPE = {"skills": 4, "n": 40, "sizes": (2, 4), "samples": 4, "methods": {"ties": 0.05, "linear": -0.05}}
TASKS = ["add", "dist", "med", "second"]


def trained(rows, how, **more):
    return [replace(r, provenance={"base": r.base or "tiny", "training": None if r.kind == "base" else how}, **more)
            for r in rows]  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    """Two trainings on one base and one on another."""
    plain = trained(study(**SHAPE, pool="plain"), "plain, adamw", base="1b")
    mergopt = trained(study(**SHAPE, pool="mergopt", shift=0.05, seed=1), "mergopt b=0.1, adamw", base="1b")
    # one base model, whichever pool
    mergopt[0] = replace(plain[0], pool="mergopt")
    other = trained(study(**SHAPE, pool="plain_3b", seed=2), "plain, adamw", base="3b")
    rows = [replace(r, provenance=r.provenance | {"base": r.base}) for r in [*plain, *mergopt, *other]]
    return [replace(r, columns={"update_norm": float(10 * i % 7 + 1)} if r.kind == "merge" else {})
            for i, r in enumerate(rows)]  # fmt: skip


def shown(rows, tmp_path, **views):
    declared = Views(
        tables={k: v for k, v in views.items() if isinstance(v, TableView)},
        figures={k: v for k, v in views.items() if isinstance(v, FigureView)},
    )
    return write_report(rows, tmp_path, statistics=STATISTICS, title="t", views=declared)


def read(tmp_path, name, keys):
    return pd.read_csv(tmp_path / f"{name}.csv").set_index(keys)


def accuracy(row, tasks=TASKS):
    """Mean over tasks of the mean over documents, straight from the table of documents."""
    documents = row.table().to_pandas()
    return np.mean([documents[documents["task"] == t]["value"].mean() for t in tasks])


def merges(rows, **wanted):
    return [r for r in rows if r.kind == "merge" and all(getattr(r, k) == v for k, v in wanted.items())]


def single(rows, pool, expert):
    return next(r for r in rows if r.pool == pool and r.experts == (expert,))


def of_size(found, n):
    return [r for r in found if len(r.experts) == n]


def test_scores_by_task_with_the_base_and_experts_above_them(rows, tmp_path):
    view = TableView(where={"n": 4}, blocks="base", rows=["method", "training"], also=["base", "experts"],
                     columns=["task"], measures=["score", "change"], mean=True,
                     reference={"training": "plain"})  # fmt: skip
    shown(rows, tmp_path, accuracy=view)
    table = read(tmp_path / "tables", "accuracy", ["base", "method", "training"])
    table.index = [tuple("" if pd.isna(v) else v for v in key) for key in table.index]
    base = rows[0]
    for task in TASKS:
        assert table.loc[[("1b", "pre-trained", "")], f"{task} score"].item() == pytest.approx(
            accuracy(base, [task]), rel=1e-5
        )
        own = accuracy(single(rows, "mergopt", task), [task])
        experts = table.loc[[("1b", "experts on their own tasks", "mergopt")]]
        assert experts[f"{task} score"].item() == pytest.approx(own, rel=1e-5)
        before = accuracy(single(rows, "plain", task), [task])
        assert experts[f"{task} change"].item() == pytest.approx(100 * (own - before) / before, rel=1e-4)
    (plain,), (mergopt,) = (of_size(merges(rows, pool=pool, method="ties"), 4) for pool in ("plain", "mergopt"))
    line = table.loc[[("1b", "ties", "mergopt")]]
    assert line["mean score"].item() == pytest.approx(accuracy(mergopt), rel=1e-5)
    change = 100 * (accuracy(mergopt) - accuracy(plain)) / accuracy(plain)
    assert line["mean change"].item() == pytest.approx(change, rel=1e-4)
    assert line["mean change_low"].item() < change < line["mean change_high"].item()
    assert pd.isna(table.loc[[("1b", "ties", "plain")], "mean change"].item())
    own = np.mean([accuracy(single(rows, "plain", t), [t]) for t in TASKS])
    assert table.loc[[("1b", "experts on their own tasks", "plain")], "mean score"].item() == pytest.approx(
        own, rel=1e-5
    )
    after = np.mean([accuracy(single(rows, "mergopt", t), [t]) for t in TASKS])
    change = table.loc[[("1b", "experts on their own tasks", "mergopt")], "mean change"].item()
    assert change == pytest.approx(100 * (after - own) / own, rel=1e-4), "of the mean, as for a merge"


def test_accuracy_as_a_share_of_each_tasks_own_expert(rows, tmp_path):
    view = TableView(rows=["method", "pool"], columns=["task"], measures=["normalised"], mean=True, where={"n": 4})
    shown(rows, tmp_path, normalised=view)
    table = read(tmp_path / "tables", "normalised", ["method", "pool"])
    for pool in ("plain", "mergopt"):
        (merge,) = of_size(merges(rows, pool=pool, method="ties"), 4)
        shares = {t: accuracy(merge, [t]) / accuracy(single(rows, pool, t), [t]) for t in TASKS}
        line = table.loc[("ties", pool)]
        assert [line[task] for task in TASKS] == pytest.approx(list(shares.values()), rel=1e-5)
        assert line["mean"] == pytest.approx(np.mean(list(shares.values())), rel=1e-5), "a mean of shares"
        assert line["mean_low"] < line["mean"] < line["mean_high"]


def test_shares_above_the_base_with_an_average_block(rows, tmp_path):
    view = TableView(where={"training": "plain"}, blocks="base", average=True, columns=["n"], singles=True,
                     measures=["reference", "above", "change"])  # fmt: skip
    shown(rows, tmp_path, above=view)
    table = read(tmp_path / "tables", "above", ["base", "method"])
    want = {}
    for pool, base in (("plain", "1b"), ("plain_3b", "3b")):
        bottom = accuracy(next(r for r in rows if r.pool == pool and r.kind == "base"))
        for n in (1, 2, 4):
            own = of_size([r for r in rows if r.pool == pool and r.method in (None, "ties") and r.kind != "base"], n)
            scores = np.array([accuracy(r) for r in own])
            want[base, n] = 100 * (scores > bottom).mean(), (100 * (scores - bottom) / bottom).mean()
            assert table.loc[(base, "ties"), f"n={n} above"] == pytest.approx(want[base, n][0])
            assert table.loc[(base, "ties"), f"n={n} change"] == pytest.approx(want[base, n][1], rel=1e-4)
            assert table.loc[(base, "linear"), "n=1 change"] == table.loc[(base, "ties"), "n=1 change"]
        assert table.loc[(base, "ties"), "pre-trained"] == pytest.approx(bottom, rel=1e-5)
    mean = np.mean([want["1b", 4], want["3b", 4]], axis=0)
    assert table.loc[("Average", "ties"), "n=4 above"] == pytest.approx(mean[0])
    assert table.loc[("Average", "ties"), "n=4 change"] == pytest.approx(mean[1], rel=1e-4)


def test_against_one_fixed_best_expert(rows, tmp_path):
    view = TableView(where={"pool": "plain", "method": "ties"}, columns=["n"], measures=["above", "difference"],
                     reference="best_expert", also=["best_expert"], band="std")  # fmt: skip
    shown(rows, tmp_path, best=view)
    table = read(tmp_path / "tables", "best", ["method"])
    best = max(accuracy(r) for r in rows if r.pool == "plain" and r.kind == "expert")
    scores = np.array([accuracy(r) for r in of_size(merges(rows, pool="plain", method="ties"), 2)])
    assert table.loc["ties", "n=2 above"] == pytest.approx(100 * (scores > best).mean())
    assert table.loc["ties", "n=2 difference"] == pytest.approx((scores - best).mean(), abs=1e-6)
    half = (table.loc["ties", "n=2 difference_high"] - table.loc["ties", "n=2 difference_low"]) / 2
    assert half == pytest.approx(np.std(scores - best, ddof=1), rel=1e-4)


def test_orders_and_draws_of_a_subset_count_once(rows, tmp_path):
    first, *rest = of_size(merges(rows, pool="plain", method="ties"), 2)
    again = replace(
        first, experts=first.experts[::-1], key="other order", scores=rest[0].scores, documents=rest[0].documents
    )
    shown(
        [*rows, again],
        tmp_path,
        t=TableView(where={"pool": "plain", "method": "ties", "n": 2}, measures=["score", "models"]),
    )
    table = read(tmp_path / "tables", "t", ["method"])
    subsets = [np.mean([accuracy(first), accuracy(again)]), *map(accuracy, rest)]
    assert table.loc["ties", "score"] == pytest.approx(np.mean(subsets), rel=1e-5)
    assert table.loc["ties", "models"] == 5


def narrowed(row, tasks, suite):
    documents = row.table()
    kept = documents.filter([task in tasks for task in documents["task"].to_pylist()])
    return replace(row, scores={t: row.scores[t] for t in tasks}, documents=kept, suite=suite)


def test_a_base_on_several_choices_of_tasks_counts_once_and_tasks_keep_the_suites_order(rows, tmp_path):
    choices = {"b": ["med", "second"], "a": ["add", "second"], "c": ["add", "med"]}
    own = [r for r in rows if r.pool == "plain" and len(r.experts) in (0, 4)]
    parts = [narrowed(row, tasks, suite) for suite, tasks in choices.items() for row in own]
    view = {"columns": ["task"], "mean": True, "also": ["base"], "measures": ["score", "models"]}
    bars = FigureView(kind="bars", x="task", lines=["method"])
    shown(parts, tmp_path, t=TableView(**view), bars=bars)
    table = read(tmp_path / "tables", "t", ["method"])
    assert [name for name in table if name.endswith(" score")] == [
        f"{t} score" for t in ("add", "med", "second", "mean")
    ]
    three = accuracy(rows[0], ["add", "med", "second"])
    assert table.loc["pre-trained", "mean score"] == pytest.approx(three, rel=1e-5)
    assert table.loc["pre-trained", "add models"] == 1
    assert list(pd.read_csv(tmp_path / "figures" / "bars.csv")["x"].unique()) == ["add", "med", "second"]


def test_the_interval_of_a_score_is_the_leaderboards(rows, tmp_path):
    report = shown(rows, tmp_path, t=TableView(where={"pool": "mergopt"}, columns=["n"]))
    table = read(tmp_path / "tables", "t", ["method"])
    line = next(r for r in report.leaderboard if (r.pool, r.method, r.experts) == ("mergopt", "ties", 2))
    found = table.loc["ties", ["n=2", "n=2_low", "n=2_high"]].tolist()
    assert found == pytest.approx([line.score.estimate, line.score.low, line.score.high], rel=1e-5)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (["+report.tables.a.rows=[metod]"], "no column is called 'metod'.*did you mean method"),
        (["+report.tables.a.measures=[scores]"], "no measure is called 'scores'.*did you mean score"),
        (["+report.figures.a.kind=line"], "no kind of figure is called 'line'.*did you mean lines"),
        (["+report.figures.a.x=lamda"], "no column or measure is called 'lamda'.*did you mean lambda"),
        (["+report.tables.a.where={kind: merges}"], "no kind of model is called 'merges'.*did you mean merge"),
        (["+report.tables.a.reference={training: plain}"], "no row or column of the view is called 'training'"),
        (["report.geometry=[cosine]"], "did you mean cosines"),
        (["report.landscape=[[add,dst]]"], "no expert 'dst'.*did you mean dist"),
        (["report.landscape=[[add]]"], "is no pair"),
        (["+report.tables.a.row=[method]"], "no key is called.*did you mean rows"),
    ],
)
def test_a_word_that_does_not_exist_is_said_before_anything_runs(views, message):
    with pytest.raises(UserError, match=message):
        check_study(compose(["+experiment=quickstart", *views])[0][0])


def test_settings_of_pools_and_parameters_are_columns_that_can_be_asked_for():
    views = ["+report.tables.a={rows: [method, density, lr, training.batch_size], columns: [task]}"]
    check_study(compose(["+experiment=quickstart", *views])[0][0])


def test_a_joint_model_that_all_pools_share_is_one_line():
    frame = pd.DataFrame({"pool": ["a", "b"], "key": ["k", "k"]})
    assert [*beside(frame, frame, [], ["pool"], NAMES["joint"])["pool"]] == ["joint training"] * 2
    own = beside(frame.assign(key=["k", "l"]), frame, [], ["pool"], NAMES["joint"])
    assert [*own["pool"]] == ["joint training · a", "joint training · b"]
