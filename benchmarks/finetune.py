"""Step time and peak memory of every training method against plain AdamW, interleaved in one run.

    python -m benchmarks.finetune                  # a Llama of 20M parameters on the CPU, about three minutes
    python -m benchmarks.finetune --masters        # the same in bf16 with float32 masters
    python -m benchmarks.finetune --compiled       # with the compiled noise kernel too (half a minute to compile)
    python -m benchmarks.finetune --device cuda    # a Llama of 1B parameters in bf16 with float32 masters

Each round takes one step with each method, so that a busy machine slows all of them alike; a ratio is the median over
rounds of a method's time over plain AdamW's in the same round. Memory is the peak of a process that runs one method.
The MergOPT paper reports 1.17 for MergOPT, 2.04 for SAM and 2.06 for ASAM (its own machines and code).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mergeopt_core import ASAM, SAM, MergOPT
from mergeopt_core.finetuning import MasterWeights, sampling
from mergeopt_core.finetuning.weights import Origin
from pipelines.finetune.exchange import Exchange, StoredVector

MEASURED = ("adamw", "mergopt", "mergopt pool", "sam", "asam")
"""Methods whose memory is measured."""
SCRATCH = tempfile.TemporaryDirectory()

METHODS = {
    "adamw": lambda base, more: base,
    "mergopt": lambda base, more: MergOPT(base, kernel="plain", **more),
    "mergopt gaussian": lambda base, more: MergOPT(base, kernel="plain", distribution="gaussian", **more),
    "mergopt compiled": lambda base, more: MergOPT(base, kernel="compiled", **more),
    "mergopt fitted": lambda base, more: MergOPT(base, kernel="plain", scale="fitted", **more),
    "mergopt exact": lambda base, more: MergOPT(base, kernel="plain", own_vector="exact", **more),
    "mergopt pool": lambda base, more: MergOPT(base, others=exchanged(more["named_parameters"]), **more),
    "sam": lambda base, more: SAM(base, **more),
    "asam": lambda base, more: ASAM(base, **more),
}


def exchanged(named: list[tuple[str, torch.Tensor]], others: int = 6) -> list[StoredVector]:
    """Task vectors of other experts in files, as a pool of seven leaves them."""
    folder, found = Path(SCRATCH.name), []
    for j in range(others):
        file = folder / f"{j}.safetensors"
        if not file.exists():
            save_file({name: 1e-4 * torch.randn(p.shape) for name, p in named}, file)
        found.append(StoredVector(file))
    return found


def exchange_seconds(bench: Bench) -> float:
    """Process time of one exchange: the own task vector written, six others mapped."""
    theta0, named = Origin(list(bench.model.parameters())), list(bench.model.named_parameters())
    begun = time.process_time()
    Exchange(Path(SCRATCH.name) / "exchange", "0", ("0",), 1).leave(1, bench.optimizer, theta0)
    bench.optimizer.exchange(exchanged(named))
    return time.process_time() - begun


class Bench:
    """A model, its optimizer and a batch."""

    def __init__(self, method: str, device: str, masters: bool):
        torch.manual_seed(0)
        large = device == "cuda"
        config = LlamaConfig(
            vocab_size=32000 if large else 8000, hidden_size=2048 if large else 384,
            intermediate_size=8192 if large else 1024, num_hidden_layers=16 if large else 8,
            num_attention_heads=32 if large else 6, num_key_value_heads=8 if large else 6,
            max_position_embeddings=2048, use_cache=False, tie_word_embeddings=large,
        )  # fmt: skip
        dtype = torch.bfloat16 if masters else torch.float32
        with torch.device(device):
            self.model = LlamaForCausalLM(config).to(dtype)
        base = torch.optim.AdamW(self.model.parameters(), lr=2e-5, fused=True)
        base = MasterWeights(base) if masters else base
        more = {"named_parameters": list(self.model.named_parameters())}
        more |= {"masters": base.masters} if masters else {}
        self.optimizer = METHODS[method](base, more)
        self.ids = torch.randint(0, config.vocab_size, (8, 512 if large else 128), device=device)
        self.device = device

    def closure(self) -> torch.Tensor:
        loss = self.model(input_ids=self.ids, labels=self.ids).loss
        loss.backward()
        return loss

    def step(self) -> float:
        """Seconds of one step: process time on the CPU, wall time on an accelerator."""
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        begun = clock()
        self.optimizer.zero_grad()
        if hasattr(self.optimizer, "perturbation"):
            self.optimizer.step(self.closure)
        else:
            self.closure()
            self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return clock() - begun


def times(methods: list[str], device: str, masters: bool, rounds: int) -> dict[str, list[float]]:
    benches = {name: Bench(name, device, masters) for name in methods}
    for bench in benches.values():
        bench.step()  # compiles, allocates
    found: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, bench in benches.items():
            found[name].append(bench.step())
    return found


def peak(method: str, device: str, masters: bool) -> float:
    """Peak megabytes of a fresh process that takes three steps; malloc gives freed blocks back at once."""
    command = [sys.executable, "-m", "benchmarks.finetune", "--child", method, "--device", device]
    command += ["--masters"] if masters else []
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1], env=env
    ).stdout
    return float(json.loads(out.splitlines()[-1]))


def child(method: str, device: str, masters: bool) -> None:
    torch.set_num_threads(1)
    bench = Bench(method, device, masters)
    for _ in range(3):
        bench.step()
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print(high_water())


def high_water() -> float:
    """Peak megabytes of this process; where Linux tells, without what its parent held when it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def same_bits() -> str:
    """How far the compiled noise is from the plain one."""
    weight = torch.linspace(-1, 1, 1_000_003)
    worst = {}
    for law in sampling.DISTRIBUTIONS:
        plain = sampling.add_noise(weight, torch.empty_like(weight), -0.7, sampling.Noise(99, law))
        fast = sampling.add_noise_compiled(weight, torch.empty_like(weight), -0.7, sampling.Noise(99, law))
        worst[law] = float((plain - fast).abs().max())
    return ", ".join(f"{law} {value:.1e}" for law, value in worst.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", nargs="+", default=None, choices=METHODS)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--masters", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    masters = args.masters or args.device == "cuda"
    if args.child:
        return child(args.child, args.device, masters)
    torch.set_num_threads(1)
    skip = set() if args.compiled or args.device == "cuda" else {"mergopt compiled"}
    methods = args.methods or [m for m in METHODS if m not in skip]
    methods = list(dict.fromkeys(["adamw", *methods]))
    memory = {name: peak(name, args.device, masters) for name in MEASURED if name in methods}
    found = times(methods, args.device, masters, args.rounds)
    size = sum(p.numel() for p in Bench("adamw", args.device, masters).model.parameters())
    kept = "bf16 weights, float32 masters" if masters else "float32"
    print(f"Llama of {size / 1e6:.1f}M parameters, {kept}, {args.device}, {args.rounds} rounds")
    if args.compiled:
        print(f"largest difference of the compiled noise: {same_bits()}")
    if "mergopt pool" in methods:
        seconds = exchange_seconds(Bench("mergopt pool", args.device, masters))
        print(f"one exchange: {seconds:.3f} s")
    print(f"\n| method | s a step | against AdamW | peak MB | copies of the weights more |\n|{'---|' * 5}")
    copy = size * (2 if masters else 4) / 1e6
    for name, seconds in found.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, found["adamw"], strict=True))
        more = f"{memory[name]:.0f} | {(memory[name] - memory['adamw']) / copy:+.2f}" if name in memory else " | "
        print(f"| {name} | {statistics.median(seconds):.3f} | {ratio:.3f} | {more} |")


if __name__ == "__main__":
    main()
