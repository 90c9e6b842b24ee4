from synthetic import row, study

from conf.schema import Statistics
from pipelines.report import write_report


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
    assert "Level with the winner: second" in lines[1]


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
    lines = sentences(rows, tmp_path)
    assert lines[0].startswith("tiny: ")
    assert any(line.startswith("other: ") for line in lines)


def test_no_merges_no_winner(tmp_path):
    assert sentences(study(skills=2, n=10, sizes=()), tmp_path)[0] == "No merge has been scored."
