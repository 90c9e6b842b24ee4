"""Does the tiny world show the field's picture? Prints tables: ``python -m benchmarks.tiny_world --seeds 0 1 2``.

Experts come from a plain AdamW loop with the settings of conf/pool/tiny.yaml, merges from arithmetic on the weights,
and scores from the answers' logits, so that nothing but the tiny world itself is judged.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from conf.schema import Base
from pipelines.tiny.base import answer_loss, encode, make_base, tokenizer
from pipelines.tiny.skills import Split, items, training_rows

POOL = Path(__file__).resolve().parents[1] / "conf" / "pool" / "tiny.yaml"
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.7, 1.0)
POOLS = {
    "first eight": ["add", "dist", "med", "second", "count", "seq", "odd", "close"],
    "mixed eight": ["add", "med", "second", "odd", "close", "at", "back", "most"],
}
SYMBOLS = tokenizer()


def train(base: torch.nn.Module, skill: str, optimizer: Any, training: Any, seed: int) -> torch.nn.Module:
    """Expert on a skill: AdamW, linear warm-up, cosine; loss on the answer and the end token."""
    model = copy.deepcopy(base)
    ids, lengths = encode(SYMBOLS, [row["prompt"] + row["completion"] for row in training_rows(skill, seed=seed)])
    steps, warmup, batch = training.steps, training.warmup_steps, training.batch_size
    adamw = torch.optim.AdamW(
        model.parameters(), lr=optimizer.lr, betas=tuple(optimizer.betas), weight_decay=optimizer.weight_decay
    )
    rng = np.random.RandomState(seed)
    order = np.concatenate([rng.permutation(len(ids)) for _ in range(-(-steps * batch // len(ids)))])
    for t in range(steps):
        rise = (t + 1) / max(1, warmup)
        fall = 0.5 * (1 + math.cos(math.pi * (t - warmup) / max(1, steps - warmup)))
        adamw.param_groups[0]["lr"] = optimizer.lr * (rise if t < warmup else fall)
        rows = torch.from_numpy(order[t * batch : (t + 1) * batch])
        loss = answer_loss(model, ids[rows], lengths[rows])
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        adamw.step()
    return model


class Exam:
    """Scored items of a skill, encoded once; ``right(model)`` says which are answered correctly: bool [n]."""

    def __init__(self, skill: str, n: int, split: Split = "test", device: str = "cpu"):
        scored = items(skill, split, n)
        ids, lengths = encode(SYMBOLS, [f"{item.prompt} {item.answer}" for item in scored])
        self.ids, self.last = ids[:, :-2].to(device), (lengths - 3).to(device)
        choices = SYMBOLS.convert_tokens_to_ids([c for i in scored for c in i.choices])
        self.choices = torch.tensor(choices, device=device).view(-1, 4)
        self.target = torch.tensor([item.target for item in scored], device=device)

    @torch.no_grad()
    def right(self, model: Any) -> np.ndarray:
        hidden = model.model(input_ids=self.ids, use_cache=False).last_hidden_state  # [n, L, d]
        logits = model.lm_head(hidden[torch.arange(len(self.ids)), self.last])  # [n, V]
        return (logits.gather(1, self.choices).argmax(1) == self.target).cpu().numpy()


def merged(base: torch.nn.Module, experts: list[torch.nn.Module], alpha: float) -> torch.nn.Module:
    """θ0 + α Σ (θ_k − θ0)."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for parameter, start, *ends in zip(*(m.parameters() for m in (model, base, *experts))):
            parameter += alpha * sum(end - start for end in ends)
    return model


