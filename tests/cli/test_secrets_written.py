"""No command writes a secret: each is run with secrets in its environment and in the files that it reads."""

import json

import pytest

import conf.errors
from tests.cli.world import make_world
from tests.hostile_overrides import SUITE
from tests.test_secrets import SECRETS, leaks

ADDRESS = "https://user:pa55word@host/x?access_token=t0ken"


@pytest.fixture
def world(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    conf.errors._secrets.cache_clear()
    make_world(tmp_path)
    for name in ("base", "a", "b"):
        file = tmp_path / name / "config.json"
        told = {"_name_or_path": ADDRESS, "note": SECRETS["WANDB_API_KEY"]}
        file.write_text(json.dumps({**json.loads(file.read_text()), **told}))
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {SECRETS['DB_PASSWORD']}\n---\n{ADDRESS}\n")
    (tmp_path / "recipe.yaml").write_text(
        f"merge_method: linear\nname: {ADDRESS}\nmodels: [{{model: a, parameters: {{weight: 1}}}}]\n"
    )
    yield tmp_path
    conf.errors._secrets.cache_clear()


def test_what_commands_write_holds_no_secret(world, run):
    """Every byte below the outputs is searched, and what each command says."""
    made = "store=outputs/store"
    own = ("--config-dir", "conf", "+experiment=ours", "pools.mine.experts={a: {path: a}, b: {path: b}}", *SUITE, made)
    commands = [
        ("finetune", "base.path=base", "task.path=a.jsonl", "training.steps=1", "out=outputs/f"),
        ("merge", "base.path=base", "experts=[a,b]", "out=outputs/m"),
        ("merge", "base.path=base", "experts=[a,b]", "out=outputs/l", "out_adapter=2"),
        ("merge", "--mergekit-config", "recipe.yaml", "out=outputs/r"),
        ("sweep", *own, "keep=all"),
        ("report", *own), ("ls", made, "--json"), ("results", made, "--format", "csv"),
    ]  # fmt: skip
    said = ""
    for args in commands:
        ended = run(*args, cwd=world)
        assert ended.returncode == 0, (args, ended.stderr)
        said += ended.stdout + ended.stderr
    key = next((world / "outputs" / "store" / "merges").iterdir()).name
    pushed = run("push", f"merges:{key}", "me/x", "out=outputs/p", made, cwd=world)
    assert pushed.returncode == 0, pushed.stderr
    files = [file for file in (world / "outputs").rglob("*") if file.is_file()]
    assert len(files) > 40
    found = {str(file.relative_to(world)): leaks(file.read_bytes().decode("latin-1")) for file in files}
    assert {name: secrets for name, secrets in found.items() if secrets} == {}
    assert leaks(said + pushed.stdout + pushed.stderr) == []


def test_a_configuration_takes_no_secret(world, run):
    for text in (f"name={SECRETS['HF_TOKEN']}", f"about='from {ADDRESS}'", f"suite.judge.address='{ADDRESS}'"):
        ended = run("evaluate", "model=a", *SUITE, text, cwd=world)
        assert ended.returncode == 2
        assert "looks like a token" in ended.stderr or "does not use" in ended.stderr
        assert leaks(ended.stderr) == []
