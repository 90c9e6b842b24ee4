"""Merge kernels against mergekit's and against the plain forms of the papers' code: time, error, memory.

    python -m benchmarks.merge                    # kernels on one CPU thread, about ten minutes
    python -m benchmarks.merge --quick            # smaller matrices, a minute: for a look, not for numbers
    python -m benchmarks.merge --device cuda      # spectral paths on a GPU: Gram, SVD, Newton–Schulz

Calls that are compared take turns within a round; a ratio is that of the medians over rounds, of CPU seconds on one
thread (of wall time on a GPU). An error is relative, of the update, against the same method in float64. The plain forms
are written here as the published codes have them: float32 SVDs of every matrix, gradients through the loss.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from mergekit.merge_methods.api import merge_tensors
from torch import Tensor

from mergeopt_core.merging import check_parameters, describe, merge_tensor, mergekit_api
from mergeopt_core.spectral.decompositions import newton_schulz
from mergeopt_core.spectral.spectrum import polar

NAME = "model.layers.0.mlp.up_proj.weight"
Timed = dict[str, Callable[[], object]]


def rounds(calls: Timed, count: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each call, taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.process_time if device == "cpu" else time.perf_counter
    for turn in range(count + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                taken[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def line(what: str, plain: float, ours: float, bar: float | None, more: str = "") -> None:
    """One result with its bar."""
    ratio = plain / ours
    verdict = "" if bar is None else f"  bar {bar:g}× {'met' if ratio >= bar else 'MISSED'}"
    print(f"{what:<46} {plain:9.4f} s {ours:9.4f} s {ratio:7.2f}×{verdict}  {more}", flush=True)


def world(
    count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, base: float = 0.02, device: str = "cpu"
):
    """A base and experts a small step away from it."""
    g = torch.Generator().manual_seed(0)
    origin = torch.randn(shape, generator=g) * base
    made = [origin, *(origin + 1e-3 * torch.randn(shape, generator=g) for _ in range(count))]
    first, *experts = (tensor.to(device, dtype) for tensor in made)
    return first, experts


def ours(name: str, base: Tensor, experts: list[Tensor], parameters: dict | None = None, **more) -> Tensor:
    """A merge through the program's own entry point."""
    ids = [f"e{k:02d}" for k in range(len(experts))] if "ids" not in more else more.pop("ids")
    return merge_tensor(name, base, experts, tensor_name=NAME, ids=ids, parameters=parameters or {}, seed=0, **more)


def mergekit(name: str, base: Tensor, experts: list[Tensor]) -> Tensor:
    """mergekit's own kernel in float32 arithmetic, at our defaults."""
    own = {p.name for p in mergekit_api.registry.get(name).spec.parameters}
    given = {k: v for k, v in check_parameters(name, {}, len(experts)).items() if k in own}
    with_base = describe(name).needs_base
    inputs = [base, *experts] if with_base else experts
    return merge_tensors(inputs, name, parameters=given, base_index=0 if with_base else None, dtype=torch.float32)


