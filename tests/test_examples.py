"""The examples run as they stand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_notebook_runs_in_the_small_world(tmp_path):
    cells = json.loads((EXAMPLES / "small_world.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "runs" / "notebook" / "report.html").is_file()
    assert "p = " in done.stdout


def test_an_own_study_over_found_folders(tiny_pool, tmp_path, monkeypatch):
    import mergebench

    monkeypatch.chdir(tmp_path)
    for name, folder in zip(("base", "chat", "code", "math"), (tiny_pool.base, *tiny_pool.experts)):
        shutil.copytree(folder, tmp_path / "models" / name)
    study = mergebench.study("+experiment=my_experts", config_dir=str(EXAMPLES / "own_study"), suite={"limit": 10})
    assert study.complete
    assert (study.trials["kind"] == "merge").sum() == 3 * (3 + 1)


def test_scripts_are_read_by_their_shells():
    assert subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"]).returncode == 0
    assert (
        yaml.safe_load((EXAMPLES / "github-ci.yml").read_text())["jobs"]["check"]["steps"][-1]["run"] == "bash .ci/run"
    )
