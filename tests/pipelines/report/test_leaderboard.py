import math
from dataclasses import replace

import numpy as np
import pytest
from synthetic import row, study, table

from conf.schema import Statistics
from mergeopt_core.statistics import paired_bootstrap, share_kept
from pipelines.report import analysis
from pipelines.report.analysis import build_cells, merge_standings
from pipelines.report.data import trial_frame
from pipelines.report.panel import build_panels


def judged(rows, **statistics):
    (panel,) = build_panels(rows, Statistics(**statistics))
    standings = merge_standings(panel)
    return panel, standings, {(c.row.method, c.row.experts): c.row for c in build_cells(panel, standings)}


def flat(trial):
    """Scores and tasks of one trial's documents, straight from its table."""
    return np.array(trial.table()["value"].to_pylist()), np.array(trial.table()["task"].to_pylist())


def test_a_single_merge_equals_the_paired_bootstrap_on_its_documents():
    rows = study(skills=4, n=50, sizes=(4,), methods={"ties": 0.03})
    base, merge = rows[0], rows[-1]
    line = judged(rows)[2]["ties", 4]
    (a, tasks), (b, _) = flat(merge), flat(base)
    want = paired_bootstrap(a, b, tasks)
    assert line.to_base.estimate == pytest.approx(np.mean([(a - b)[tasks == t].mean() for t in set(tasks)]))
    assert (line.to_base.low, line.to_base.high) == pytest.approx((want.low, want.high), abs=1e-9)
    assert line.to_base.p == pytest.approx(want.p, rel=1e-6)
    assert line.merges == 1


def test_a_cell_averages_its_merges_and_counts_what_they_beat():
    rows = study(skills=5, n=40, sizes=(2,), samples=6, methods={"ties": 0.0})
    scores = {r.label: np.mean(list(r.scores.values())) for r in rows}
    merges = [r for r in rows if r.kind == "merge"]
    _, standings, cells = judged(rows)
    line = cells["ties", 2]
    own = [[scores[e] for e in m.experts] for m in merges]
    assert line.score.estimate == pytest.approx(np.mean([scores[m.label] for m in merges]))
    assert line.to_best.estimate == pytest.approx(np.mean([scores[m.label] - max(o) for m, o in zip(merges, own)]))
    assert line.above_base.k == sum(scores[m.label] > scores["base"] for m in merges)
    assert line.above_mean.k == sum(scores[m.label] > np.mean(o) for m, o in zip(merges, own))
    assert line.constructive.k == sum(scores[m.label] > max([scores["base"], *o]) for m, o in zip(merges, own))
    assert (line.constructive.n, len(standings)) == (6, 6)


def test_orders_and_draws_of_a_subset_count_once():
    *rest, last = study(skills=4, n=40, sizes=(2,), samples=3, methods={"ties": 0.1})
    scores = {r.label: np.mean(list(r.scores.values())) for r in [*rest, last]}
    values = {t: np.array(last.table()["value"].to_pylist()).reshape(4, 40)[i] for i, t in enumerate(last.scores)}
    draws = [values, *[{t: 0 * v for t, v in values.items()}] * 2]  # one is above all, their mean is not
    drawn = [row("merge", v, experts=last.experts, method="ties", provenance={"seed": i}) for i, v in enumerate(draws)]
    line = judged([*rest, *drawn])[2]["ties", 2]
    subsets = {r.experts: scores[r.label] for r in rest if r.kind == "merge"} | {last.experts: scores[last.label] / 3}
    best = {experts: max(scores["base"], *(scores[e] for e in experts)) for experts in subsets}
    assert scores[last.label] > best[last.experts]
    assert line.score.estimate == pytest.approx(np.mean(list(subsets.values())))
    assert (line.merges, line.above_base.n, line.constructive.n) == (5, 3, 3)
    assert line.above_base.k == sum(score > scores["base"] for score in subsets.values())
    assert line.constructive.k == sum(score > best[experts] for experts, score in subsets.items()) > 0


