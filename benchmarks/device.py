"""Everything on a GPU, the most telling first: does it run, does it agree, how fast is it.

    python -m benchmarks.device --out OUT --seconds 200                       # all parts, on the first GPU
    python -m benchmarks.device --device cpu --size tiny --seconds 100        # the same script on a CPU, small
    python -m benchmarks.device --parts finetune merge                        # some parts

Every part has a time limit of its own; its figures are appended to OUT/device.jsonl as they come, a failure as its
traceback, and a later run leaves out what is there. The whole stops by itself after ``--seconds``.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.evaluate import make_models, make_tasks
from benchmarks.real_models import word_rows, write_models
from benchmarks.real_size import trials
from conf.compose import compose
from conf.schema import Optimizer, Suite, SuiteTask, Task, Training
from mergeopt_core.merging import describe, names
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.checkpoints.fingerprint import WeightHash
from pipelines.merge.live import merge_into
from pipelines.merge.recipe import Recipe
from pipelines.merge.resident import DeviceTensors
from pipelines.merge.stream import Merge


@dataclass
class Bench:
    """What all parts share, and where their figures go."""

    device: str
    size: str
    folder: Path
    out: Path
    until: float
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.until - time.perf_counter()

    def tell(self, part: str, **figures: Any) -> None:
        """One line of figures, at once on the disk and on the terminal."""
        line = json.dumps({"part": part, **figures}, default=str)
        with (self.out / "device.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line if len(line) < 600 else line[:300] + " … " + line[-280:], flush=True)

    @contextmanager
    def trying(self, part: str, seconds: float, **about: Any) -> Iterator[None]:
        """Stop what runs inside after so many seconds; a failure is told with its traceback and passed over."""

        def stop(*_: Any) -> None:
            raise TimeoutError(f"over {seconds:.0f} s")

        before, outer = signal.signal(signal.SIGALRM, stop), signal.getitimer(signal.ITIMER_REAL)[0]
        begun = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, max(0.1, min(seconds, self.left, outer or seconds)))
        try:
            yield
        except Exception as error:
            lines = traceback.format_exc().splitlines()
            self.tell(part, **about, failed=f"{type(error).__name__}: {str(error)[:400]}", trace=lines[-14:])
        finally:
            signal.signal(signal.SIGALRM, before)
            rest = outer - (time.perf_counter() - begun)
            signal.setitimer(signal.ITIMER_REAL, max(0.1, rest) if outer else 0)

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], count: int = 3) -> float:
        """Fastest of a few runs after one that warms up."""
        taken = []
        for _ in range(count + 1):
            self.wait()
            begun = time.perf_counter()
            call()
            self.wait()
            taken.append(time.perf_counter() - begun)
        return min(taken[1:])

    def small(self) -> tuple[list[Path], list[str]]:
        """A model of 0.25M parameters, three experts, and the names of the tasks beside them."""
        if "small" not in self.made:
            folder = self.folder / "small"
            folder.mkdir()
            tasks = make_tasks(folder, 0.25)
            generate = {
                "task": "tell", "dataset_path": "json", "output_type": "generate_until", "test_split": "test",
                "dataset_kwargs": {"data_files": {"test": str(folder / "tell.jsonl")}}, "doc_to_text": "{{q}}",
                "doc_to_target": "{{a}}", "generation_kwargs": {"max_gen_toks": 6, "until": ["</s>"]},
                "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            }  # fmt: skip
            (folder / "tell.yaml").write_text(yaml.safe_dump(generate))
            rows = [{"q": f"add {i} {i + 1} =", "a": str(2 * i + 1)} for i in range(9)]
            (folder / "tell.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            self.made["small"] = make_models(folder, 0.25), [*tasks, "tell"]
        return self.made["small"]

    def large(self, experts: int = 4) -> list[Path]:
        """Base and experts of the asked size."""
        if "large" not in self.made:
            begun = time.perf_counter()
            from benchmarks.evaluate import words

            self.made["large"] = write_models(
                self.folder / "large", self.size, experts, self.device, words(self.folder)
            )
            self.tell("made", size=self.size, models=experts + 1, seconds=time.perf_counter() - begun)
        return self.made["large"]


def ceilings(bench: Bench) -> None:
    """What the device moves and multiplies at best."""
    n = 2**30 if bench.device != "cpu" else 2**24
    source = torch.randn(n // 4, device=bench.device)
    target = torch.empty_like(source)
    rates = {"copy_gb_s": 2 * n / bench.seconds(lambda: target.copy_(source)) / 1e9}
    host = torch.empty(n // 4)
    rates["from_pageable_gb_s"] = n / bench.seconds(lambda: target.copy_(host)) / 1e9
    if bench.device != "cpu":
        pinned = host.pin_memory()
        rates["from_pinned_gb_s"] = n / bench.seconds(lambda: target.copy_(pinned, non_blocking=True)) / 1e9
        rates["to_pinned_gb_s"] = n / bench.seconds(lambda: pinned.copy_(source, non_blocking=True)) / 1e9
    side = 8192 if bench.device != "cpu" else 512
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        a = torch.randn(side, side, device=bench.device).to(dtype)
        rates[f"matmul_{dtype}".replace("torch.", "") + "_tflops"] = (
            2 * side**3 / bench.seconds(partial(torch.matmul, a, a)) / 1e12
        )
    bench.tell("ceilings", **rates)


def finetune(bench: Bench) -> None:
    """Six steps of every method in every precision, on a model of 0.25M parameters."""
    from pipelines.finetune import finetune as train

    (base, *_), _tasks = bench.small()
    rows = [{"prompt": f"add {i % 16} {i // 16} =", "completion": f" {i % 16 + i // 16}"} for i in range(96)]
    data = bench.folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cases = [(m, p) for p in ("float32", "bf16_masters", "bf16") for m in ("plain", "mergopt", "sam", "asam")]
    cases += [("tangent", "float32")]
    extra = [{}, {"scale": "fitted"}, {"own_vector": "exact"}, {"inner": "ascent"}]
    settings = [({"method": m}, Training(steps=6, batch_size=16, precision=p)) for m, p in cases]
    settings += [({"method": "mergopt", **e}, Training(steps=6, batch_size=16)) for e in extra[1:]]
    lora = replace(Training(steps=6, batch_size=16), gradient_checkpointing=True)
    lora.lora.rank = 4
    settings.append(({"method": "mergopt"}, lora))
    for i, (method, training) in enumerate(settings):
        about = {**method, "precision": training.precision, "rank": training.lora.rank}
        with bench.trying("finetune", 60, **about):
            out = bench.folder / f"expert{i}"
            begun, optimizer = time.perf_counter(), Optimizer(lr=1e-3)
            task = Task(name="sums", path=str(data))
            told = train(base, task, method, optimizer, training, 0, out, online=False, device=bench.device)
            bench.tell("finetune", **about, loss=told["loss"], seconds=time.perf_counter() - begun)


def merge(bench: Bench) -> None:
    """Every method there and here, twice with one cache that lives in files: how far apart, in update norms."""
    from pipelines.merge.cache import MergeCache

    (base, *experts), _ = bench.small()
    for method in names():
        with bench.trying("merge", 20, method=method):
            info, parameters = describe(method), {}
            if info.statistics or method == "passthrough":
                continue
            if method == "mixup":
                parameters = {"base_method": "task_arithmetic"}
            chosen = experts[: max(info.min_experts, min(3, info.max_experts or 3))]
            recipe = Recipe(str(base), tuple(map(str, chosen)), method, parameters, dtype="float32")
            cache = bench.folder / "cache" / method
            results: list[dict[str, torch.Tensor]] = []
            for device in ("cpu", bench.device, bench.device):
                opened = [open_checkpoint(str(path)) for path in (base, *chosen)]
                kept = MergeCache(cache / device, device=device)
                made = Merge(recipe, opened[0], opened[1:], [path.name for path in chosen], cache=kept)
                results.append({name: t.cpu().double() for name, t in made.tensors(device)})
            theta0 = {name: open_checkpoint(str(base)).tensor(name).double() for name in results[0]}
            norm, first, again = (distance(results[0], other) for other in (theta0, *results[1:]))
            bench.tell("merge", method=method, apart=first / norm, again=again / norm)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """‖a − b‖ over all tensors."""
    return sum(float((tensor - b[name]).square().sum()) for name, tensor in a.items()) ** 0.5


def evaluate(bench: Bench) -> None:
    """Our scores there against lm-eval's own HFLM there, on log-likelihoods and on generated text."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipelines.evaluate.evaluator import Evaluator

    (base, *_), tasks = bench.small()
    for dtype in ("float32", "bfloat16"):
        with bench.trying("evaluate", 60, dtype=dtype):
            named = {task: SuiteTask(metric="exact_match" if task == "tell" else "acc") for task in tasks}
            suite = Suite(name="small", tasks=named, batch_size=32, include_path=str(base.parent), dtype=dtype)
            live = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(bench.device).eval()
            begun = time.perf_counter()
            ours = Evaluator(suite, base).evaluate(live)
            mine = time.perf_counter() - begun
            theirs = lm_eval.simple_evaluate(
                HFLM(pretrained=live, tokenizer=AutoTokenizer.from_pretrained(base), batch_size=32),
                tasks=tasks, task_manager=TaskManager(include_path=str(base.parent), include_defaults=False),
                bootstrap_iters=0, log_samples=True,
            )  # fmt: skip
            expected = {
                (task, str(row["doc_id"])): row["acc" if "acc" in row else "exact_match"]
                for task, rows in theirs["samples"].items() for row in rows
            }  # fmt: skip
            found = [
                (row["value"], expected[row["task"], row["document"]])
                for row in ours.documents.to_pylist() if row["metric"] in ("acc", "exact_match")
            ]  # fmt: skip
            same = int(sum(a == b for a, b in found))
            bench.tell("evaluate", dtype=dtype, same=same, of=len(found), seconds=mine, told=ours.versions)


