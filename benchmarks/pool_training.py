"""Does training against the pool's own task vectors pay? Plain, noise, SAM, two rounds and live exchanges, merged.

    python -m benchmarks.pool_training --processes 14 --seconds 460 --out DIR   # the grid, most important cells first
    python -m benchmarks.pool_training --report DIR                             # its tables

A cell is a width, a length of training, a seed (of base, batches, draws and subsets) and a way of training: twelve
experts are trained in one process, their merges of n by six methods are scored on the merged skills, λ is chosen on
validation items and the chosen merge is scored once on test items. Every cell is a line of DIR/results.jsonl, written
as it ends. Training is a loop of its own over ``mergeopt_core``, so that nothing but the training methods is judged.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.tiny_world import POOL, SYMBOLS, Exam
from conf.schema import Base
from mergeopt_core import SAM, MergOPT
from mergeopt_core.merging.run import merge_tensor
from pipelines.tiny.base import PEAK_LR, WARMUP, _mixture, answer_loss, encode, fresh_model
from pipelines.tiny.skills import training_rows

Weights = dict[str, torch.Tensor]
SIZES = {"0.25M": {"hidden": 96, "layers": 2, "base_lr": PEAK_LR, "lr": 1e-3},
         "5M": {"hidden": 320, "layers": 4, "base_lr": 1e-3, "lr": 3e-4}}  # fmt: skip
SUM, MEAN = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0), (0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0)
MERGERS: dict[str, tuple[str, dict[str, Any], Sequence[float]]] = {
    "average": ("linear", {}, (1.0,)),
    "TA": ("task_arithmetic", {}, SUM),
    "TIES": ("ties", {}, MEAN),
    "DARE": ("dare", {"drop_rate": 0.5}, SUM),
    "Iso-C": ("iso_c", {}, (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)),
    "TSV-M": ("tsv_m", {}, MEAN),
}
"""Method, its parameters, and the λ that are tried: the update of all is linear in λ."""


@dataclass(frozen=True)
class Way:
    """A way of training experts."""

    kind: str = "plain"
    """plain, noise, sam, experts (against the task vectors of a plain first round) or pool (against live ones)."""
    length: float = 1.0
    """Share of the steps of a plain run."""
    rounds: int = 5
    """Exchanges; −1: before every step."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the optimizer."""
    snapshot: str = "float32"
    """How exchanged task vectors are kept: float32, bfloat16, int8, or layers (matrices of the layers alone)."""
    members: int = 12
    """Skills of the pool; the others are trained plainly."""


WAYS = {
    "plain": Way(),
    "plain x1.1": Way(length=1.1),
    "plain x2": Way(length=2.0),
    "noise 5e-4": Way("noise", options={"scale": 5e-4}),
    "noise 6.5e-3": Way("noise", options={"scale": 6.5e-3}),
    "noise fitted": Way("noise", options={"scale": "fitted"}),
    "sam": Way("sam", options={"rho": 0.05}),
    "experts (two rounds)": Way("experts"),
    "pool 1": Way("pool", rounds=1),
    "pool 2": Way("pool", rounds=2),
    "pool 5": Way("pool"),
    "pool every step": Way("pool", rounds=-1),
    "pool 5, outsiders": Way("pool", members=6),
    "pool 5, own exact": Way("pool", options={"own_vector": "exact"}),
    "pool 5, α .1-.3": Way("pool", options={"alphas": [0.1, 0.2, 0.3]}),
    "pool 5, α .3": Way("pool", options={"alphas": [0.3]}),
    "pool 5, α .2-1": Way("pool", options={"alphas": [0.2, 0.4, 0.6, 0.8, 1.0]}),
    "pool 5, K = 7": Way("pool", options={"max_tasks": 7, "fixed": True}),
    "pool 5, K ≤ 4": Way("pool", options={"max_tasks": 4}),
    "pool 5, K ≤ 12": Way("pool", options={"max_tasks": 12}),
    "pool 5, bfloat16": Way("pool", snapshot="bfloat16"),
    "pool 5, int8": Way("pool", snapshot="int8"),
    "pool 5, layers": Way("pool", snapshot="layers"),
    "pool 5, unit norm": Way("pool", snapshot="unit"),
}  # fmt: skip
CORE = ["plain", "pool 5", "plain x1.1", "plain x2", "experts (two rounds)", "noise 5e-4", "pool 1", "pool 2",
        "pool every step", "noise fitted", "sam"]  # fmt: skip


