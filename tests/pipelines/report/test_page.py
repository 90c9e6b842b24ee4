"""The page in a browser: at three widths, light, dark and on paper, with names that want to be markup."""

import csv
import json
import re
import zlib
from collections import Counter
from dataclasses import replace

import pytest
from browser import chromium, draw_all, launched, opened
from synthetic import study

from conf.errors import printable
from conf.schema import Statistics
from pipelines.report import write_report

EVIL = ["plain", "</script><script>alert(1)</script>\x1b[31m", "[/red] {{ 1 + 1 }} <b> & \"'"]
HEADLINE = "What was scored"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    told = {"base": "<i>tiny</i>", "training": "plain, adamw", "fewshot": 0, "sample": "first 50", "device": "cpu"}
    told |= {"engine": "lm_eval 0.4.13, torch 2.13"}
    methods = {"ties": 0.03, "<script>alert(2)</script>": 0.0, "linear": 0.01}
    rows = [
        replace(row, provenance=told, metrics=dict.fromkeys(row.scores, "acc"), made=1.7e9)
        for seed, pool in enumerate(EVIL)
        for row in study(skills=4, n=30, sizes=(2, 3), samples=3, pool=pool, seed=seed, methods=methods)
    ]
    out = tmp_path_factory.mktemp("page")
    command = "mergebench sweep +experiment=x"
    return write_report(rows, out, statistics=Statistics(resamples=200), title="<script>a()</script>", command=command)


@pytest.fixture(scope="module")
def browser():
    with launched(chromium()) as browser:
        yield browser


@pytest.fixture
def file(report):
    return report.paths["report.html"]


def body(table):
    return table.locator("tbody tr:not(.group):visible")


def numbers(page, selector, column):
    cells = page.locator(f"{selector} tbody tr:not(.group) td:nth-child({column})").all_inner_texts()
    found = [re.match(r"[▲▼ ]*([−+-]?[\d.]+)", cell) for cell in cells]
    return [float(m[1].replace("−", "-")) for m in found if m]


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (820, "dark"), (1280, "light")])
def test_it_opens_without_a_word_or_a_request(browser, file, width, scheme):
    with opened(browser, file, width, scheme) as page:
        draw_all(page)
        assert page.messages == []
        assert page.requests == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".drawn svg.marks").count() == 2
        assert page.evaluate("[...document.querySelectorAll('.drawn')].every(d => d.scrollWidth <= d.clientWidth + 1)")
        ink, ground = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        dark = [sum(map(int, re.findall(r"\d+", color)[:3])) < 384 for color in (ink, ground)]
        assert dark == ([True, False] if scheme == "light" else [False, True])


def test_names_are_text(browser, file):
    with opened(browser, file) as page:
        draw_all(page)
        text = page.inner_text("body")
        for name in (*EVIL[1:], "<script>a()</script>", "<i>tiny</i>", "<script>alert(2)</script>"):
            assert printable(name) in text
        assert page.locator("main i, main section b").count() == 0
        scripts = page.locator("script:not([type])").count()
        assert scripts == 2  # vega's and ours


def test_its_numbers_are_those_of_the_csv(browser, file, report):
    with report.paths["leaderboard.csv"].open(newline="") as lines:
        scores = [float(line["score"]) for line in csv.DictReader(lines)]
    with report.paths["trials.csv"].open(newline="") as lines:
        trials = {line["key"][:16]: line for line in csv.DictReader(lines)}
    with opened(browser, file) as page:
        page.locator(".trials summary").click()
        page.locator(".more").click()
        shown = numbers(page, "section:has(h2:text-is('Leaderboard')) table", 4)
        assert shown == [pytest.approx(score, abs=5e-4) for score in scores]
        heads = page.locator("#trials thead th").all_inner_texts()
        rows = [row.split("\t") for row in page.locator("#trials tbody tr").all_inner_texts()]
        assert len(rows) == len(report.trials)
        for row in rows:
            line = trials[row[heads.index("key")]]
            for name, column in (("score", "score"), ("score_low", "score_low"), ("add", "task.add")):
                assert float(row[heads.index(name)].replace("−", "-")) == pytest.approx(float(line[column]), abs=5e-4)


def test_scores_by_task_are_those_of_the_file(browser, file, report):
    with report.paths["tables/by_task.csv"].open(newline="") as lines:
        told = [float(line[task]) for line in csv.DictReader(lines) for task in ("add", "mean")]
    with opened(browser, file) as page:
        table = "section:has(h2:text-is('Mean score by task')) table"
        heads = page.locator(f"{table} thead th").all_inner_texts()
        shown = zip(*(numbers(page, table, heads.index(task) + 1) for task in ("add", "mean")))
        assert [value for row in shown for value in row] == [pytest.approx(value, abs=5e-4) for value in told]
        assert page.locator(f"{table} td.mark1").count() >= len(EVIL) * (len(heads) - 2)