def copied(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


AGAINST_MERGEKIT = [
    # ours, theirs, experts, bar
    ("linear", "linear", 4, 1.0),
    ("task_arithmetic", "task_arithmetic", 4, 1.0),
    ("dare", "dare_linear", 4, 1.0),
    ("dare_linear", "dare_linear", 4, 1.0),
    ("dare_ties", "dare_ties", 4, 1.0),
    ("ties", "ties", 4, 8.0),
    ("ties", "ties", 12, 8.0),
    ("model_stock", "model_stock", 4, 1.0),
    ("model_stock", "model_stock", 12, 4.0),
]


def against_mergekit(quick: bool) -> None:
    """Elementwise kernels, on the tensors as checkpoints hold them."""
    shape = (512, 1024) if quick else (2048, 2048)
    for dtype in (torch.bfloat16, torch.float32):
        print(f"\nagainst mergekit's kernels, {shape[0]}×{shape[1]}, {str(dtype)[6:]}: mergekit, ours")
        for name, theirs, count, bar in AGAINST_MERGEKIT:
            base, experts = world(count, shape, dtype)
            calls: Timed = {
                "theirs": partial(mergekit, theirs, base, experts),
                "ours": partial(ours, name, base, experts),
                "read": partial(copied, [base, *experts]),
            }
            taken = rounds(calls, 2 if quick else 5)
            more = f"copying the same bytes takes {taken['read']:.4f} s"
            line(
                f"{name}, {count} experts" + ("" if name == theirs else f" ({theirs})"),
                taken["theirs"],
                taken["ours"],
                bar,
                more,
            )


def plain_iso_c(base: Tensor, experts: list[Tensor]) -> Tensor:
    """Iso-C by a float32 SVD, as published."""
    vectors = [expert - base for expert in experts]
    u, s, vh = torch.linalg.svd(sum(vectors) / len(vectors) * len(vectors), full_matrices=False)
    return base + torch.linalg.multi_dot((u, torch.diag(torch.ones_like(s) * s.mean()), vh))


def plain_boosting(base: Tensor, experts: list[Tensor]) -> Tensor:
    """Task Arithmetic + Subspace Boosting by a float32 SVD, as published."""
    vectors = [expert - base for expert in experts]
    u, s, vh = torch.linalg.svd(sum(vectors) / len(vectors), full_matrices=False)
    cutoff = int((torch.cumsum(s, dim=0) / s.sum() >= 0.2).float().argmax())
    return base + u @ torch.diag(torch.clamp(s, min=float(s[cutoff]))) @ vh


def plain_tsv_m(base: Tensor, experts: list[Tensor]) -> Tensor:
    """TSV-M by float32 SVDs, as published."""
    kept = int(min(base.shape) * (1 / len(experts)))
    for k, expert in enumerate(experts):
        u, s, vh = torch.linalg.svd(expert - base, full_matrices=False)
        if k == 0:
            us, ss, vs = torch.zeros_like(u), torch.zeros_like(s), torch.zeros_like(vh)
        place = slice(k * kept, (k + 1) * kept)
        us[:, place], ss[place], vs[place] = u[:, :kept], s[:kept], vh[:kept]
    a, _, b = torch.linalg.svd(us, full_matrices=False)
    c, _, d = torch.linalg.svd(vs, full_matrices=False)
    return base + torch.linalg.multi_dot((a, b, torch.diag(ss), c, d))


PLAIN = {"iso_c": (plain_iso_c, 1.2), "task_arithmetic_sb": (plain_boosting, 1.2), "tsv_m": (plain_tsv_m, None)}


def spectral(quick: bool) -> None:
    """Iso-C, Subspace Boosting and TSV-M against float32 SVDs, with their errors."""
    shapes = [(256, 256), (512, 256)] if quick else [(1024, 1024), (2048, 1024)]
    for shape in shapes:
        print(f"\nagainst float32 SVDs, {shape[0]}×{shape[1]}: plain, ours")
        for count in (4, 12):
            base, experts = world(count, shape, base=0.0)
            for name, (plain, bar) in PLAIN.items():
                exact = ours(name, base.double(), [e.double() for e in experts], {"spectral": "svd64"})
                calls: Timed = {"plain": partial(plain, base, experts), "ours": partial(ours, name, base, experts)}
                taken = rounds(calls, 1 if name == "tsv_m" else 3)
                errors = [
                    float((x.double() - exact).norm() / exact.norm())
                    for x in (plain(base, experts), ours(name, base, experts))
                ]
                more = f"errors {errors[0]:.1e} {errors[1]:.1e} ({errors[0] / errors[1]:.0f}× smaller)"
                line(f"{name}, {count} experts", taken["plain"], taken["ours"], bar, more)
                if name == "tsv_m":
                    kept: dict = {}
                    ours(name, base, experts, cache=kept)
                    factors = {key: value for key, value in kept.items() if key[0] == "factors"}
                    again = partial(with_factors, base, experts, factors)
                    cached = rounds({"ours": again}, 1 + 2 * (count == 4))
                    line(f"{name}, {count} experts, factors kept", taken["plain"], cached["ours"], 2.5)
        tsv_sweep(shape)


def with_factors(base: Tensor, experts: list[Tensor], factors: dict) -> Tensor:
    """TSV-M where each expert has been decomposed before."""
    return ours("tsv_m", base, experts, cache=dict(factors))


def tsv_sweep(shape: tuple[int, int]) -> None:
    """15 subsets of 6 from 12 experts, nothing computed before; five of them for the plain form."""
    base, experts = world(12, shape, base=0.0)
    draw = random.Random(0)
    subsets = [sorted(draw.sample(range(12), 6)) for _ in range(15)]
    start = time.process_time()
    for subset in subsets[:5]:
        plain_tsv_m(base, [experts[k] for k in subset])
    plain = (time.process_time() - start) * 3
    cache: dict = {}
    start = time.process_time()
    for subset in subsets:
        ours("tsv_m", base, [experts[k] for k in subset], ids=[f"e{k:02d}" for k in subset], cache=cache)
    line("tsv_m, sweep of 15 subsets of 6 from 12", plain, time.process_time() - start, 4.0)


def wudi(quick: bool) -> None:
    """WUDI by Gram matrices against gradients through its loss, and the distance of the two trajectories."""
    steps = 10 if quick else 30
    for shape in [(256, 256)] if quick else [(1024, 1024), (2048, 1024)]:
        print(f"\nWUDI, {shape[0]}×{shape[1]}, 4 experts, {steps} steps: autograd, ours")
        base, experts = world(4, shape, base=0.0)
        results: Timed = {
            path: partial(ours, "wudi", base, experts, {"iterations": steps, "gradient": path})
            for path in ("autograd", "gram")
        }
        taken = rounds(results, 1)
        a, b = (call() for call in results.values())
        line(
            "wudi",
            taken["autograd"],
            taken["gram"],
            6.0,
            f"trajectories differ by {float((a - b).norm() / a.norm()):.1e}",
        )


def on_gpu(device: str) -> None:
    """Polar factors by each path, with their errors against a float64 SVD."""
    for shape in ((1024, 1024), (4096, 1024), (4096, 4096)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        exact = polar(matrix.double(), "svd64")
        calls: Timed = {
            "svd": partial(polar, matrix, "svd", 0.0),
            "gram": partial(polar, matrix, "gram"),
            "newton_schulz": partial(newton_schulz, matrix),
        }
        taken = rounds(calls, 5, device)
        for name, seconds in taken.items():
            error = float((calls[name]().double() - exact).norm() / exact.norm())
            line(f"polar {shape[0]}×{shape[1]} {name}", taken["svd"], seconds, None, f"error {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.device != "cpu":
        on_gpu(given.device)
    else:
        torch.set_num_threads(1)
        against_mergekit(given.quick)
        spectral(given.quick)
        wudi(given.quick)


if __name__ == "__main__":
    main()
