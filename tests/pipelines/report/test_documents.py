"""The pages of a report that show kept documents: what is said of each, and that every string stays text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow as pa
import pytest
from synthetic import row

from conf.schema import Statistics
from pipelines.report import write_report
from pipelines.report.documents import BEST, LONGEST, parse

EVIL = "</pre><script>alert(1)</script> & \"'<b>{{ 1 + 1 }}"
OPTIONS = [" four", " five", f" {EVIL}"]


def sample(likely, score, target="2", prompt=f"Q: {EVIL}\nA:"):
    """lm-eval's line of a multiple-choice document on which option ``likely`` is the most likely one."""
    values = [[str(-1.0 if place == likely else -2.5), "False"] for place in range(len(OPTIONS))]
    asked = {f"gen_args_{i}": {"arg_0": prompt, "arg_1": option} for i, option in enumerate(OPTIONS)}
    return {
        "doc_id": 0, "target": target, "arguments": asked, "resps": [[v] for v in values], "filtered_resps": values,
        "filter": "none", "metrics": ["acc"], "acc": score,
    }  # fmt: skip


def kept(*samples, task="t"):
    lines = [
        {"task": task, "document": str(i), "lm_eval_task": task, "sample": json.dumps(s)} for i, s in enumerate(samples)
    ]
    return lambda: pa.Table.from_pylist(lines)


class Seen(HTMLParser):
    """Tags of a page and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words.append(data)


def trials(merges=1):
    """Two documents: base wrong, wrong; a right, wrong; b wrong, right; merges wrong, right."""
    answers = {"base": (0, 0), "a": (2, 0), "b": (0, 2), "merge": (1, 2)}
    rows = [("base", "base", ()), ("expert", "a", ("a",)), ("expert", "b", ("b",))]
    rows += [("merge", "merge", ("a", "b"))] * merges
    for place, (kind, name, experts) in enumerate(rows):
        picks = answers[name]
        values = {"t": [float(pick == 2) for pick in picks] + [float(i < place) for i in range(40)]}
        made = row(kind, values, experts=experts, method="ties" if kind == "merge" else None, label=f"{name} <i>")
        samples = kept(*(sample(pick, float(pick == 2)) for pick in picks))
        yield replace(made, key=f"{place:032d}", samples=samples, metrics={"t": "acc"}, parameters={"lambda": place})


def report(rows, out):
    return write_report(list(rows), out, statistics=Statistics(resamples=100), title="demo")


def test_a_merge_is_shown_beside_its_parents_and_where_it_flipped(tmp_path):
    made = report(trials(), tmp_path)
    key = f"{3:032d}"
    assert made.samples[key] == f"documents/{key}.html"
    text = (tmp_path / made.samples[key]).read_text()
    seen = Seen(text)
    assert set(seen.tags) <= {
        *("html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "p", "a", "section"),
        *("pre", "ol", "li", "code", "div", "table", "thead", "tbody", "tr", "th", "td", "b"),
    }
    assert seen.tags.count("b") == 2  # the merge's own name in either document
    words = "".join(seen.words)
    assert words.count(f"Q: {EVIL}") == 2
    assert "{{ 1 + 1 }}" in words
    first, second = text.split('<section class="document">')[1:]
    assert re.findall(r'class="flip">([^<]*)<', first) == ["below a &lt;i&gt;"]
    assert re.findall(r'class="flip">([^<]*)<', second) == ["above base &lt;i&gt;, a &lt;i&gt;"]
    rows = re.findall(
        r"<tr[^>]*><td>(.*?)</td><td class=\"wide\">(.*?)</td>\s*<td( class=\"\w+\")?>(.*?)</td>", first, re.S
    )
    said = [(re.sub("</?b>|&lt;i&gt;", "", name).strip(), answer, side, score) for name, answer, side, score in rows]
    evil = OPTIONS[2].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;")
    evil = evil.replace("'", "&#39;")
    assert said == [
        ("target", evil, "", ""),
        ("merge", " five", "", "0"),
        ("base", " four", "", "0"),
        ("a", evil, ' class="down"', "1"),
        ("b", " four", "", "0"),
    ]
    assert f'"{key}": "{made.samples[key]}"' in (tmp_path / "report.html").read_text()


def test_only_the_best_merges_have_a_page_and_old_ones_go(tmp_path):
    made = report(trials(merges=BEST + 5), tmp_path)
    pages = sorted(path.name for path in (tmp_path / "documents").iterdir())
    assert len(made.samples) == len(pages) == 3 + BEST
    assert f"{3:032d}" not in made.samples  # the lowest
    assert report([replace(one, samples=None) for one in trials()], tmp_path).samples == {}
    assert not list((tmp_path / "documents").iterdir())


GENERATED = {"gen_args_0": {"arg_0": "Say", "arg_1": {"until": ["."]}}}
LONG = {"gen_args_0": {"arg_0": "x" * LONGEST + "end", "arg_1": " one"}}
NAMES = {str(i): {"arg_0": f"I met {name}", "arg_1": " there"} for i, name in enumerate(["Ann", "Bob", "Cy"])}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, (f"Q: {EVIL}\nA:", OPTIONS, OPTIONS[2], " five", 0.0)),
        ({"target": "five"}, (f"Q: {EVIL}\nA:", OPTIONS, "five", " five", 0.0)),
        ({"arguments": GENERATED, "filtered_resps": ["so & so"]}, ("Say", [], "2", "so & so", 0.0)),
        (
            {"arguments": LONG, "filtered_resps": [["-3.25", "True"]]},
            ("… " + "x" * (LONGEST - 3) + "end", [" one"], "2", "log-likelihood -3.25", 0.0),
        ),
        ({"arguments": NAMES}, ("I met ", ["Ann there", "Bob there", "Cy there"], "Cy there", "Bob there", 0.0)),
        (
            {"arguments": {"0": {"arg_0": "text"}}, "filtered_resps": [-7.5], "acc": [1, 2]},
            ("text", [], "2", "-7.5", None),
        ),
    ],
    ids=["options", "target is a text", "generated", "one likelihood", "contexts differ", "rolling"],
)
def test_a_line_of_lm_evals_is_read_as_the_harness_means_it(changed, expected):
    assert parse(sample(1, 0.0) | changed, "acc") == expected
