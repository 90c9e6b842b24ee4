"""Every command in the README and the docs is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMPOSED = ("finetune", "merge", "evaluate", "sweep", "plan", "report", "search", "statistics", "extract", "diagnose")
"""Commands that take overrides and print what they make of them with --cfg."""


def commands(page: Path) -> list[str]:
    """Lines of fenced blocks that call mergebench, their continuations joined and their comments dropped."""
    blocks = re.findall(r"^```(?:console|bash|sh)\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    calls = [re.sub(r"^\$ ", "", line.strip()) for line in lines]
    return [call.split("  #")[0] for call in calls if call.startswith("mergebench ")]


ALL = [pytest.param(call, id=f"{page.name}: {call[:60]}") for page in PAGES for call in commands(page)]


@pytest.mark.parametrize("call", ALL)
def test_the_command_is_one(call):
    name, *args = shlex.split(call)[1:]
    if name.startswith("-"):
        name, args = args[0], args[1:]
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert name in known, f"there is no command {name}"
    if name in COMPOSED and "--help" not in args:
        result = CliRunner().invoke(app, [name, *[a for a in args if a not in ("--json", "--dry-run")], "--cfg"])
        assert result.exit_code == 0, result.exception


@pytest.mark.parametrize("call", ALL)
def test_any_shell_reads_the_command_as_it_is_written(call):
    """zsh takes unquoted brackets, stars and question marks for file names."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", "", call)
    assert not set("[]{}~*?<>") & set(plain), plain


def test_the_readme_has_commands():
    assert sum(page.name == "README.md" for page in PAGES for _ in commands(page)) >= 8


def test_links_of_the_readme_and_docs_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
