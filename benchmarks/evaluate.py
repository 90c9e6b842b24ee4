"""What the second and later models of a sweep cost, against mergekit-yaml and lm_eval as processes.

    python -m benchmarks.evaluate                      # 0.25M parameters
    python -m benchmarks.evaluate --sizes 0.25 5 50    # all that the bars speak of
    python -m benchmarks.evaluate --memory 200         # memory over 200 consecutive trials

Same experts, same recipe (linear), same 500 documents of 4 options, float32, batch 32. Decisions are compared document
by document. Bars: at least 20 times faster at 0.25M (built-in model and skills, options of one token), 8 at 5M and 2.5
at 50M (contexts of about 40 tokens, options of 3 to 8); memory growth under 2 %.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.real_models import word_rows
from conf.schema import Suite, SuiteTask
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.evaluate.evaluator import Evaluator
from pipelines.merge.live import merge_into
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge
from pipelines.tiny.base import tokenizer
from pipelines.tiny.lmeval import export_tasks

SHAPES = {0.25: (96, 2, 256), 5.0: (256, 4, 688), 50.0: (640, 9, 1728)}
BARS = {0.25: 20.0, 5.0: 8.0, 50.0: 2.5}
SKILLS = ("add", "dist", "odd", "close")
DOCUMENTS = 500


def words(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer of 4096 words, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4092))])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def make_models(folder: Path, size: float, experts: int = 3) -> list[Path]:
    """A random base and experts a small step away from it."""
    hidden, layers, inner = SHAPES[size]
    symbols = tokenizer() if size == 0.25 else words(folder)
    config = LlamaConfig(
        vocab_size=len(symbols),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32 if hidden > 128 else 4,
        intermediate_size=inner,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.5 / hidden**0.5,
        pad_token_id=symbols.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    folders = []
    for k in range(experts + 1):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(base[name] + (0.01 * torch.randn_like(p) if k else 0))
        folders.append(folder / f"model_{k}")
        model.save_pretrained(folders[-1])
        symbols.save_pretrained(folders[-1])
    return folders


def make_tasks(folder: Path, size: float) -> list[str]:
    """Task files for lm-eval: the built-in skills, or one task of random words."""
    if size == 0.25:
        export_tasks(folder, SKILLS, "test", DOCUMENTS // len(SKILLS))
        return list(SKILLS)
    word_rows(folder, DOCUMENTS, (25, 55), (3, 8))
    return ["words"]


def theirs(folder: Path, recipe: Recipe, tasks: list[str]) -> tuple[float, float, dict[str, list[float]]]:
    """Seconds of mergekit-yaml and of lm_eval as processes, and the accuracy of each document."""
    merged, out, config = folder / "merged", folder / "lm_eval", folder / "recipe.yaml"
    models = [{"model": e, "parameters": {"weight": w}} for e, w in zip(recipe.experts, recipe.parameters["weight"])]
    config.write_text(yaml.safe_dump({"merge_method": "linear", "models": models, "dtype": "float32"}))
    here = Path(sys.executable).parent
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    start = time.perf_counter()
    run_quietly([str(here / "mergekit-yaml"), str(config), str(merged)], env)
    middle = time.perf_counter()
    run = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={merged}"]
    run += ["--tasks", ",".join(tasks), "--include_path", str(folder), "--batch_size", "32", "--device", "cpu"]
    run_quietly([*run, "--log_samples", "--output_path", str(out)], env)
    end = time.perf_counter()
    scores = {}
    for task in tasks:
        (file,) = out.glob(f"**/samples_{task}_*.jsonl")
        rows = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda r: r["doc_id"])
        scores[task] = [row["acc"] for row in rows]
    return middle - start, end - middle, scores


def run_quietly(command: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


class Ours:
    """A live model, an evaluator and open checkpoints: what a worker of a sweep keeps."""

    def __init__(self, folder: Path, models: list[Path], tasks: list[str]):
        named = {task: SuiteTask() for task in tasks}
        suite = Suite(name="benchmark", tasks=named, batch_size=32, include_path=str(folder))
        self.base, *self.experts = [open_checkpoint(str(m)) for m in models]
        self.model = LlamaForCausalLM.from_pretrained(models[0])
        self.evaluator = Evaluator(suite, models[0])

    def trial(self, recipe: Recipe) -> tuple[float, float, dict[str, list[float]]]:
        """Seconds of merging and of evaluating, and the accuracy of each document."""
        start = time.perf_counter()
        merge_into(self.model, Merge(recipe, self.base, self.experts))
        middle = time.perf_counter()
        evaluation = self.evaluator.evaluate(self.model)
        end = time.perf_counter()
        scores: dict[str, list[float]] = {}
        for row in evaluation.documents.to_pylist():
            if row["metric"] == "acc":
                scores.setdefault(row["task"], []).append(row["value"])
        return middle - start, end - middle, scores


def recipes(models: list[Path], count: int) -> list[Recipe]:
    """Linear merges of the experts with differing weights."""
    paths = tuple(str(m) for m in models[1:])
    rng = random.Random(0)
    return [
        Recipe(str(models[0]), paths, "linear", {"weight": [rng.uniform(0.5, 1.5) for _ in paths]}, dtype="float32")
        for _ in range(count)
    ]


def compare(size: float, repeats: int) -> bool:
    """One size, both ways; prints a row and says whether the bar is met."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models, tasks = make_models(folder, size), make_tasks(folder, size)
        first, *later = recipes(models, 1 + repeats)
        ours = Ours(folder, models, tasks)
        ours.trial(first)
        cpu = time.process_time()
        rows = [ours.trial(recipe) for recipe in later]
        cpu = (time.process_time() - cpu) / repeats
        before = children()
        merging, evaluating, expected = theirs(folder, later[-1], tasks)
        their_cpu = children() - before
    mine = statistics.median(a + b for a, b, _ in rows)
    ratio = (merging + evaluating) / mine
    same = sum(a == b for t in tasks for a, b in zip(rows[-1][2][t], expected[t], strict=True))
    parts = ", ".join(
        f"{statistics.median(r[i] for r in rows):.2f} s {w}" for i, w in ((0, "merge"), (1, "evaluation"))
    )
    print(f"{size:g}M: mergekit-yaml {merging:.1f} s + lm_eval {evaluating:.1f} s")
    print(f"      a later model here {mine:.2f} s ({parts})")
    print(f"      {ratio:.1f} times faster (bar {BARS[size]:g}); same decision on {same} of {DOCUMENTS} documents")
    print(f"      in CPU seconds {their_cpu:.1f} and {cpu:.2f}: {their_cpu / cpu:.1f} times", flush=True)
    return ratio >= BARS[size] and same == DOCUMENTS


def children() -> float:
    """CPU seconds of all child processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory(trials: int) -> bool:
    """Resident memory over consecutive trials of the tiny model; says whether it stays flat."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models, tasks = make_models(folder, 0.25), make_tasks(folder, 0.25)
        ours, process, seen = Ours(folder, models, tasks), psutil.Process(), []
        for recipe in recipes(models, trials):
            ours.trial(recipe)
            seen.append(process.memory_info().rss / 2**20)
    few = max(2, trials // 10)
    settled, last = max(seen[:few]), max(seen[-few:])
    growth = last / settled - 1
    print(
        f"memory, {trials} trials: {settled:.0f} MiB in the first {few}, {last:.0f} in the last, {growth:+.2%} (bar 2%)"
    )
    return growth < 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=float, nargs="*", default=[0.25], choices=sorted(SHAPES), help="million parameters"
    )
    parser.add_argument("--repeats", type=int, default=5, help="later models that are timed here")
    parser.add_argument("--memory", type=int, default=0, metavar="TRIALS", help="measure memory over so many trials")
    arguments = parser.parse_args()
    met = [compare(size, arguments.repeats) for size in arguments.sizes]
    if arguments.memory:
        met.append(memory(arguments.memory))
    raise SystemExit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
