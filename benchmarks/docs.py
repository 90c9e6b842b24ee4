"""Runs every command of README and docs as it is written, in a folder that holds what they name.

    python benchmarks/docs.py [WORDS] [--brief] [--store DIR]

The folder has a base and experts of a few thousand weights under every name that the pages use, data, a mirror of stock
tasks, results of lm-eval and a store. What cannot run here is listed with the reason. With WORDS only the commands that
hold all of them run; --brief makes studies small by further overrides. A command that fails is told with its page, and
the exit code is 1. Not run: `make`, which installs, and `torchrun` of a script that is the reader's own.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "cli")]
import own_documents  # noqa: E402
from test_readme import PAGES, commands  # noqa: E402
from world import make_world  # noqa: E402

NOT_HERE = {
    r"executor\.address=auto|/shared/": "needs a Ray cluster",
    r"base=(qwen|llama|clip)": "needs weights of the hub",
    r"\+experiment=(mergopt|in_the_wild|vision)(?!.*\+scale=tiny)": "needs weights and data of the hub",
    r"alpaca_eval_2|annotator=": "needs a judge's account and data of the hub",
    r" --yes": "uploads to the hub (faked in tests/pipelines/store/test_push.py)",
}
"""Commands that cannot run here, by pattern, and why."""
BRIEF = {
    "sweep": ["sampler.samples=1", "suite.limit=4", "statistics.resamples=100"],
    "report": ["sampler.samples=1", "suite.limit=4", "statistics.resamples=100"],
    "evaluate": ["suite.limit=4"],
    "search": ["search.trials=2", "suite.limit=4"],
}
MODELS = {
    "base": ["DIR", "BASE", "org/base", "Qwen/Qwen2.5-0.5B"],
    "a": ["A", "org/one"],
    "b": ["B", "org/two"],
}
"""Names under which the pages speak of a base and two experts."""


def make_folder(folder: Path, store: Path | None) -> None:
    """Fill a folder with what the pages name."""
    make_world(folder)
    for source, names in MODELS.items():
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(folder / source)
    for name in ("yours", "one", "two"):
        shutil.copy(folder / "mine.jsonl", folder / f"{name}.jsonl")
    own_documents.write(folder / "data")
    own_documents.mirror(folder / "data", folder / "mirror")
    (folder / "MIRROR").symlink_to(folder / "mirror")
    recipe = {"merge_method": "linear", "models": [{"model": n, "parameters": {"weight": 1}} for n in ("a", "b")]}
    (folder / "recipe.yaml").write_text(json.dumps({**recipe, "dtype": "float32"}))
    if store:
        (folder / "outputs").mkdir()
        shutil.copytree(store, folder / "outputs" / "store", symlinks=True)
    for name, skill in (("a", "add"), ("b", "count")):  # of the built-in base
        run(["finetune", "base=tiny", f"task=skills/{skill}", "training.steps=5", f"out=out/{name}"], folder)
    run(["statistics", "experts=[a,b]", "task.path=mine.jsonl", "collect.examples=4"], folder)
    run(["sweep", "+experiment=ours", "--config-dir", "conf", "suite=custom", "+suite.tasks.add.skill=add",
         "suite.limit=8", "suite.samples=all", "keep=all", "name=quickstart"], folder)  # fmt: skip
    answers = folder / "answers"
    run(["results", "--samples", "answers"], folder)
    written = sorted(answers.iterdir())
    for place, name in enumerate(("lm-eval-out/model-a", "lm-eval-out/model-b", "lm-eval-out/a", "lighteval-out/b")):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copytree(written[place % 2], folder / name)
    shutil.rmtree(answers)


def key_of(folder: Path, kind: str, trial: str | None = None) -> str:
    """The first digits of a key of the store."""
    for entry in sorted((folder / "outputs" / "store" / kind).glob("*/entry.json")):
        if trial is None or json.loads(entry.read_text()).get("trial") == trial:
            return entry.parent.name[:12]
    return ""


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    """``mergebench ARGUMENTS`` in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cli.app import main; main()"
    settings = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env=settings, capture_output=True, text=True
    )
    return done


def here(call: str, folder: Path) -> str:
    """A command with the keys and the task that it names replaced by those of this store."""
    kind = "merges" if re.match(r"mergebench (export|push)", call) else "results"
    trial = None if kind == "merges" else "merge"
    call = re.sub(r"\b3f2a\b", key_of(folder, kind, trial) or "3f2a", call)
    call = call.replace("--task arc_easy", "--task add")
    return re.sub(r"\bexperts:77c0\b", f"bases:{key_of(folder, 'bases')}", call)


def clear(call: str, folder: Path) -> None:
    """Remove the folders that a command writes, so that each can be run as the first."""
    for name in re.findall(r"\bout=(\S+)|--samples (\S+)", call):
        place = folder / next(filter(None, name))
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--store", type=Path)
    asked = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_folder(folder, asked.store)
        for page, call in [(file.relative_to(ROOT), call) for file in PAGES for call in commands(file)]:
            if not all(word in f"{page} {call}" for word in asked.words):
                continue
            if reason := next((why for pattern, why in NOT_HERE.items() if re.search(pattern, call)), None):
                print(f"not here  {page}: {call}\n          {reason}", flush=True)
                continue
            arguments = shlex.split(here(call, folder))[1:]
            arguments += BRIEF.get(arguments[0], []) * asked.brief
            if "+scale" not in call:
                clear(call, folder)
            start = time.perf_counter()
            done = run(arguments, folder)
            failed += done.returncode != 0
            took = f"{time.perf_counter() - start:6.1f} s"
            print(f"{'failed' if done.returncode else 'fine'} {took}  {page}: {call}", flush=True)
            if done.returncode:
                print(f"          {(done.stderr or done.stdout).strip()[-600:]}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