def test_constructive_beyond_noise_needs_more_than_a_lucky_document():
    few = {"x": [1] * 10 + [0] * 10}
    lucky = {"x": [1] * 11 + [0] * 9}
    clear = {"x": [1] * 20}
    rows = [row("base", few), row("expert", few, experts=("x",)), row("expert", few, experts=("y",))]
    rows += [row("merge", lucky, experts=("x", "y"), method="lucky")]
    rows += [row("merge", clear, experts=("x", "y"), method="clear")]
    cells = judged(rows)[2]
    assert (cells["lucky", 2].constructive.k, cells["lucky", 2].significant) == (1, 0)
    assert (cells["clear", 2].constructive.k, cells["clear", 2].significant) == (1, 1)


def test_the_draw_of_subsets_widens_an_interval_and_a_complete_set_does_not():
    rows = study(skills=4, n=60, sizes=(2,), samples=6, methods={"ties": 0.0})  # all 6 pairs of 4
    complete = judged(rows)[2]["ties", 2].score
    stranger = row("expert", {t: [1, 0] * 30 for t in rows[0].scores}, experts=("stranger",))
    sampled = judged([*rows, stranger])[2]["ties", 2].score  # now 6 of 10 pairs
    assert sampled.estimate == complete.estimate
    assert sampled.high - sampled.low > complete.high - complete.low


def test_documents_are_paired_by_id_not_by_place():
    rows = study(skills=3, n=30, sizes=(3,), methods={"ties": 0.03})
    order = np.random.default_rng(0).permutation(90)
    shuffled = [r if i % 2 else replace(r, documents=r.table().take(order)) for i, r in enumerate(rows)]
    plain, mixed = judged(rows)[2]["ties", 3], judged(shuffled)[2]["ties", 3]
    assert mixed.to_base.low == pytest.approx(plain.to_base.low, abs=1e-9)
    assert mixed.constructive == plain.constructive


def test_lazily_loaded_documents_are_the_same():
    values = {"x": [1, 0, 1, 1], "y": [0, 0, 1, 0]}
    a = judged([row("base", values), row("expert", values, experts=("x",))])[2]
    b = judged([row("base", values, lazy=True), row("expert", values, experts=("x",), lazy=True)])[2]
    assert a["base", 0].score == b["base", 0].score


def test_a_row_without_its_documents_keeps_its_score_and_has_no_interval():
    rows = study(skills=3, n=30, sizes=(3,), methods={"ties": 0.03, "linear": 0.0})
    rows[-1] = replace(rows[-1], documents=None)
    panel, _, cells = judged(rows)
    assert not cells["linear", 3].score.known
    assert cells["linear", 3].score.estimate == pytest.approx(np.mean(list(rows[-1].scores.values())))
    assert cells["ties", 3].to_base.known
    assert "linear" in panel.samples.notes[0]
    other = table({t: [1.0] * 29 for t in rows[-1].scores})
    assert not judged([*rows[:-1], replace(rows[-1], documents=other)])[2]["linear", 3].score.known


def test_a_corpus_metric_counts_but_brings_no_noise_of_its_own():
    values = {"acc": [1, 0, 1, 1], "mcc": [1, 0, 1, 0]}
    base = row("base", values)
    base = replace(base, scores={"acc": 0.75, "mcc": -0.2})
    panel, _, cells = judged([base])
    assert cells["base", 0].score.estimate == pytest.approx((0.75 - 0.2) / 2)
    assert "mcc" in panel.samples.notes[0]
    alone = judged([row("base", {"acc": [1, 0, 1, 1]})])[2]["base", 0].score
    assert cells["base", 0].score.high - cells["base", 0].score.low == pytest.approx((alone.high - alone.low) / 2)


def test_of_several_metrics_the_reported_one_is_resampled():
    import pyarrow as pa

    documents = table({"x": [1, 0, 0, 0]})
    normed = table({"x": [1, 1, 1, 0]})
    both = pa.concat_tables([documents, normed]).set_column(2, "metric", pa.array(["acc"] * 4 + ["acc_norm"] * 4))
    base = replace(row("base", {"x": [1, 1, 1, 0]}), documents=both)
    panel, _, _ = judged([base])
    assert panel.samples.documents["x"].tolist() == [[1, 1, 1, 0]]


