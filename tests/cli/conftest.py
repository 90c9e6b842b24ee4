"""The command line as a person runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def run():
    """Run ``mergebench ARGS`` in a process of its own; returns the finished process."""

    def call(*args: str, cwd: Path = ROOT, timeout: int = 240) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", "from cli.app import main; main()", *args]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)

    return call
