"""SIGINT and SIGTERM to a command at work: what is finished is kept, exit code 130 or 143 and one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MANY = "training.steps=100000"


def ignore():
    """As a shell without job control starts a background job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("args", "number", "code"),
    [
        (["finetune", "task=skills/add", MANY], signal.SIGINT, 130),
        (["finetune", "task=skills/add", MANY], signal.SIGTERM, 143),
    ],
)
def test_a_stop_is_told_by_code_and_one_line(tiny_pool, tmp_path, args, number, code):
    store = tmp_path / "store"
    source = "from cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", source, *args, f"base.path={tiny_pool.base}", f"store={store}"], cwd=ROOT, text=True,
        preexec_fn=ignore, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for _ in range(1200):  # until it is at work
        if list(store.glob("tmp/*/metrics.jsonl")):
            break
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert [line for line in err.splitlines() if "interrupted" in line] == [err.splitlines()[-1]]
    assert "Traceback" not in err
    assert list((store / "tmp").iterdir()) == []