def sweep(bench: Bench) -> None:
    """A study from nothing to its results."""
    from pipelines.study.sweep import run_study

    overrides = [
        "+experiment=quickstart", f"executor.device={bench.device}", f"store={bench.folder}/store",
        f"runs={bench.folder}/runs", "sampler.sizes=[2]", "sampler.samples=1", "suite.limit=16",
        "pools.plain.base.steps=12", "pools.mergopt.base.steps=12", "pools.plain.training.steps=4",
        "pools.mergopt.training.steps=4",
    ]  # fmt: skip
    ((config, _),) = compose(overrides)
    for pool in config.pools.values():
        pool.tasks = dict(list(pool.tasks.items())[:2])
    done = run_study(config)
    failures = [failure.reason for failure in done.outcome.failures]
    bench.tell("sweep", done=done.outcome.done, failures=failures[:3], seconds=done.seconds)


def stream(bench: Bench) -> None:
    """Merging at size into a live model: experts copied, experts at hand, and then with the checks of a trial."""
    from transformers import AutoModelForCausalLM

    base, *experts = bench.large()
    live = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(bench.device).eval()
    size = sum(p.numel() * p.element_size() for p in live.parameters())
    opened = {path: open_checkpoint(str(path)) for path in (base, *experts)}
    kept = None if bench.device == "cpu" else DeviceTensors(torch.device(bench.device), 40 * 10**9)
    for method in ("linear", "task_arithmetic", "ties", "dare", "model_stock", "tsv_m"):
        with bench.trying("stream", 25, method=method):
            paths = [base, *experts]
            once = partial(merge_once, live, method, paths, opened)
            bench.wait()
            begun, told = time.perf_counter(), {}
            once()
            bench.wait()
            told["copied"] = time.perf_counter() - begun
            told["kept"] = bench.seconds(partial(once, kept), 1)
            told["watched"] = bench.seconds(partial(once, kept, True), 1)
            rate = size * (len(experts) + 2) / told["kept"] / 1e9
            bench.tell("stream", method=method, size=bench.size, **told, gb_s=rate)