def test_a_trial_with_a_failed_task_is_left_out_and_counted():
    rows = study(skills=3, n=30, sizes=(3,), methods={"ties": 0.03, "linear": 0.0})
    rows[-1] = replace(rows[-1], scores={**rows[-1].scores, "add": math.nan})
    panel, _, cells = judged(rows)
    assert ("linear", 3) not in cells
    assert [r.label for r in panel.incomplete] == [rows[-1].label]


def test_without_a_base_or_an_expert_nothing_is_claimed_about_them():
    rows = study(skills=3, n=30, sizes=(2,), methods={"ties": 0.03})
    no_base = judged([r for r in rows if r.kind != "base"])[2]["ties", 2]
    assert no_base.to_base is None
    assert no_base.constructive is None
    assert no_base.to_best is not None
    no_experts = judged([r for r in rows if r.kind != "expert"])[2]["ties", 2]
    assert no_experts.to_best is None
    assert no_experts.to_base is not None


def test_shares_kept_are_those_of_the_definition():
    rows = study(skills=4, n=200, sizes=(3,), samples=1, methods={"ties": 0.0})
    panel, _, _ = judged(rows)
    merge = panel.rows[panel.merges[0]]
    of = {r.label: r.scores for r in panel.rows}
    own = merge.experts
    parts = (
        np.array([merge.scores[e] for e in own]),
        np.array([of["base"][e] for e in own]),
        np.array([of[e][e] for e in own]),
    )
    ((size, kept),) = analysis.share_kept(panel, "ties")
    assert (size, kept.estimate) == (3, pytest.approx(share_kept(*parts)))
    assert kept.low < kept.estimate < kept.high
    (each,) = panel.kept_each[panel.merges]
    assert each == pytest.approx(np.mean((parts[0] - parts[1]) / (parts[2] - parts[1])))


def test_experts_that_gained_nothing_have_no_share_to_keep():
    values = {"x": [1, 0] * 20, "y": [1, 0] * 20}
    rows = [row("base", values), row("expert", values, experts=("x",)), row("expert", values, experts=("y",))]
    rows.append(row("merge", {"x": [1] * 40, "y": [1] * 40}, experts=("x", "y"), method="ties"))
    assert analysis.share_kept(judged(rows)[0], "ties") == []


def test_pools_are_judged_apart():
    rows = study(skills=3, n=20, sizes=(2,)) + study(skills=3, n=20, sizes=(2,), pool="other", seed=1)
    panels = build_panels(rows, Statistics())
    assert [p.title for p in panels] == ["tiny", "other"]
    twice = study(skills=3, n=20) + [replace(r, study="second") for r in study(skills=3, n=20)]
    assert [p.title for p in build_panels(twice, Statistics())] == ["demo · tiny", "second · tiny"]


def test_one_tidy_table_holds_every_score_of_every_trial():
    rows = study(skills=3, n=20, sizes=(2,), samples=2, methods={"ties": 0.0})
    rows[-1] = replace(rows[-1], scores={}, n={})
    frame = trial_frame([replace(r, provenance={"base": "b", "seed": 7}, metrics={"add": "acc"}) for r in rows])
    assert len(frame) == 3 * (len(rows) - 1) + 1
    (line,) = frame[(frame["method"] == "ties") & (frame["task"] == "add")].to_dict("records")
    merge = rows[-2]
    assert (line["value"], line["documents"], line["metric"]) == (merge.scores["add"], 20, "acc")
    assert (line["experts"], line["n"], line["base"], line["seed"]) == ("+".join(merge.experts), 2, "b", 7)
    wide = frame.pivot(index="trial", columns="task", values="value")
    assert wide.loc[0].dropna().to_dict() == pytest.approx(rows[0].scores)
    assert frame[frame["trial"] == len(rows) - 1]["value"].isna().all()
