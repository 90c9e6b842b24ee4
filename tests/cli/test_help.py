import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.completion import complete_override

COMMANDS = (
    *(
        "finetune",
        "merge",
        "extract",
        "evaluate",
        "statistics",
        "sweep",
        "plan",
        "calibrate",
        "report",
        "search",
        "geometry",
        "diagnose",
        "landscape",
        "compare",
        "methods",
        "doctor",
    ),
    *("ls", "show", "verify", "gc", "export", "push", "results", "prefetch"),
)


def test_help_names_every_command():
    text = CliRunner().invoke(app, ["--help"]).output
    for command in COMMANDS:
        assert command in text


def test_every_command_shows_examples():
    for command in COMMANDS:
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert f"mergebench {command}" in result.output


def test_examples_are_whole_and_quoted_for_any_shell():
    shown = [CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "300"}).output for name in COMMANDS]
    lines = [line.strip() for text in shown for line in text.splitlines() if line.strip().startswith("mergebench ")]
    assert len(lines) >= 2 * len(COMMANDS)
    for line in lines:
        assert not re.search(r"=('| |$)", line), f"a value is lost: {line}"
        assert not set("[]{}~*?") & set(re.sub("'[^']*'", "", line)), f"a shell would read more than there is: {line}"


def test_help_imports_nothing_heavy():
    heavy = ("torch", "transformers", "mergekit", "lm_eval", "hydra", "pandas", "numpy")
    script = f"import sys, cli.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_completion_of_groups_and_choices():
    assert "method=" in complete_override("meth")
    assert "+experiment=" in complete_override("exp")
    assert "method=ties" in complete_override("method=ti")
    assert "+method@methods.x=della" in complete_override("+method@methods.x=dell")
    assert complete_override("nonsense=x") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["merge", "meth"], ["method="]),
        (["merge", "method", "=", "wud"], ["wudi"]),
        (["sweep", "+method", "@", "methods.x", "=", "della_"], ["della_linear"]),
        (["sweep", "suite", "=", "skills", "+experiment", "=", "quick"], ["quickstart"]),
    ],
)
def test_completion_as_bash_asks_for_it(words, expected):
    """bash splits words at ``=`` and ``@``, and replaces the last part alone by an answer."""
    own = {"_MERGEBENCH_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words))}
    env = {**os.environ, **own, "COMP_WORDS": "\n".join(["mergebench", *words])}
    script = "import sys; sys.argv = ['mergebench']; from cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.split() == expected