def merge_once(
    live: Any, method: str, paths: list[Path], opened: dict[Path, Any], kept: Any = None, watched: bool = False
) -> None:
    """One merge into a live model; ``watched`` as a trial has it, with the weights' digest and their distance."""
    base, *experts = (opened[path] for path in paths)
    recipe = Recipe(str(paths[0]), tuple(map(str, paths[1:])), method, {})
    made = Merge(recipe, base, experts, [path.name for path in paths[1:]], resident=kept)
    if watched:
        made.digest, made.origin = WeightHash(), base
    merge_into(live, made)


def study(bench: Bench) -> None:
    """Trials at size as a study runs them: seconds by part, bytes read and copied."""
    entries, seconds = trials(
        bench.folder / "study", bench.large(), ("linear", "ties", "dare", "model_stock"), (2, 3, 4), 1, bench.device,
        documents=100 if bench.device != "cpu" else 4, dtype="bfloat16", share_prefix="always",
    )  # fmt: skip
    bench.tell("study", size=bench.size, trials=len(entries), seconds=seconds)
    for about in sorted(entries, key=lambda about: about["made"]):
        method = (about["recipe"] or {}).get("method")
        bench.tell("trial", method=method, n=len(about["experts"]), bytes=about["bytes"], seconds=about["seconds"])