@cache
def settings() -> Any:
    return OmegaConf.load(POOL)


def pretrain(size: str, seed: int, device: str) -> torch.nn.Module:
    """The tiny base as ``pipelines.tiny.base`` makes it, on any device; a larger one until it is as good (54%)."""
    torch.manual_seed(seed)
    spec = Base(name="tiny", seed=seed, hidden=SIZES[size]["hidden"], layers=SIZES[size]["layers"])
    model = fresh_model(spec, SYMBOLS).to(device)
    ids, lengths, share = _mixture(SYMBOLS, seed)
    rng, peak = np.random.RandomState(seed), SIZES[size]["base_lr"]
    adamw = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    exams = [Exam(skill, 100, "validation", device) for skill in settings().tasks]
    for t in range(200 if size == "0.25M" else 1000):
        if size != "0.25M" and t % 25 == 0 and np.mean([exam.right(model).mean() for exam in exams]) > 0.54:
            break
        adamw.param_groups[0]["lr"] = peak * min(1.0, (t + 1) / WARMUP)
        batch = torch.from_numpy(share.searchsorted(rng.random_sample(128), side="right"))
        loss = answer_loss(model, ids[batch].to(device), lengths[batch])
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
    return model


class Fixed(MergOPT):
    """MergOPT that always takes K = K_max."""

    def draw(self, step: int) -> Any:
        offset = super().draw(step)
        most = min(self.max_tasks, len(self.others or ()) + 1)
        return type(offset)(offset.step, offset.alpha, most, offset.seed)


