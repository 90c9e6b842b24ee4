"""What a whole study costs, and that nothing of it is lost.

    python -m benchmarks.study                 # in_the_wild +scale=tiny in full, against the command lines of today
    python -m benchmarks.study --kills 20      # kill -9 at random moments: the same results, nothing computed twice
    python -m benchmarks.study --ray 2         # Ray with 2 workers against local: the same bits, and the speed-up

Today's way is ``mergekit-yaml`` and ``lm_eval run`` as processes, over ten of the same trials, scaled to all merges.
Bars: at least 20 times faster than that; at most 10 % of the time of a study's trials outside merging and evaluating.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from conf.compose import compose
from conf.schema import Config
from pipelines.store.store import Store
from pipelines.study.layout import lay_out
from pipelines.study.sources import access_of
from pipelines.study.trial import Trial
from pipelines.tiny.lmeval import export_tasks

BAR_RATIO, BAR_OVERHEAD = 20.0, 0.10
MERGEKIT = ("task_arithmetic", "ties", "model_stock")
"""Methods that mergekit's own command line knows."""
LONGER = ("sampler.samples=4", "sampler.sizes=[2,4,6]")


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-c", "from cli.app import main; main()", "-q", "sweep", *overrides, "--json"]


def study(*overrides: str) -> tuple[dict[str, Any], float]:
    """Run a study as a process: what it told, and its wall time."""
    start = time.perf_counter()
    done = subprocess.run(command(*overrides), check=True, capture_output=True, text=True)
    return json.loads(done.stdout)[0], time.perf_counter() - start


def places(folder: Path) -> list[str]:
    return [f"store={folder}/store", f"runs={folder}/runs", "executor.device=cpu"]


def results(folder: Path) -> dict[str, Any]:
    return {e.key: e.describe() for e in Store(folder / "store").entries("results")}


def numbers(folder: Path) -> dict[str, Any]:
    """What must not depend on how a study was run."""
    return {key: (about["tasks"], about.get("weights")) for key, about in results(folder).items()}


def in_full(folder: Path, overrides: list[str]) -> None:
    """The whole protocol, then ten of its trials by today's command lines."""
    told, wall = study(*overrides, *places(folder))
    seconds, count = told["seconds"], told["run"]
    busy = seconds["merge"] + seconds["evaluate"]
    overhead = 1 - busy / seconds["trials"]
    print(f"{count} trials in {wall:.0f} s, of which bases and experts {seconds.get('make', 0):.0f} s")
    print(f"trials alone: {seconds['trials']:.0f} s, {60 * count / seconds['trials']:.0f} a minute")
    shares = {part: seconds[part] / seconds["trials"] for part in ("merge", "evaluate")}
    print(f"merging {shares['merge']:.1%}, evaluating {shares['evaluate']:.1%}")
    print(f"neither: {overhead:.1%} (bar {BAR_OVERHEAD:.0%})")
    ((config, _),) = compose([*overrides, *places(folder)])
    today = [by_command_lines(trial, config, folder) for trial in some_merges(config)]
    per_trial = statistics.median(today)
    print(f"mergekit-yaml and lm_eval run, {len(today)} of the same trials: median {per_trial:.1f} s each")
    ratio = per_trial * count / seconds["trials"]
    print(f"ratio: {ratio:.0f} times (bar {BAR_RATIO:.0f})")


def some_merges(config: Config, count: int = 10) -> list[Trial]:
    """Ten merges of the study that mergekit can make, spread over methods and sizes."""
    trials = [p.trial for p in lay_out(config, access_of(config)).planned if p.trial and p.trial.merge]
    known = [t for t in trials if t.merge is not None and t.merge.method in MERGEKIT]
    return random.Random(0).sample(known, min(count, len(known)))


def by_command_lines(trial: Trial, config: Config, folder: Path) -> float:
    """Wall time of one trial by mergekit-yaml and lm_eval, as processes."""
    assert trial.merge is not None
    tasks, merged = folder / "tasks", folder / "merged"
    if not tasks.exists():
        export_tasks(tasks, list(config.suite.tasks), "test", config.suite.limit)
    recipe = folder / "recipe.yaml"
    document = yaml.safe_load(trial.merge.mergekit_yaml())
    document["parameters"] = {k: v for k, v in document.get("parameters", {}).items() if k in KNOWN[trial.merge.method]}
    recipe.write_text(yaml.safe_dump(document))
    programs = Path(sys.executable).parent
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    model = ["--model", "hf", "--model_args", f"pretrained={merged},dtype=float32", "--device", "cpu"]
    asked = ["--tasks", ",".join(config.suite.tasks), "--include_path", tasks, "--batch_size", config.suite.batch_size]
    start = time.perf_counter()
    for call in ([programs / "mergekit-yaml", recipe, merged], [programs / "lm_eval", "run", *model, *asked]):
        subprocess.run([str(part) for part in call], check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


KNOWN = {
    "task_arithmetic": {"weight", "normalize", "lambda"},
    "ties": {"weight", "density", "normalize", "lambda"},
    "model_stock": set(),
}


def killed(folder: Path, overrides: list[str], kills: int) -> None:
    """Kill a study at random moments and repeat it until it is done; compare with an undisturbed one."""
    calm, rough = folder / "calm", folder / "rough"
    study(*overrides, *places(calm))
    seen: dict[str, float] = {}
    again, done = 0, 0
    rng = random.Random(0)
    while True:
        call = command(*overrides, *places(rough))
        silent = subprocess.DEVNULL
        process = subprocess.Popen(call, stdout=silent, stderr=silent, start_new_session=True)
        try:
            process.wait(timeout=rng.uniform(2.0, 12.0) if done < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
        made = {key: about["made"] for key, about in results(rough).items()}
        again += sum(made[key] != when for key, when in seen.items())
        seen = made
        if process.returncode == 0:
            break
    same = numbers(calm) == numbers(rough)
    print(
        f"killed {done} times: results {'identical' if same else 'DIFFERENT'}, {again} committed trials computed again"
    )


def on_ray(folder: Path, overrides: list[str], workers: int) -> None:
    """The same study by both executors, from the same experts."""
    local, ray = folder / "local", folder / "ray"
    first, _ = study(*overrides, *places(local))
    ray.mkdir()
    for kind in ("bases", "experts"):
        (ray / "store").mkdir(exist_ok=True)
        os.symlink(local / "store" / kind, ray / "store" / kind)
    second, _ = study(*overrides, *places(ray), "executor=ray", f"executor.workers={workers}")
    same = numbers(local) == numbers(ray)
    speed = first["seconds"]["trials"] / second["seconds"]["trials"]
    print(f"Ray with {workers} workers: results {'bitwise the same' if same else 'DIFFERENT'}")
    print(f"trials {speed:.2f} times as fast as local")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--ray", type=int, default=0)
    parser.add_argument("overrides", nargs="*", default=["+experiment=in_the_wild", "+scale=tiny"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.kills:
            killed(folder, [*given.overrides, *LONGER], given.kills)
        if given.ray:
            on_ray(folder, given.overrides, given.ray)
        if not given.kills and not given.ray:
            in_full(folder, given.overrides)


if __name__ == "__main__":
    main()
