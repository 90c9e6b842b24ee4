"""``geometry`` and ``landscape`` as a person runs them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from cli.app import app

TASKS = ("+landscape.tasks.a.path=a.jsonl", "+landscape.tasks.b.path=b.jsonl")
STUDY = ("+experiment=ours", "--config-dir", "conf")
GRID = ("landscape.points=2", "landscape.examples=4", "executor.device=cpu")


@pytest.fixture
def call(world, run, monkeypatch):
    """Run a command in the world's folder; returns exit code, output and errors."""
    monkeypatch.chdir(world)

    def in_folder(*args):
        done = run(*args, cwd=world)
        return done.returncode, done.stdout, done.stderr

    return in_folder


def test_geometry_of_experts_and_of_a_study(call, world):
    code, out, err = call("geometry", "base.path=base", "experts=[a,b,c]", "out=geo", "--json")
    assert code == 0, err
    (report,) = json.loads(out)
    assert report["experts"] == ["a", "b", "c"]
    assert {os.path.basename(file) for file in report["files"]} >= {"norms.csv", "cosines.png", "histogram.svg"}
    assert all(os.path.isfile(file) for file in report["files"])
    code, out, err = call(
        "geometry", "+experiment=ours", "--config-dir", "conf", "geometry.parts=[norms,cosines]", "--json"
    )
    assert code == 0, err
    (study,) = json.loads(out)
    assert study["norms"] == report["norms"]
    assert (world / "outputs/runs/ours/geometry/mine/cosines.csv").is_file()


def test_geometry_fits_eighty_columns(call):
    args = ["geometry", "base.path=base", "experts=[a,b]", "out=narrow"]
    result = CliRunner().invoke(app, args, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    for word in ("1 a", "2 b", "sum", "norm", "cosines", "layers", "log-lik."):
        assert word in result.output


def test_landscape_of_two_experts(call, world):
    code, out, err = call("landscape", "base.path=base", "experts=[a,b]", *TASKS, *GRID, "out=land", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert [(row["alpha_1"], row["alpha_2"]) for row in made["losses"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert made["summary"][0]["panel"] == "a & b"
    assert (world / "land/figures/landscape.svg").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("geometry", "base.path=base"), "nothing to take the geometry of"),
        (("geometry", "base.path=base", "experts=[a,a]"), "named twice"),
        (("geometry", "base.path=base", "experts=[a,nowhere/x]"), "nowhere/x"),
        (("geometry", "base.path=base", "experts=[a]", "geometry.parts=[norm]"), "norms"),
        (("geometry", "base.path=base", "experts=[a]", "suite=skills"), "does not use suite=skills"),
        (("geometry", "+experiment=quickstart", "store=none"), "not made yet"),
        (("landscape", "base.path=base", "experts=[a]", *TASKS), "of two experts"),
        (("landscape", "base.path=base", "experts=[a,b]"), "nothing says what a was trained on"),
        (("landscape", "base.path=base", "experts=[a,b]", *TASKS, "landscape.pairs=[[a,d]]"), "no expert 'd'"),
        (("landscape", "base.path=base", "experts=[a,b]", *TASKS, "landscape.points=1"), "no grid"),
    ],
)
def test_wrong_input_is_one_line(call, args, message):
    code, out, err = call(*args)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert message in err


def test_an_interrupt_leaves_nothing_half_written(world):
    command = ["landscape", "base.path=base", "experts=[a,b]", *TASKS, "landscape.points=200", "executor.device=cpu"]
    code = "from cli.app import main; main()"
    running = subprocess.Popen(
        [sys.executable, "-c", code, *command, "out=cut", "-v"], cwd=world, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("landscape: "):
            break
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in err
    assert not (world / "cut").exists()