def spectral(bench: Bench) -> None:
    """Decompositions of the matrices of real models, by path."""
    from mergeopt_core.spectral.decompositions import triplets
    from mergeopt_core.spectral.spectrum import polar

    sides = [(2048, 2048), (8192, 2048), (14336, 4096)] if bench.device != "cpu" else [(64, 64)]
    for m, n in sides:
        matrix = torch.randn(m, n, device=bench.device) * 1e-3
        ways: dict[str, Callable[[], Any]] = {f"triplets {p}": partial(triplets, matrix, n // 2, p) for p in PATHS}
        ways |= {f"polar {path}": partial(polar, matrix, path) for path in ("gram", "newton_schulz")}
        for name, call in ways.items():
            with bench.trying("spectral", 10, way=name, shape=[m, n]):
                bench.tell("spectral", way=name, shape=[m, n], seconds=bench.seconds(call, 1))


PATHS: tuple[Any, ...] = ("gram", "svd", "svd64")


def noise(bench: Bench) -> None:
    """The offset's noise there, plain and compiled, against the plain one here."""
    from mergeopt_core.finetuning.sampling import DISTRIBUTIONS, Noise, add_noise, add_noise_compiled

    weight = torch.linspace(-1, 1, 10_000_019)
    for law in DISTRIBUTIONS:
        with bench.trying("noise", 60, law=law):
            here = add_noise(weight, torch.empty_like(weight), -0.7, Noise(99, law))
            there = weight.to(bench.device)
            for add in (add_noise, add_noise_compiled):
                made = add(there, torch.empty_like(there), -0.7, Noise(99, law)).cpu()
                others = int((made != here).sum())
                far = float((made - here).abs().max())
                bench.tell("noise", law=law, kernel=add.__name__, largest=far, other_bits=others, of=len(here))


def scoring(bench: Bench) -> None:
    """Tokens a second of ours and of lm-eval's HFLM, and how far each is from ours in float32."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipelines.evaluate.evaluator import Evaluator

    base, rows = bench.large()[0], word_rows(bench.folder / "words", 400 if bench.device != "cpu" else 8)
    asked = [
        Instance("loglikelihood", {}, (row["q"], " " + a), 4 * i + j)
        for i, row in enumerate(rows) for j, a in enumerate(row["a"])
    ]  # fmt: skip
    tokens = sum(len(text.split()) for one in asked for text in one.args)
    found: dict[str, list[float]] = {}
    for dtype, share in [("float32", True), ("bfloat16", "always"), ("bfloat16", False)]:
        with bench.trying("scoring", 60, dtype=dtype, share=share):
            live = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(bench.device).eval()
            suite = Suite(name="words", tasks={"words": SuiteTask()}, include_path=str(bench.folder / "words"),
                          dtype=dtype, max_length=2048, share_prefix=share)  # fmt: skip
            evaluator = Evaluator(suite, base)
            taken = bench.seconds(partial(evaluator.evaluate, live), 1)
            told: dict[str, Any] = {"seconds": taken, "tokens_s": tokens / taken, "shared": evaluator.scorer.share}
            if evaluator.scorer.share:
                (leaf,) = evaluator.tasks[0].leaves
                answers = evaluator.scorer._log_likelihoods(leaf, live, lambda rows: None)
                found[f"ours {dtype}"] = [value for value, _ in answers]
            if share is not True:
                symbols = AutoTokenizer.from_pretrained(base)
                lm = HFLM(pretrained=live, tokenizer=symbols, batch_size=32, max_length=2048)
                begun = time.perf_counter()
                found[f"hflm {dtype}"] = [value for value, _ in lm.loglikelihood(asked, disable_tqdm=True)]
                told["hflm_seconds"] = time.perf_counter() - begun
            told |= {who: apart(values, found["ours float32"]) for who, values in found.items()}
            bench.tell("scoring", dtype=dtype, share=share, **told)


def apart(values: list[float], exact: list[float]) -> dict[str, float]:
    """How far log-likelihoods are from exact ones, and the share of documents on which another option wins."""
    far = [abs(a - b) for a, b in zip(values, exact)]
    other = sum(best(values[i : i + 4]) != best(exact[i : i + 4]) for i in range(0, len(exact), 4))
    return {"largest": max(far), "mean": sum(far) / len(far), "other_choice": 4 * other / len(exact)}


def best(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def steps(bench: Bench) -> None:
    """Training steps at 1B (bf16, float32 masters), each method against AdamW in the same run."""
    from benchmarks import finetune as training

    device, masters = bench.device, bench.device != "cpu"
    for method in ("mergopt compiled", "sam", "asam", "mergopt"):
        with bench.trying("steps", 40, method=method):
            found = training.times(["adamw", method], device, masters, 5)
            fastest = {name: min(seconds) for name, seconds in found.items()}
            bench.tell("steps", method=method, seconds=fastest, ratio=fastest[method] / fastest["adamw"])
        if bench.device != "cpu":
            torch.cuda.empty_cache()


PARTS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "ceilings": (ceilings, 20), "noise": (noise, 60), "finetune": (finetune, 60), "merge": (merge, 60),
    "evaluate": (evaluate, 40), "sweep": (sweep, 40), "stream": (stream, 140), "study": (study, 80),
    "steps": (steps, 120), "spectral": (spectral, 40), "scoring": (scoring, 60),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="1b", help="shape of the large models")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        until = time.perf_counter() + given.seconds
        bench = Bench(given.device, given.size, Path(name), given.out, until)
        name = torch.cuda.get_device_name() if given.device != "cpu" else "cpu"
        bench.tell("begun", device=name, torch=torch.__version__, threads=torch.get_num_threads())
        for part in given.parts:
            run, seconds = PARTS[part]
            if bench.left < 5:
                bench.tell(part, skipped=True)
                continue
            begun = time.perf_counter()
            with bench.trying(part, seconds):
                run(bench)
            bench.tell("took", of=part, seconds=time.perf_counter() - begun)


if __name__ == "__main__":
    main()