def test_tables_sort_and_filter(browser, file):
    with opened(browser, file) as page:
        draw_all(page)  # what is drawn later moves what is clicked
        page.locator(".trials summary").click()
        column = page.locator("#trials thead th").all_inner_texts().index("score") + 1
        button = page.locator(f"#trials th:nth-child({column}) button")
        button.click()
        down = numbers(page, "#trials", column)
        assert down == sorted(down, reverse=True)
        button.click()
        up = numbers(page, "#trials", column)
        assert up == sorted(up)
        assert page.locator(f"#trials th:nth-child({column})").get_attribute("aria-sort") == "ascending"
        page.locator(".trials input").fill("ties [/red]")
        texts = page.locator("#trials tbody tr").all_inner_texts()
        assert texts
        assert all("ties" in text and "[/red]" in text for text in texts)
        board = page.locator("section:has(h2:text-is('Leaderboard'))")
        board.locator("th:nth-child(4) button").click()
        own = [numbers_of(block) for block in blocks(board)]
        assert all(block == sorted(block, reverse=True) for block in own)  # within each pool
        board.locator("input[type=search]").fill("linear")
        assert all("linear" in text for text in body(board).all_inner_texts())


def blocks(board):
    """Rows of the table by the heading that they stand under."""
    found = []
    for row in board.locator("tbody tr").all():
        if row.get_attribute("class") == "group":
            found.append([])
        else:
            found[-1].append(row.locator("td").nth(3).inner_text())
    return found


def numbers_of(texts):
    return [float(text.split()[0].replace("−", "-")) for text in texts]


def test_lines_and_bands_are_switched_by_the_legend(browser, file):
    from playwright.sync_api import expect

    with opened(browser, file) as page:
        draw_all(page)
        figure = page.locator("figure.chart").first
        points = figure.locator("path[aria-roledescription='point']")
        bands = figure.locator("path[aria-roledescription='area mark']")
        whole = points.count()
        assert bands.count() > 0
        button = figure.locator("button", has_text="ties")
        button.click()
        expect(points).not_to_have_count(whole)
        expect(button).to_have_attribute("aria-pressed", "false")
        button.click()
        expect(points).to_have_count(whole)
        figure.locator("label", has_text="intervals").click()
        expect(bands).to_have_count(0)


def test_single_subsets_are_shown_where_they_are_asked_for(browser, file, report):
    from playwright.sync_api import expect

    merges = [line for line in report.trials if line["kind"] == "merge"]
    several = Counter((line["pool"], line["method"], line["size"]) for line in merges)
    merges = [line for line in merges if several[line["pool"], line["method"], line["size"]] > 1]
    with opened(browser, file) as page:
        draw_all(page)
        figure = page.locator("figure.chart").first
        points = figure.locator("path[aria-roledescription='point']")
        means = points.count()
        figure.locator("label", has_text="single subsets").click()
        expect(points).to_have_count(means + len(merges))
        frame = figure.locator(".drawn svg.marks").bounding_box()
        for box in (points.nth(place).bounding_box() for place in range(0, means + len(merges), 5)):
            assert frame["y"] <= box["y"] <= frame["y"] + frame["height"]  # the axis reaches to all of them
        points.first.hover(force=True)
        told = page.locator("#vg-tooltip-element.visible").inner_text()
        one = next(line for line in merges if line["experts"] in told and line["method"] in told)
        assert all(name in told for name in ("subset", "low", "high"))
        values = {f"{line['score']:.4f}".rstrip("0") for line in merges if line["experts"] == one["experts"]}
        assert any(value in told for value in values)


def test_a_point_tells_its_value_and_interval(browser, file):
    with opened(browser, file) as page:
        draw_all(page)
        page.locator("path[aria-roledescription='point']").first.hover()
        tip = page.locator("#vg-tooltip-element.visible")
        tip.wait_for()
        told = tip.inner_text()
        assert all(name in told for name in ("number of experts merged", "mean score", "low", "high"))


def test_on_paper_all_is_there_and_the_first_page_is_not_blank(browser, file, tmp_path):
    with opened(browser, file, scheme="dark") as page:
        pdf = page.pdf(format="A4")
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        first = page.locator(".verdict > p").bounding_box()
        assert first["y"] < 300
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        hidden = page.evaluate(
            "[...document.querySelectorAll('main td, main li, main dd')].filter(e => !e.getClientRects().length).length"
        )
        assert hidden == 0
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 1
    assert drawn_text(pdf, 0) > 500


def drawn_text(pdf, place):
    """How many glyphs the page draws."""
    streams = []
    for found in re.finditer(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            content = zlib.decompress(found[1])
        except zlib.error:
            continue
        if b"BT" in content and b"Tj" in content.replace(b"TJ", b"Tj"):
            streams.append(content)
    return sum(len(glyphs) // 4 for glyphs in re.findall(rb"<([0-9A-Fa-f]+)>", streams[place]))


def test_without_a_script_figures_and_tables_stand(browser, file, report):
    with opened(browser, file, script=False) as page:
        assert page.locator(".static svg:visible").count() == 2
        assert page.locator("section:has(h2:text-is('Leaderboard')) tbody tr").count() > len(report.leaderboard)
        page.locator(".trials summary").click()
        assert page.locator("#trials tbody tr").count() == min(50, len(report.trials))


def test_a_score_links_to_its_documents(browser, report, tmp_path):
    text = report.paths["report.html"].read_text(encoding="utf-8")
    key = report.trials[0]["key"]
    empty = '<script type="application/json" id="samples">{}</script>'
    assert empty in text
    (tmp_path / "page.html").write_text(text.replace("{}</script>", json.dumps({key: "samples/a.html"}) + "</script>"))
    with opened(browser, tmp_path / "page.html") as page:
        page.locator(".trials summary").click()
        assert page.locator("#trials a").get_attribute("href") == "samples/a.html"