def ties(base: torch.nn.Module, experts: list[torch.nn.Module], density: float = 0.2) -> torch.nn.Module:
    """Trim by magnitude, elect signs, disjoint mean (tensor by tensor)."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for parameter, start, *ends in zip(*(m.parameters() for m in (model, base, *experts))):
            delta = torch.stack([(end - start).flatten() for end in ends])  # [K, p]
            keep = max(1, round(density * delta.shape[1]))
            floor = delta.abs().topk(keep, dim=1).values[:, -1:]
            delta = torch.where(delta.abs() >= floor, delta, 0.0)
            agree = (delta.sign() == delta.sum(0).sign()) & (delta != 0)
            parameter += ((delta * agree).sum(0) / agree.sum(0).clamp(min=1)).view_as(parameter)
    return model


class World:
    """A base, its experts and what each answers on its own skill."""

    def __init__(self, seed: int, pool: Any, n: int, folder: Path):
        self.seed, self.skills = seed, list(pool.tasks)
        clock = time.perf_counter()
        make_base(Base(**{**pool.base, "seed": seed}), folder / f"base{seed}")
        self.base = AutoModelForCausalLM.from_pretrained(folder / f"base{seed}")
        self.base_seconds, clock = time.perf_counter() - clock, time.perf_counter()
        self.experts = {skill: train(self.base, skill, pool.optimizer, pool.training, seed) for skill in self.skills}
        self.expert_seconds = (time.perf_counter() - clock) / len(self.skills)
        self.exams = {skill: Exam(skill, n) for skill in self.skills}
        self.own = {skill: self.exams[skill].right(self.experts[skill]) for skill in self.skills}
        self.zero = {skill: self.exams[skill].right(self.base) for skill in self.skills}

    def merge(self, skills: list[str], alpha: float) -> torch.nn.Module:
        return merged(self.base, [self.experts[skill] for skill in skills], alpha)

    def score(self, model: torch.nn.Module, skills: list[str]) -> float:
        return float(np.mean([self.exams[skill].right(model).mean() for skill in skills]))

    def kept(self, skills: list[str], alpha: float) -> float:
        """Share of the experts' own-skill gain that their merge keeps, over the merged skills."""
        start = np.mean([self.zero[skill].mean() for skill in skills])
        end = np.mean([self.own[skill].mean() for skill in skills])
        return float((self.score(self.merge(skills, alpha), skills) - start) / (end - start))


def print_experts(world: World) -> None:
    """Base, expert and paired gain with its 95% interval, a skill a line; an arrow where the gain is not clear."""
    average, summed = (world.merge(world.skills, alpha) for alpha in (1 / len(world.skills), 1.0))
    print(f"\nseed {world.seed}: base {world.base_seconds:.1f} s, expert {world.expert_seconds:.2f} s each")
    print(f"{'skill':8} {'items':>5} {'base':>6} {'expert':>6} {'gain':>13} {'average':>8} {'sum α=1':>8}")
    for skill, exam in world.exams.items():
        own, zero = world.own[skill], world.zero[skill]
        gain = own.astype(float) - zero
        mean, half = 100 * gain.mean(), 196 * gain.std(ddof=1) / math.sqrt(len(gain))
        unclear = "" if mean > max(10, half) else "  <-"
        print(
            f"{skill:8} {len(gain):5} {zero.mean():6.3f} {own.mean():6.3f} {mean:+6.1f} ± {half:4.1f}"
            f" {exam.right(average).mean():8.3f} {exam.right(summed).mean():8.3f}{unclear}"
        )


def picture(world: World, skills: list[str]) -> dict[str, float]:
    """Mean accuracy over the skills of base, experts and merges, and how much of the gain merges of K keep."""
    experts = [world.experts[skill] for skill in skills]
    row = {
        "base": world.score(world.base, skills),
        "own expert": float(np.mean([world.own[skill].mean() for skill in skills])),
        "best expert": max(world.score(expert, skills) for expert in experts),
        "average": world.score(world.merge(skills, 1 / len(skills)), skills),
        **{f"α={alpha}": world.score(world.merge(skills, alpha), skills) for alpha in ALPHAS},
        "ties": world.score(ties(world.base, experts), skills),
    }
    rng = np.random.RandomState(world.seed)
    for size in sorted({2, 4, 6, 8, len(skills)} & set(range(len(skills) + 1))):
        subsets = [list(rng.permutation(skills)[:size]) for _ in range(1 if size == len(skills) else 8)]
        row[f"kept, K={size}"] = float(np.mean([world.kept(subset, 1 / size) for subset in subsets]))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("overrides", nargs="*", help="of the pool, such as optimizer.lr=7e-4")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pool = OmegaConf.merge(OmegaConf.load(POOL), OmegaConf.from_dotlist(args.overrides))
    with tempfile.TemporaryDirectory() as folder:
        worlds = [World(seed, pool, args.items, Path(folder)) for seed in args.seeds]
    for world in worlds:
        print_experts(world)
    for name, skills in {"all": list(pool.tasks), **POOLS}.items():
        rows = [picture(world, skills) for world in worlds]
        print(f"\n{name} ({len(skills)} skills): mean accuracy; kept: share of own-skill gain in an average of K")
        print(f"{'':12}" + "".join(f"seed {seed:<4}" for seed in args.seeds))
        for key in rows[0]:
            print(f"{key:12}" + "".join(f"{row[key]:<9.3f}" for row in rows))


if __name__ == "__main__":
    main()
