import subprocess
import sys

from typer.testing import CliRunner

from cli.app import app
from cli.completion import complete_override

COMMANDS = (
    *("finetune", "merge", "evaluate", "statistics", "sweep", "plan", "report", "search", "methods", "doctor"),
    *("ls", "show", "verify", "gc", "export", "results", "prefetch"),
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
