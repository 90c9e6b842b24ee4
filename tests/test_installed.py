"""What an installation puts into an environment, and that it works there."""

import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cli", "conf", "pipelines", "mergeopt_core")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def run(*command, folder, ok=True) -> str:
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what a build reads, so that the checkout gets no build folder."""
    if missing := [name for name in ("pip", "setuptools") if find_spec(name) is None]:  # importing them would clash
        pytest.skip(f"an environment without {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("source")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source, folder=out)
    (built,) = out.glob("*.whl")
    return built


def test_a_wheel_holds_one_package_with_every_file_of_ours(wheel, source):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {f.relative_to(source) for room in ROOMS for f in (source / room).rglob("*") if f.is_file()}
    ours = {f for f in ours if f.suffix != ".pyc" and Path("cli/mergebench") not in f.parents}
    entry = {f"mergebench/{name}.py" for name in ("__init__", "__main__", "api")}
    assert names == entry | {f"mergebench/packages/{f.as_posix()}" for f in ours}
    assert "mergebench/packages/conf/experiment/quickstart.yaml" in names


@pytest.fixture
def environment(tmp_path):
    """A fresh environment that borrows this one's libraries; returns its programs' folder."""
    run(sys.executable, "-m", "venv", "--without-pip", "venv", folder=tmp_path)
    (packages,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))  # their own .pth files, and so our checkout, stay out
    return tmp_path / "venv" / "bin"


def install(what, programs, folder):
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q", "--no-deps", *what)
    run(*pip, "--ignore-installed", folder=folder)


@pytest.mark.benchmark
@pytest.mark.timeout(1200)
def test_an_installation_runs_a_study_in_this_process_and_with_ray(wheel, environment, tmp_path):
    install([wheel], environment, tmp_path)
    for name in ROOMS:
        assert "ModuleNotFoundError" in run(environment / "python", "-c", f"import {name}", folder=tmp_path, ok=False)
    inside = "import mergebench, cli, conf, pipelines, mergeopt_core; print(pipelines.__file__)"
    assert f"{environment.parent}/lib" in run(environment / "python", "-c", inside, folder=tmp_path)
    command = environment / "mergebench"
    assert "density" in run(command, "methods", "ties", folder=tmp_path)
    assert "density" in run(environment / "python", "-m", "mergebench", "methods", "ties", folder=tmp_path)
    others = ("summed", "task_arithmetic", "ties", "dare_linear", "model_stock")
    study = ["+experiment=quickstart", "~pools.mergopt", *(f"~methods.{name}" for name in others)]
    study += ["pools.plain.base.steps=10", "pools.plain.training.steps=3", "suite.limit=5"]
    study += ["sampler.sizes=[12]", "sampler.singles=false", "executor.device=cpu"]
    run(command, "sweep", *study, "store=local", folder=tmp_path)
    run(command, "sweep", *study, "store=ray", "executor=ray", "executor.workers=2", folder=tmp_path)
    results = [{p.name for p in (tmp_path / store / "results").iterdir()} for store in ("local", "ray")]
    assert results[0] == results[1]
    assert len(results[0]) == 2


@pytest.mark.benchmark
def test_an_editable_installation_has_the_packages_of_the_checkout(source, environment, tmp_path):
    install(["--no-build-isolation", "--editable", source], environment, tmp_path)
    for name in ROOMS:
        found = run(environment / "python", "-c", f"import {name}; print({name}.__file__)", folder=tmp_path)
        assert found.strip() == str(source / name / "__init__.py")
    assert "density" in run(environment / "mergebench", "methods", "ties", folder=tmp_path)
