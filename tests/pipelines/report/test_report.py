import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console
from synthetic import row as trial
from synthetic import study

from cli.tables import report_parts, standings_table, verdict_lines
from conf.errors import UserError, markdown_text
from conf.schema import Statistics
from pipelines.report import write_report

STATISTICS = Statistics(resamples=500)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    rows = study(skills=4, n=50, sizes=(2, 3, 4), samples=3)
    rows += study(skills=4, n=50, sizes=(2, 3, 4), samples=3, pool="mergopt & <co>|x", seed=1)
    return write_report(rows, tmp_path_factory.mktemp("report"), statistics=STATISTICS, title="Does it pay?")


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables_hold_every_cell_and_every_trial(report):
    lines = read(report.paths["leaderboard.csv"])
    assert len(lines) == len(report.leaderboard) == 2 * (3 + 4 * 3)
    first = next(line for line in lines if line["kind"] == "merge")
    assert float(first["score_low"]) <= float(first["score"]) <= float(first["score_high"])
    assert first["constructive_n"] == first["merges"]
    trials = read(report.paths["trials.csv"])
    assert len(trials) == 2 * (1 + 4 + 4 * (3 + 3 + 1))
    assert {"task.add", "task.dist", "key", "seconds.merge"} <= set(trials[0])
    assert all(line["key"] for line in trials)


def test_best_comes_first_within_a_pool(report):
    for panel in {row.panel for row in report.leaderboard}:
        scores = [r.score.estimate for r in report.leaderboard if r.panel == panel and r.kind == "merge"]
        assert scores == sorted(scores, reverse=True)


def test_markdown_tables_are_rectangular(report):
    for name in ("leaderboard.md", "compare.md", "tables/experts.md", "tables/kept.md"):
        text = report.paths[name].read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert len(lines) > 2
        assert name != "leaderboard.md" or any(r"| mergopt & &lt;co>\|x |" in line for line in lines)
    assert markdown_text("a\n|\x1b[1m<b>") == r"a \|\x1b[1m&lt;b>"


