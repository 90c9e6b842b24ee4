"""The command line as a person runs it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli import terminal
from cli.app import main
from tests.cli.world import make_world

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A stranger's folder, one for all tests of a file."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``mergebench ARGS``; returns its exit code and what it said, as of a finished process."""

    def call(*args: str, cwd: Path = ROOT) -> SimpleNamespace:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["mergebench", *args])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        finally:
            terminal.set_verbosity(terminal.NORMAL)
        out = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out.out, stderr=out.err)

    return call
