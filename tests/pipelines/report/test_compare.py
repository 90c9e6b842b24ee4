import csv
from dataclasses import replace

import numpy as np
import pytest
from synthetic import study

from conf.schema import Statistics
from mergeopt_core.statistics import holm, paired_bootstrap
from pipelines.report import write_report
from pipelines.report.compare import by_recipe, compare
from pipelines.report.panel import build_panels
from pipelines.report.verdict import comparison_verdicts

METHODS = {"ties": 0.02, "linear": 0.0}
SHAPE = {"skills": 4, "n": 80, "sizes": (2, 4), "samples": 6, "methods": METHODS}


def panels(*parts):
    return build_panels([r for part in parts for r in part], Statistics())


def test_matched_pools_differ_by_the_paired_difference():
    plain, other = study(**SHAPE), study(**SHAPE, pool="mergopt", shift=0.1, seed=0)
    rows, notes = compare(panels(plain, other))
    assert notes == []
    line = next(r for r in rows if (r.what, r.method, r.experts) == ("merges", "ties", 4))
    ours, theirs = (next(r for r in part if r.method == "ties" and len(r.experts) == 4) for part in (plain, other))
    tasks = np.array(ours.table()["task"].to_pylist())
    want = paired_bootstrap(theirs.table()["value"].to_numpy(), ours.table()["value"].to_numpy(), tasks)
    assert line.difference.estimate == pytest.approx(want.estimate)
    assert (line.difference.low, line.difference.high) == pytest.approx((want.low, want.high), abs=1e-9)
    pairs = next(r for r in rows if (r.what, r.method, r.experts) == ("merges", "linear", 2))
    assert pairs.matched == 6
    assert pairs.other_score - pairs.reference_score == pytest.approx(pairs.difference.estimate)
    assert pairs.p_holm >= pairs.difference.p
    assert [r.what for r in rows[:3]] == ["all merges", "own skill", "experts"]
    matched = [r for r in rows if r.what == "merges"]
    weighted = sum(r.matched * r.difference.estimate for r in matched) / sum(r.matched for r in matched)
    assert rows[0].difference.estimate == pytest.approx(weighted)
    assert rows[0].matched == 2 * (6 + 1)
    assert rows[0].p_holm == rows[0].difference.p


def test_own_skill_compares_each_expert_on_its_own_task():
    plain, other = study(**SHAPE), study(**SHAPE, pool="mergopt", seed=5)
    own = compare(panels(plain, other))[0][1]
    before = np.mean([r.scores[r.experts[0]] for r in plain if r.kind == "expert"])
    after = np.mean([r.scores[r.experts[0]] for r in other if r.kind == "expert"])
    assert (own.reference_score, own.other_score) == pytest.approx((before, after))
    assert own.difference.low < after - before < own.difference.high


def test_one_failed_training_run_does_not_make_a_worse_pool():
    shape = {**SHAPE, "n": 2000, "sizes": ()}
    plain, other = study(**shape), study(**shape, pool="unlucky")
    failed = next(i for i, r in enumerate(other) if r.experts == ("add",))
    other[failed] = replace(other[failed], documents=other[0].documents, scores=other[0].scores)  # the base's answers
    own = compare(panels(plain, other))[0][0]
    tasks = np.repeat(["add", "dist", "med", "second"], 2000)
    before, after = (
        [r.table()["value"].to_numpy().reshape(4, -1)[i] for i, r in enumerate(x[1:])] for x in (plain, other)
    )
    documents = paired_bootstrap(np.concatenate(after), np.concatenate(before), tasks)
    assert own.difference.estimate == pytest.approx(documents.estimate)
    assert documents.high < 0  # the documents alone would call the pool worse
    assert own.difference.low < 0 < own.difference.high
    assert own.difference.p > 0.05


def test_the_sentence_tells_better_from_noise():
    rows, _ = compare(panels(study(**SHAPE), study(**SHAPE, pool="mergopt", shift=0.15)))
    (line,) = comparison_verdicts(rows, 0.95)
    assert "mergopt against tiny" in line
    assert "higher in" in line
    assert "ties over 2 experts" in line
    same, _ = compare(panels(study(**SHAPE), study(**SHAPE, pool="mergopt")))  # the same numbers twice
    assert comparison_verdicts(same, 0.95)[0].endswith("inside the noise in 6 of 6 comparisons (Holm-corrected).")


def test_pools_that_share_nothing_or_other_documents_are_not_compared():
    rows = study(**SHAPE)
    renamed = [
        replace(r, pool="other", experts=tuple(f"z{e}" for e in r.experts)) for r in study(**SHAPE, pool="other")
    ]
    assert compare(panels(rows, renamed)) == ([], [])
    fewer, notes = compare(panels(rows, study(**{**SHAPE, "n": 40}, pool="short")))
    assert fewer == []
    assert "other documents" in notes[0]


def test_studies_of_a_sweep_are_compared_with_the_first(tmp_path):
    parts = [replace(r, study=f"b={b}") for b in (0.1, 0.2, 0.3) for r in study(**SHAPE, seed=int(b * 10))]
    report = write_report(parts, tmp_path, statistics=Statistics(resamples=200), title="sweep")
    assert {r.reference for r in report.comparisons} == {"b=0.1 · tiny"}
    assert {r.other for r in report.comparisons} == {"b=0.2 · tiny", "b=0.3 · tiny"}
    assert "compare.csv" in report.paths
    assert any("b=0.3 · tiny against b=0.1 · tiny" in v for v in report.verdicts)


