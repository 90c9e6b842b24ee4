"""The page of each method says what the method declares."""

import re
from pathlib import Path

import pytest

from mergeopt_core.merging import describe, names

PAGES = Path(__file__).resolve().parents[3] / "docs" / "methods"


def shown(value):
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else "{}" if value == {} else float(value)


@pytest.mark.parametrize("name", names())
def test_a_page_has_the_parameters_their_defaults_and_the_paper(name):
    info, page = describe(name), (PAGES / f"{name}.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", page, flags=re.M))
    assert list(table) == [p.name for p in info.parameters]
    for parameter in info.parameters:
        wanted = shown(parameter.default)
        text = table[parameter.name]
        assert (float(text) if isinstance(wanted, float) else text) == wanted
        assert parameter.help
    assert info.url in page
    assert info.doc.splitlines()[0].replace("``", "`") in page
    assert f"(`{name}`)" in page or f"`{name}`" in page.splitlines()[0]


def test_the_index_names_every_page_and_no_other():
    linked = re.findall(r"\]\((\w+)\.md\)", (PAGES / "README.md").read_text())
    assert linked == names()
    assert {page.stem for page in PAGES.glob("*.md")} == {*names(), "README"}


def test_every_default_that_is_not_mergekits_is_argued_for():
    text = (PAGES.parent / "faithfulness.md").read_text()
    for name in names():
        for parameter in describe(name).parameters:
            ours = not describe(name).ours and parameter.default != parameter.mergekit_default
            if ours and parameter.name != "weight":
                assert f"`{name}`" in text, (name, parameter.name)


def test_faithfulness_names_only_parameters_that_exist():
    text = (PAGES.parent / "faithfulness.md").read_text()
    known = {p.name for name in names() for p in describe(name).parameters}
    for given in re.findall(r"`(?:\w+\.)?(\w+)=", text):
        assert given in known, given