class Page(HTMLParser):
    """Collects what a page asks of the network, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.links, self.tags, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href") and not v.startswith("#")]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(report):
    text = report.paths["report.html"].read_text(encoding="utf-8")
    text = re.sub(r"(<script[^>]*>).*?(?=</script>)", r"\1", text, flags=re.DOTALL)
    page = Page()
    page.feed(text)
    assert page.links == []
    assert page.open == []
    assert "@import" not in text
    assert page.tags.count("svg") == 2
    assert "mergopt &amp; &lt;co&gt;" in text
    assert "<co>" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))  # a clash would clip one figure by the other
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text)) <= set(ids)
    assert text.index("What was scored") < text.index("Leaderboard")


def test_figures_are_there_in_both_formats(report):
    for name in ("figures/score_by_experts", "figures/kept_by_experts"):
        assert report.paths[f"{name}.png"].read_bytes().startswith(b"\x89PNG")
        assert "<svg" in report.paths[f"{name}.svg"].read_text(encoding="utf-8")


def test_the_same_rows_give_the_same_bytes(tmp_path):
    rows = study(skills=3, n=20, sizes=(2, 3), samples=2)
    first = write_report(rows, tmp_path / "a", statistics=STATISTICS, title="t")
    second = write_report(rows, tmp_path / "b", statistics=STATISTICS, title="t")
    assert first.paths.keys() == second.paths.keys()
    for name in first.paths:
        assert first.paths[name].read_bytes() == second.paths[name].read_bytes(), name


def test_a_second_report_leaves_nothing_of_the_first(tmp_path):
    write_report(study(skills=3, n=20, sizes=(2, 3)), tmp_path, statistics=STATISTICS, title="t")
    for name in ("interference.csv", "robustness.md"):  # of an earlier version
        (tmp_path / name).touch()
    own = tmp_path / "interference.txt"
    own.touch()
    again = write_report(study(skills=3, n=20, sizes=()), tmp_path, statistics=STATISTICS, title="t")
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == {own.name, *again.paths}
    assert "figures/score_by_experts.png" not in again.paths


def test_as_json(report):
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["leaderboard"][0]["method"] == "base"
    assert values["paths"]["report.html"].endswith("report.html")


def rendered(parts, width):
    console = Console(width=width, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 150])
def test_on_a_terminal(report, width):
    text = rendered([standings_table(report)], width)
    for row in (r for r in report.leaderboard if r.kind == "merge"):
        half = f"{(row.score.high - row.score.low) / 2:.3f}"[1:]
        assert f"{row.score.estimate:.3f} ±{half}" in text
    assert "…" not in text
    assert "mergopt & <co>" in text
    assert "task_arithmetic" in text


def test_what_merging_keeps_on_a_terminal(report):
    text = rendered(report_parts(report), 80).partition("gain on their own tasks that merging keeps")[2]
    shown = read(report.paths["tables/kept.csv"])
    assert len(shown) == 2 * 4
    best = max((r for r in report.leaderboard if r.kind == "merge"), key=lambda r: r.score.estimate).panel
    assert best in text.partition("\n")[0] + text.partition("\n")[2].partition("\n")[0]
    for line in shown:
        told = [f"{float(line[f'n={n}']):.3f} ±".replace("-", "−") in text for n in (2, 3, 4)]
        assert all(told) == (line["panel"] == best)


def test_the_verdict_on_a_terminal(report):
    text = " ".join(rendered(verdict_lines(report), 150).split())
    assert report.verdicts[0] in text
    assert all(sentence in text for sentences in report.details.values() for sentence in sentences[-2:])


@pytest.mark.parametrize(
    ("rows", "statistics", "message"),
    [
        ([], Statistics(), "no trials"),
        (None, Statistics(confidence=95), "no coverage"),
        (None, Statistics(resamples=3), "too few"),
    ],
)
def test_what_cannot_be_reported_is_said(rows, statistics, message, tmp_path):
    rows = study(skills=2, n=5, sizes=()) if rows is None else rows
    with pytest.raises(UserError, match=message):
        write_report(rows, tmp_path, statistics=statistics, title="t")


def test_many_methods_in_one_figure(tmp_path):
    methods = {f"method_{i}": 0.0 for i in range(11)}
    report = write_report(
        study(skills=2, n=10, sizes=(2,), methods=methods), tmp_path, statistics=STATISTICS, title="t"
    )
    assert report.paths["figures/score_by_experts.png"].stat().st_size > 10_000


def test_every_table_and_page_says_how_its_results_came_about(tmp_path):
    told = {"base": "tiny", "suite": "skills", "fewshot": 0, "sample": "20 drawn by seed 1", "dtype": "float32"}
    told |= {"device": "cpu", "batch_size": 32, "engine": "lm_eval 1", "training_seed": 0}
    rows = [
        replace(r, provenance={**told, "training": f"{pool}, adamw", "seed": 0 if r.kind == "merge" else None})
        for s, pool in enumerate(("plain", "sam"))
        for r in study(skills=3, n=20, sizes=(2,), samples=2, pool=pool, seed=s)
    ]
    report = write_report(rows, tmp_path, statistics=STATISTICS, title="t")
    for name in ("leaderboard.csv", "trials.csv"):
        for line in read(report.paths[name]):
            assert {k: line[k] for k in told} == {k: str(v) for k, v in told.items()}
            assert line["training"] == f"{line['pool']}, adamw"
    for name in ("report.html", "report.md"):
        text = report.paths[name].read_text(encoding="utf-8")
        assert "Every pool: base tiny, suite skills, fewshot 0, sample 20 drawn by seed 1, dtype float32" in text
        assert "sam: training sam" in text
    text = " ".join(rendered([standings_table(report)], 80).split())
    assert "Every pool: base tiny" in text


def test_a_study_in_which_every_trial_failed_has_a_report(tmp_path):
    failed = trial("base", {"add": [1, 0]}, provenance={"base": "b", "training": None})
    failed = replace(failed, scores={}, n={}, documents=lambda: None)
    report = write_report([failed], tmp_path / "out", statistics=Statistics(), title="failed")
    assert report.verdicts[-1] == "No merge has been scored."
    assert any("1 trial left out" in note for note in report.notes)
    console = Console(file=io.StringIO(), width=80)
    for part in report_parts(report):
        console.print(part)
    assert "No merge has been scored" in console.file.getvalue()