class Learner:
    """An expert in training."""

    def __init__(self, base: torch.nn.Module, skills: Sequence[str], way: Way, steps: int, seed: int, lr: float):
        self.model, self.steps, self.lr = copy.deepcopy(base), steps, lr
        self.device = next(base.parameters()).device
        rows = [row["prompt"] + row["completion"] for skill in skills for row in training_rows(skill, seed=seed)]
        self.ids, self.lengths = encode(SYMBOLS, rows)
        self.ids = self.ids.to(self.device)
        spec, self.spec = settings().optimizer, settings().training
        base_optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=lr, betas=tuple(spec.betas), weight_decay=spec.weight_decay, fused=True
        )
        self.groups, self.optimizer = base_optimizer.param_groups, wrap(base_optimizer, self.model, way, seed)
        rng, needed = np.random.RandomState(seed), steps * self.spec.batch_size
        self.order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-needed // len(rows)))])

    def step(self, t: int) -> None:
        """Step t of AdamW with linear warm-up and cosine."""
        warmup, batch = self.spec.warmup_steps, self.spec.batch_size
        fall = 0.5 * (1 + math.cos(math.pi * (t - warmup) / max(1, self.steps - warmup)))
        self.groups[0]["lr"] = self.lr * ((t + 1) / warmup if t < warmup else fall)
        rows = torch.from_numpy(self.order[t * batch : (t + 1) * batch])

        def closure() -> torch.Tensor:
            loss = answer_loss(self.model, self.ids[rows], self.lengths[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.clip)
            return loss

        self.optimizer.zero_grad()
        if hasattr(self.optimizer, "perturbation"):
            self.optimizer.step(closure)
        else:
            closure()
            self.optimizer.step()


def wrap(base: torch.optim.Optimizer, model: torch.nn.Module, way: Way, seed: int) -> Any:
    options = {"named_parameters": list(model.named_parameters()), **way.options}
    if way.kind == "plain":
        return base
    if way.kind == "sam":
        return SAM(base, **options)
    fixed = options.pop("fixed", False)
    others = None if way.kind == "noise" else []
    return (Fixed if fixed else MergOPT)(base, seed=seed, kernel="plain", others=others, **options)


@torch.no_grad()
def vector(model: torch.nn.Module, base: torch.nn.Module, snapshot: str = "float32") -> Weights:
    """A task vector as it is exchanged."""
    found = {n: p - q for (n, p), q in zip(model.named_parameters(), base.parameters())}
    if snapshot == "bfloat16":
        return {n: d.bfloat16().float() for n, d in found.items()}
    if snapshot == "int8":
        scales = {n: d.abs().max().clamp(min=1e-30) / 127 for n, d in found.items()}
        return {n: (d / scales[n]).round() * scales[n] for n, d in found.items()}
    if snapshot == "layers":
        return {n: d if "layers" in n and d.dim() > 1 else torch.zeros_like(d) for n, d in found.items()}
    if snapshot == "unit":  # what an expert of 75 steps moves by in the end, whatever the round
        norm = math.sqrt(sum(float(d.square().sum()) for d in found.values()))
        return {n: d * (4.0 / max(norm, 1e-30)) for n, d in found.items()}
    return {n: d.clone() for n, d in found.items()}


def train(base: torch.nn.Module, skills: Sequence[str], way: Way, steps: int, seed: int, lr: float) -> list[Weights]:
    """Task vectors of an expert a skill, in the order of the skills."""
    steps = round(steps * way.length)
    outsiders = [Learner(base, [skill], Way(), steps, seed, lr) for skill in skills[way.members :]]
    learners = [Learner(base, [skill], way, steps, seed, lr) for skill in skills[: way.members]]
    if way.kind == "experts":
        first = train(base, skills, Way(), steps, seed, lr)
        exchange(learners, first)
    rounds = steps - 1 if way.rounds < 0 else way.rounds
    exchanges = {round(steps * r / (rounds + 1)) for r in range(1, rounds + 1)} if way.kind == "pool" else set()
    for t in range(steps):
        if t in exchanges:
            exchange(learners, [vector(one.model, base, way.snapshot) for one in learners])
        for learner in [*learners, *outsiders]:
            learner.step(t)
    return [vector(one.model, base) for one in [*learners, *outsiders]]


def exchange(learners: Sequence[Learner], vectors: Sequence[Weights]) -> None:
    for k, learner in enumerate(learners):
        learner.optimizer.exchange([v for j, v in enumerate(vectors) if j != k])


class World:
    """A base, exams, and the merges of n that every way of training is judged by."""

    def __init__(self, size: str, seed: int, folder: Path, device: str, validation: int, test: int, experts: int):
        self.device, self.skills = device, list(settings().tasks)
        random.Random(seed).shuffle(self.skills)
        self.skills = self.skills[:experts]
        self.base = based(size, seed, folder, device)
        self.exams = {
            split: {skill: Exam(skill, n, split, device) for skill in self.skills}
            for split, n in (("validation", validation), ("test", test))
        }
        self.theta0 = {n: p.detach() for n, p in self.base.named_parameters()}
        self.live = copy.deepcopy(self.base)

    def score(self, weights: Weights, skills: Sequence[str], split: str) -> list[float]:
        """Accuracy on each skill."""
        with torch.no_grad():
            for name, p in self.live.named_parameters():
                p.copy_(weights[name])
        return [float(self.exams[split][skill].right(self.live).mean()) for skill in skills]

    def moved(self, update: Weights, scale: float = 1.0) -> Weights:
        return {n: w + scale * update[n] for n, w in self.theta0.items()}

    def update(self, merger: str, vectors: dict[str, Weights]) -> Weights:
        """What a merge adds to θ0 at λ = 1, by the methods of ``mergeopt_core.merging``."""
        method, parameters, _ = MERGERS[merger]
        merged = {}
        for name, base in self.theta0.items():
            experts = [(base + v[name]).cpu() for v in vectors.values()]
            found = merge_tensor(
                method, base.cpu(), experts, tensor_name=name, ids=list(vectors), parameters=parameters, seed=0
            )
            merged[name] = found.to(base.device) - base
        return merged


def based(size: str, seed: int, folder: Path, device: str) -> torch.nn.Module:
    """The base of a seed: made once, and kept in the folder."""
    file = folder / f"base-{size}-{seed}.pt"
    if not file.exists():
        draft = file.with_suffix(f".{os.getpid()}")
        torch.save(pretrain(size, seed, device).state_dict(), draft)
        draft.replace(file)
    spec = Base(name="tiny", hidden=SIZES[size]["hidden"], layers=SIZES[size]["layers"])
    model = fresh_model(spec, SYMBOLS)
    model.load_state_dict(torch.load(file, map_location="cpu"))
    return model.to(device)


@dataclass(frozen=True)
class Cell:
    """What one line of the results is of."""

    size: str
    steps: int
    seed: int
    way: str

    @property
    def device(self) -> str:
        return "cuda" if self.size == "5M" and torch.cuda.is_available() else "cpu"


def run(
    cell: Cell, folder: Path, numbers: Sequence[int], mergers: Sequence[str], subsets: int, experts: int
) -> dict[str, Any]:
    """Train, merge, choose λ on validation and score on test."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    world = World(cell.size, cell.seed, folder, cell.device, 100, 200, experts)
    start, lr = time.perf_counter(), SIZES[cell.size]["lr"]
    if cell.way == "base":
        return asdict(cell) | {"base": np.mean(world.score(world.theta0, world.skills, "test"))}
    if cell.way == "joint":
        steps = cell.steps * len(world.skills)
        joint = Learner(world.base, world.skills, Way(), steps, cell.seed, lr)
        for t in range(steps):
            joint.step(t)
        scores = world.score(world.moved(vector(joint.model, world.base)), world.skills, "test")
        return asdict(cell) | {"scores": dict(zip(world.skills, scores)), "train": time.perf_counter() - start}
    found = train(world.base, world.skills, WAYS[cell.way], cell.steps, cell.seed, lr)
    trained = time.perf_counter()
    vectors = dict(zip(world.skills, found))
    own = {skill: world.score(world.moved(vectors[skill]), [skill], "test")[0] for skill in world.skills}
    zero = dict(zip(world.skills, world.score(world.theta0, world.skills, "test")))
    merges = [merged(world, merger, group, vectors) for group in groups(world.skills, numbers, subsets, cell.seed)
              for merger in mergers]  # fmt: skip
    norms = [math.sqrt(sum(float(d.square().sum()) for d in v.values())) for v in found]
    return asdict(cell) | {
        "own": own, "base": zero, "merges": merges, "norm": float(np.mean(norms)), "prepare": start - begun,
        "train": trained - start, "score": time.perf_counter() - trained,
    }  # fmt: skip


def groups(skills: Sequence[str], numbers: Sequence[int], subsets: int, seed: int) -> Iterator[list[str]]:
    """Subsets that are merged: the first n skills, then others drawn by the seed."""
    for n in numbers:
        yield list(skills[:n])
        rng = random.Random(f"{seed} {n}")
        for _ in range(subsets - 1 if n < len(skills) else 0):
            yield sorted(rng.sample(list(skills), n), key=skills.index)


def merged(world: World, merger: str, group: list[str], vectors: dict[str, Weights]) -> dict[str, Any]:
    """Validation scores by λ, the λ chosen, and the test scores there."""
    update = world.update(merger, {skill: vectors[skill] for skill in group})
    tried = {
        scale: float(np.mean(world.score(world.moved(update, scale), group, "validation")))
        for scale in MERGERS[merger][2]
    }
    chosen = max(tried, key=lambda scale: tried[scale])
    scores = world.score(world.moved(update, chosen), group, "test")
    return {"merger": merger, "n": len(group), "group": group, "validation": tried, "scale": chosen, "scores": scores}


def cells(seeds: Sequence[int]) -> list[Cell]:
    """The grid, most important cells first."""
    core = [(size, steps, way) for size, steps in (("0.25M", 75), ("5M", 75), ("0.25M", 300), ("5M", 300))
            for way in CORE]  # fmt: skip
    order = [("0.25M", 75, way) for way in CORE] + [("0.25M", 300, way) for way in CORE[:5]]
    order += [("5M", steps, way) for steps in (75, 300) for way in [*CORE, "pool 5, outsiders"]]
    order += [(size, steps, "joint") for size, steps in (("0.25M", 75), ("5M", 75))]
    order += [("0.25M", 75, "pool 5, outsiders")] + [entry for entry in core if entry not in order]
    order += [("0.25M", 75, way) for way in WAYS if ("0.25M", 75, way) not in order]
    order += [("0.25M", 300, "pool 5, own exact"), ("0.25M", 300, "pool 5, outsiders"), ("0.25M", 300, "joint")]
    return [Cell(size, steps, seed, way) for size, steps, way in order for seed in seeds]


def grid(args: argparse.Namespace) -> None:
    """Run cells side by side until all are done or the time is over."""
    begun, folder = time.monotonic(), Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {tuple(json.loads(line)[key] for key in ("size", "steps", "seed", "way")) for line in lines}
    todo = [cell for cell in cells(args.seeds) if (cell.size, cell.steps, cell.seed, cell.way) not in done]
    todo = [cell for cell in todo if cell.size in args.sizes and (not args.ways or cell.way in args.ways)
            and (not args.steps or cell.steps in args.steps)]  # fmt: skip
    on_gpu = [cell for cell in todo if cell.device == "cuda"]
    on_cpu = [cell for cell in todo if cell.device == "cpu"]
    on_cpu = [*on_cpu] if not on_gpu or args.cpu_large else [cell for cell in on_cpu if cell.size != "5M"]
    workers = {"cuda": min(args.gpu_processes, len(on_gpu), args.processes - 1)}
    workers["cpu"] = max(1, args.processes - workers["cuda"])
    queues = {"cuda": on_gpu[::-1], "cpu": on_cpu[::-1]}
    pools = {name: ProcessPoolExecutor(count, get_context("spawn")) for name, count in workers.items() if count}
    running: dict[Future[Any], str] = {}
    options = (folder, args.numbers, args.mergers, args.subsets, args.experts)
    while True:
        for name, pool in pools.items():
            while queues[name] and list(running.values()).count(name) < workers[name]:
                running[pool.submit(run, queues[name].pop(), *options)] = name
        left = args.seconds - (time.monotonic() - begun)
        ended, _ = wait(running, timeout=max(0.0, left), return_when=FIRST_COMPLETED)
        if not ended:
            break
        for future in ended:
            del running[future]
            try:
                line = json.dumps(future.result())
            except Exception as error:  # one cell must not end the others
                print(f"failed: {type(error).__name__}: {error}", flush=True)
                continue
            with results.open("a") as file:
                file.write(line + "\n")
        print(f"{time.monotonic() - begun:.0f} s: {len(running)} running, {sum(map(len, queues.values()))} waiting")
    for pool in pools.values():
        children = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--gpu-processes", type=int, default=4)
    parser.add_argument("--cpu-large", action="store_true", help="run the large width on the CPU where there is no GPU")
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--out", default="outputs/pool_training")
    parser.add_argument("--report", help="folder of results: print its tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--steps", type=int, nargs="+")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, "joint"])
    parser.add_argument("--mergers", nargs="+", default=list(MERGERS), choices=MERGERS)
    parser.add_argument("--numbers", type=int, nargs="+", default=[2, 4, 7, 12])
    parser.add_argument("--subsets", type=int, default=2)
    parser.add_argument("--experts", type=int, default=12, help="that are trained, at most twelve")
    args = parser.parse_args()
    if args.report:
        from benchmarks.pool_tables import report

        return report(Path(args.report))
    grid(args)


if __name__ == "__main__":
    main()
