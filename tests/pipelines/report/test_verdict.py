import csv
from dataclasses import replace

from synthetic import row, study

from conf.schema import Statistics
from mergeopt_core.statistics import paired_bootstrap
from pipelines.report import words, write_report


def sentences(rows, tmp_path):
    report = write_report(rows, tmp_path, statistics=Statistics(), title="t")
    return report.verdicts + [line for lines in report.details.values() for line in lines]


def pair(a, b):
    """Two merges of all experts with these answers to 200 documents, over a base that knows half of them."""
    half = {"x": [1, 0] * 100}
    rows = [row("base", half), row("expert", half, experts=("p",)), row("expert", half, experts=("q",))]
    merges = {"first": a, "second": b}
    return rows + [row("merge", {"x": v}, experts=("p", "q"), method=m) for m, v in merges.items()]


def test_a_winner_by_one_document_is_not_called_a_winner(tmp_path):
    lines = sentences(pair([1] * 151 + [0] * 49, [0] * 50 + [1] * 150), tmp_path)
    assert "first over 2 experts scores 0.755" in lines[0]
    assert "beats the base by +0.255" in lines[0]
    assert "inside the noise" in lines[1]
    assert "Level with the best: second" in lines[1]


def test_a_clear_winner_is(tmp_path):
    lines = sentences(pair([1] * 200, [1] * 150 + [0] * 50), tmp_path)
    assert "+0.250" in lines[1]
    assert "beyond noise" in lines[1]


def test_losing_to_the_base_is_said(tmp_path):
    lines = sentences(pair([0] * 200, [0] * 199 + [1]), tmp_path)
    assert "falls short of the base by −0.495" in lines[0]
    assert any("Below the base beyond noise" in line and "first over 2 experts (−0.500)" in line for line in lines)
    assert "Constructive (above base and all own experts): 0/1." in lines[0]


def test_a_merge_equal_to_the_base_cannot_be_told_from_it(tmp_path):
    lines = sentences(pair([1, 0] * 100, [0] * 200), tmp_path)
    assert "cannot be told from the base (+0.000" in lines[0]


def test_the_whole_story(tmp_path):
    lines = sentences(study(skills=6, n=100, sizes=(2, 6), samples=3), tmp_path)
    text = " ".join(lines)
    for part in ("Best at other sizes: 2 experts", "flattered by the choice", "6 of 6 experts", "keeps:"):
        assert part in text
    assert not any("tiny:" in line for line in lines)


def test_each_pool_is_named_where_there_are_several(tmp_path):
    rows = study(skills=3, n=30, sizes=(3,)) + study(skills=3, n=30, sizes=(3,), pool="other")
    report = write_report(rows, tmp_path, statistics=Statistics(), title="t")
    assert "of tiny scores" in report.verdicts[0]
    assert list(report.details) == ["tiny", "other"]
    assert all("scores" in lines[0] for lines in report.details.values())


def trained(rows, how, **more):
    """The same rows with experts that were trained so."""
    return [replace(r, provenance={"training": None if r.kind == "base" else how}, **more) for r in rows]


SHAPE = {"skills": 4, "n": 400, "sizes": (2, 4), "samples": 6, "methods": {"ties": 0.1, "linear": 0.0}}


def three(shift=0.15):
    """Pools in an order that does not begin with the plain or the best one."""
    pools = {"asam": ("asam", 0.0, 3), "plain": ("plain, adamw", 0.0, 0), "sam": ("sam rho=0.1", shift, 1)}
    return [
        r for name, (how, up, s) in pools.items() for r in trained(study(**SHAPE, pool=name, shift=up, seed=s), how)
    ]


def test_the_best_training_and_the_best_merging_are_named_over_all_pools(tmp_path):
    report = write_report(three(), tmp_path, statistics=Statistics(), title="t")
    best, _, training, merging = report.verdicts[:4]
    assert best.startswith("ties over")
    assert "of sam scores" in best
    assert "highest mean of 12 combinations of pool, method and number of experts" in best
    assert training.startswith("Training: sam is highest")
    assert "over the 14 merges that every pool has" in training
    assert "beyond noise, as over every other (Holm-corrected over 3 pairs)" in training
    assert merging.startswith("Merging: ties is highest")
    assert "over the 21 subsets of all pools that every method merged" in merging
    assert "beyond noise" in merging
    assert list(report.details) == ["asam", "plain", "sam"], "in the order in which they are written"


def test_equal_trainings_are_level(tmp_path):
    report = write_report(three(shift=0.0), tmp_path, statistics=Statistics(), title="t")
    training = next(line for line in report.verdicts if line.startswith("Training"))
    assert "inside the noise" in training
    assert "Level with the best: " in training
    assert training.endswith("Each expert was trained once: the luck of a training is not in the interval.")


def test_several_training_seeds_are_counted(tmp_path):
    rows = three(shift=0.0)
    again = [replace(row, run=1, key=row.key + "b") for row in rows if row.kind != "base"]
    training = next(line for line in sentences([*rows, *again], tmp_path) if line.startswith("Training"))
    assert "Experts were trained 2 times" in training


def test_the_training_sentence_is_the_paired_bootstrap(tmp_path):
    shape = {**SHAPE, "sizes": (4,), "methods": {"ties": 0.1}}
    a, b = (trained(study(**shape, pool=p, seed=s), p) for s, p in enumerate(("plain", "sam")))
    flat = [next(r for r in rows if r.kind == "merge").table() for rows in (a, b)]
    values = [table["value"].to_numpy() for table in flat]
    better, worse = sorted(values, key=lambda v: -v.mean())
    want = paired_bootstrap(better, worse, flat[0]["task"].to_pylist())
    training = write_report(a + b, tmp_path, statistics=Statistics(), title="t").verdicts[2]
    assert words.gap(want) in training


def test_a_method_that_merged_fewer_subsets_is_not_averaged_with_the_others(tmp_path):
    rows = study(**{**SHAPE, "methods": {"ties": 0.0, "linear": 0.0, "pairs": 0.2}})
    rows = [r for r in rows if r.method != "pairs" or len(r.experts) == 2]
    merging = next(line for line in sentences(rows, tmp_path) if line.startswith("Merging"))
    assert "pairs is highest" not in merging
    assert "Not compared, as they merged fewer: pairs." in merging


def test_a_partial_study_says_so_everywhere(tmp_path):
    rows = study(skills=3, n=30, sizes=(2,), methods={"ties": 0.0, "linear": 0.0})
    waiting = [replace(r, scores={}, n={}, documents=None, key=r.key + "x") for r in rows[-2:]]
    report = write_report([*rows[:-2], *waiting], tmp_path, statistics=Statistics(), title="t")
    count = f"{len(rows) - 2} of {len(rows)} trials"
    assert report.verdicts[0].startswith(f"Partial: {count} have a result")
    told = report.to_dict()
    assert (told["partial"], told["scored"], told["planned"]) == (True, len(rows) - 2, len(rows))
    assert count in (tmp_path / "report.html").read_text()
    assert count in (tmp_path / "report.md").read_text()
    assert (tmp_path / "trials.csv").read_text().count("no result yet") == 2
    lines = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    assert {(line["merges"], line["planned"]) for line in lines if line["kind"] == "merge"} == {("2", "3")}
    whole = write_report(rows, tmp_path / "whole", statistics=Statistics(), title="t")
    assert (whole.partial, whole.to_dict()["partial"]) == ("", False)
    assert not any("Partial" in line for line in whole.verdicts)


def test_no_merges_no_winner(tmp_path):
    assert sentences(study(skills=2, n=10, sizes=()), tmp_path)[0] == "No merge has been scored."
