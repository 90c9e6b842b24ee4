"""Every table and figure of the papers: what an experiment's header claims, its views, and the guide's list agree."""

import re
from collections import Counter

import pytest
import yaml

from conf.compose import FOLDER

PAPERS = {
    "openreview.net/forum?id=C21rz8mo65": {"Table": 24, "Figure": 3},
    "arxiv.org/abs/2502.15434": {"Table": 7, "Figure": 6},
    "arxiv.org/abs/2511.21437": {"Table": 6, "Figure": 28},
}
"""The papers by address, with the number of their last table and figure."""

GEOMETRY = {
    "openreview.net/forum?id=C21rz8mo65": {"laplace": "Table 10; Figures 1 and 3"},
    "arxiv.org/abs/2511.21437": {"cosines": "Figures 19 to 22", "layers": "Figures 23 to 26"},
}
"""What a part of a study's geometry is in the papers."""

OURS = "Ours: no table or figure of a paper."
TEXTS = {file.stem: file.read_text() for file in sorted((FOLDER / "experiment").glob("*.yaml"))}
GUIDE = FOLDER.parent / "docs" / "studies.md"

Items = set[tuple[str, int]]


def shown(title: str) -> Items:
    """The items that a view's title begins with; a view of ours begins with none."""
    return items(title.partition(":")[0]) if re.match(r"(Table|Figure)s? \d", title) else set()


def items(text: str) -> Items:
    """``Tables 1, 4 (a) and 6 to 8; Figure 3`` as pairs of a kind and a number."""
    found: Items = set()
    for part in text.split(";"):
        match = re.fullmatch(r"\s*(Table|Figure)s? ((?:\d+|\([a-z]\)|,|and|to|\s)+)\.?", part)
        assert match, f"not in the regular form: {part!r}"
        for first, _, last in re.findall(r"(\d+)( to (\d+))?", match[2]):
            found |= {(match[1], number) for number in range(int(first), int(last or first) + 1)}
    return found


def paper(name: str) -> str:
    """The address of the paper that a header names first."""
    head = TEXTS[name].split("\ndefaults:")[0]
    return min((address for address in PAPERS if address in head), key=head.index)


def claimed(name: str) -> Items:
    """What the third line of an experiment says."""
    line = TEXTS[name].splitlines()[2].removeprefix("# ")
    return set() if line == OURS else items(line)


def views(name: str) -> dict[str, str]:
    """The files of an experiment's declared views with their titles, its parts of geometry among them."""
    report = yaml.safe_load(TEXTS[name]).get("report", {})
    found = {
        f"{kind}/{key}": view["title"] for kind in ("tables", "figures") for key, view in report.get(kind, {}).items()
    }
    parts = GEOMETRY.get(paper(name), {}) if report.get("geometry") else {}
    found |= {"landscape/": "Figure 2"} if report.get("landscape") else {}
    return found | {f"geometry/{part}": parts[part] for part in report.get("geometry", [])}


def guide() -> dict[str, list[tuple[str, str, str]]]:
    """The rows of the guide's lists by paper: items, command, files or reason."""
    rows: dict[str, list[tuple[str, str, str]]] = {}
    address = ""
    for line in GUIDE.read_text().splitlines():
        if line.startswith("#"):
            address = next((a for a in PAPERS if a in line), "")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if address and line.startswith(("| Table", "| Figure")):
            rows.setdefault(address, []).append((cells[0], cells[1], cells[2]))
    return rows


@pytest.mark.parametrize("name", [name for name in TEXTS if claimed(name)])
def test_a_header_claims_what_its_views_show(name):
    assert set().union(*map(shown, views(name).values())) == claimed(name)
    limits = PAPERS[paper(name)]
    assert all(1 <= number <= limits[kind] for kind, number in claimed(name))


@pytest.mark.parametrize("name", [name for name in TEXTS if not claimed(name)])
def test_a_study_of_ours_names_no_item_of_a_paper(name):
    assert not any(map(shown, views(name).values()))


def test_no_item_is_claimed_twice():
    counts = Counter((paper(name), item) for name in TEXTS for item in claimed(name))
    assert [item for item, times in counts.items() if times > 1] == []


@pytest.mark.parametrize("address", PAPERS)
def test_the_guide_lists_every_item_of_a_paper(address):
    rows = guide()[address]
    everything = {(kind, number) for kind, last in PAPERS[address].items() for number in range(1, last + 1)}
    listed = [items(what) for what, _, _ in rows]
    assert set().union(*listed) == everything
    assert sum(map(len, listed)) == len(everything), "every item once"
    by_experiment: dict[str, Items] = {}
    for (_, command, text), found in zip(rows, listed):
        if name := re.fullmatch(r"`\+experiment=(\w+)`", command):
            by_experiment[name[1]] = by_experiment.get(name[1], set()) | found
            files = {file for file, title in views(name[1]).items() if shown(title) & found}
            assert set(re.findall(r"`([^`]+)`", text)) == files, what_differs(name[1], found)
        else:
            assert command.startswith(("`mergebench ", "none")), "another command, or none"
            assert text, "what of it, or why not"
    assert by_experiment == {name: claimed(name) for name in TEXTS if claimed(name) and paper(name) == address}


def what_differs(name: str, found: Items) -> str:
    """A line that says where to look."""
    return f"docs/studies.md: the files of {sorted(found)} are not those that {name} declares"