def test_performance_drop_under_attack(tmp_path):
    clean, attacked = study(**SHAPE), study(**SHAPE, attack="deepwordbug", seed=1)
    report = write_report(clean + attacked, tmp_path, statistics=Statistics(resamples=200), title="robust")
    with (tmp_path / "tables" / "robustness.csv").open(newline="") as file:
        lines = {(line["method"], line["n"]): line for line in csv.DictReader(file)}

    def mean(part, **wanted):
        own = [r for r in part if all(getattr(r, name) == value for name, value in wanted.items())]
        return np.mean([list(r.scores.values()) for r in own if wanted["kind"] != "merge" or len(r.experts) == 2])

    rows = {("pre-trained", ""): {"kind": "base"}, ("mean of experts", ""): {"kind": "expert"},
            ("ties", "2"): {"kind": "merge", "method": "ties"}}  # fmt: skip
    for key, wanted in rows.items():
        before, after = mean(clean, **wanted), mean(attacked, **wanted)
        assert float(lines[key]["none score"]) == pytest.approx(before, rel=1e-5)
        assert float(lines[key]["deepwordbug pdr"]) == pytest.approx((before - after) / before, rel=1e-4)
        low, high = (float(lines[key][f"deepwordbug pdr_{side}"]) for side in ("low", "high"))
        assert low < (before - after) / before < high
        assert lines[key]["none pdr"] == ""
    assert report.comparisons == []  # an attack is no other pool


def test_pools_of_another_base_are_not_compared():
    small, large = (study(**SHAPE, pool=f"{kind}_{base}") for kind, base in (("plain", "1b"), ("plain", "3b")))
    large = [replace(r, base="3b") for r in large]
    other = [replace(r, base="3b") for r in study(**SHAPE, pool="mergopt_3b", shift=0.1)]
    rows, _ = compare(panels(small, large, other))
    assert {(r.reference, r.other) for r in rows} == {("plain_3b", "mergopt_3b")}
    large = [replace(r, base=small[0].base) for r in large]
    assert compare(panels(small, large))[0]
    apart = [replace(r, provenance={"options": "generate_with=vllm vllm=0.33.0"}) for r in large]
    assert compare(panels(small, apart)) == ([], [])


def test_every_training_is_compared_with_plain_and_with_each_other():
    how = {"sam": "sam rho=0.05", "plain": "plain, adamw lr=0.001", "mergopt": "mergopt"}
    pools = [
        [replace(r, provenance={"training": how[name]}) for r in study(**SHAPE, pool=name, seed=s)]
        for s, name in enumerate(how)
    ]
    rows, _ = compare(panels(*pools))
    assert {(r.reference, r.other) for r in rows if r.main} == {("plain", "sam"), ("plain", "mergopt")}
    others = [r for r in rows if not r.main]
    assert {(r.reference, r.other) for r in others} == {("sam", "mergopt")}
    assert "merges" not in {r.what for r in others}
    overall = [r for r in rows if r.what == "all merges"]
    assert [r.p_holm for r in overall] == pytest.approx(holm([r.difference.p for r in overall]))
    lines = comparison_verdicts(rows, 0.95)
    assert [line.split(":")[0] for line in lines] == ["sam against plain", "mergopt against plain"]


def test_a_pool_is_compared_with_the_one_it_names():
    first, second = study(**SHAPE, pool="plain_1"), study(**SHAPE, pool="plain_2", seed=3)
    other = [replace(r, reference="plain_2") for r in study(**SHAPE, pool="mergopt_2", shift=0.1)]
    rows, _ = compare(panels(first, other, second))
    assert {(r.reference, r.other) for r in rows} == {("plain_2", "mergopt_2"), ("plain_1", "plain_2")}


def test_draws_are_matched_by_seed_where_one_has_no_result():
    shape = {**SHAPE, "sizes": (2,), "samples": 1, "methods": {"dare": 0.0}}

    def pool(name, seeds):
        *rest, merge = study(**shape, pool=name)
        drawn = [replace(merge, key=f"{name}{s}", provenance={"seed": s}) for s in seeds]
        other = replace(merge, method="linear", key=f"{name}l", provenance={"seed": 7})
        return [*rest, *drawn, other]

    one, two = panels(pool("plain", (7, 8, 9)), pool("mergopt", (7, 9)))
    here, there = (by_recipe(panel) for panel in (one, two))
    pairs = [(one.rows[here[r]].provenance["seed"], two.rows[there[r]].provenance["seed"]) for r in here if r in there]
    assert sorted(pairs) == [(7, 7), (7, 7), (9, 9)]


def test_the_draws_of_a_subset_count_once():
    shape = {**SHAPE, "sizes": (2,), "samples": 1, "methods": {"dare": 0.0, "linear": 0.1}}

    def pool(name, seed):
        *rest, dare, linear = study(**shape, pool=name, seed=seed)
        again = [study(**shape, pool=name, seed=seed + 10 * k)[-2] for k in (1, 2)]
        return [*rest, *(replace(m, key=f"{name}{s}", provenance={"seed": s}) for s, m in enumerate([dare, *again])),
                replace(linear, provenance={"seed": 0})]  # fmt: skip

    one, two = pool("plain", 1), pool("mergopt", 2)
    rows, _ = compare(panels(one, two))
    mean = {m: np.mean([np.mean(list(r.scores.values())) for r in two if r.method == m]) for m in ("dare", "linear")}
    lines = {(r.what, r.method): r for r in rows}
    assert lines["merges", "dare"].matched == 3
    assert lines["merges", "dare"].other_score == pytest.approx(mean["dare"])
    assert lines["all merges", ""].other_score == pytest.approx((mean["dare"] + mean["linear"]) / 2)
