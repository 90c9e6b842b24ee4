"""What speaks for and against a merge before one is made: configs, norms, cosines, signs, ranks, shared directions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from conf.errors import UserError
from mergeopt_core.geometry import cosines, gram
from mergeopt_core.merging.matrices import is_selected
from mergeopt_core.merging.trimming import trim
from pipelines.checkpoints.checkpoint import OpenCheckpoint
from pipelines.checkpoints.headers import Mismatch
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge
from pipelines.progress import SILENT, Progress

LEADING = 16
"""Directions of a matrix that are looked at."""
LARGEST = 0.2
"""Share of an expert's largest entries in a tensor whose signs are compared."""
CONFLICT = 0.55
"""Of them, the share that differs in sign beyond which it is worth a word: half differ by chance."""
FEW = 3
"""More pairs than these that show the same are one finding."""


@dataclass
class Finding:
    """One thing that speaks for a merge, against it, or is to be known, in plain words."""

    state: str
    """for, against or note."""
    subject: str
    what: str
    do: str = ""


@dataclass
class Diagnosis:
    """Sums over the tensors of one pass, K experts; what they come to is in ``numbers`` and ``findings``."""

    experts: list[str]
    dtypes: list[str]
    grams: Tensor
    """Inner products of the task vectors, ``[K, K]``."""
    base: float = 0.0
    """‖θ0‖²."""
    entries: int = 0
    still: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Entries that an expert does not change, ``[K]``."""
    sizes: float = 0.0
    """Σ_k ‖Δ_k‖₁."""
    summed: float = 0.0
    """‖Σ_k Δ_k‖₁."""
    both: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Entries among the largest of two experts, ``[K, K]``."""
    opposed: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Those of them whose signs differ, ``[K, K]``."""
    energy: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Σ over linear layers of ‖Δ_k‖², ``[K]``."""
    leading: Tensor = field(default_factory=lambda: torch.zeros(0))
    """The part of it along the leading directions, ``[K]``."""
    overlap: list[Tensor] = field(default_factory=list)
    """Of every linear layer, how much of one's change lies in another's directions, ``[K, K]``: 0 by chance, 1 all."""

    def numbers(self) -> dict[str, Any]:
        """What was measured, for machines."""
        names, norm = self.experts, self.grams.diagonal().sqrt()
        cosine, pairs = cosines(self.grams), list(itertools.combinations(range(len(names)), 2))
        shared = torch.stack(self.overlap).mean(dim=0) if self.overlap else None

        def each(values: Tensor) -> dict[str, float]:
            return {name: float(value) for name, value in zip(names, values)}

        return {
            "norm": each(norm),
            "relative_norm": each(norm / max(self.base, 1e-300) ** 0.5),
            "unchanged_share": each(self.still / max(self.entries, 1)),
            "leading_energy": each(self.leading / self.energy.clamp(min=1e-300)),
            "cancelled_share": 1 - self.summed / self.sizes if self.sizes else 0.0,
            "pairs": [
                {
                    "experts": [names[i], names[j]],
                    "cosine": None if cosine[i, j].isnan() else float(cosine[i, j]),
                    "sign_conflict": float(self.opposed[i, j] / max(float(self.both[i, j]), 1.0)),
                    "subspace_overlap": float(shared[i, j]) if shared is not None else None,
                }
                for i, j in pairs
            ],
        }


def diagnose(
    base: OpenCheckpoint, experts: Mapping[str, OpenCheckpoint], progress: Progress = SILENT, **match: Any
) -> tuple[list[Finding], dict[str, Any]]:
    """Findings, those against a merge first, and the numbers behind them; base and experts are read once.

    What keeps experts from being merged at all is found from headers, and no weight is read then. ``match`` are the
    recipe's ``vocab`` and ``strict``. Raises ``UserError`` where no experts are given.
    """
    if not experts:
        raise UserError("there is nothing to diagnose", where="experts", do="name experts: experts=[a,b]")
    paths = tuple(expert.path for expert in experts.values())
    merge = Merge(Recipe(base.path, paths, "task_arithmetic", **match), base, list(experts.values()), list(experts))
    if problems := merge.problems():
        return [*_of_problems(problems)], {}
    notes = [Finding("note", "checkpoints", note) for note in merge.layout.notes]
    numbers = (measured := _measure(merge, list(experts), progress)).numbers()
    found = [*_of_experts(measured, numbers), *_of_pairs(numbers), *notes]
    order = ("against", "for", "note")
    return sorted(found, key=lambda finding: order.index(finding.state)), numbers


def _of_problems(problems: Sequence[Mismatch]) -> Iterator[Finding]:
    """What keeps models from being merged; tensors of which the same is wrong are one finding."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for problem in sorted(problems, key=lambda p: bool(p.tensor)):
        alike.setdefault((problem.who, problem.what, problem.do), []).append(problem.tensor)
    for (who, what, do), names in alike.items():
        about = f"{names[0]} {what}" if names[0] else what
        yield Finding("against", who, about + (f" (and {len(names) - 1} more tensors)" if names[1:] else ""), do)


def _measure(merge: Merge, names: list[str], progress: Progress) -> Diagnosis:
    count = len(names)
    square = torch.zeros(count, count, dtype=torch.float64)
    dtypes = [Counter(info.dtype for info in e.header.values()).most_common(1)[0][0] for e in merge.experts]
    sums = Diagnosis(names, dtypes, square.clone(), still=square[0].clone(), both=square.clone())
    sums.opposed, sums.energy, sums.leading = square.clone(), square[0].clone(), square[0].clone()
    layers = {name: info for name, info in merge.layout.outputs.items() if info.merged and info.count}
    with progress.step("task vectors", len(layers)) as step, torch.no_grad():
        for name, base, experts in merge.inputs():
            if name in layers:
                _add(sums, name, base, experts)
                step.advance(1)
    return sums


def _add(sums: Diagnosis, name: str, base: Tensor, experts: list[Tensor]) -> None:
    """Add one tensor of every model."""
    products, anchor = gram(base, experts), base.float()
    if bool((~products.isfinite()).any()):
        raise UserError(f"{name} holds values that are not finite", do="check the checkpoints")
    deltas = torch.stack([expert.float() - anchor for expert in experts])  # [K, *shape]
    sums.grams += products
    sums.base += float(anchor.double().square().sum())
    sums.entries += base.numel()
    sums.still += (deltas == 0).flatten(1).sum(dim=1).cpu()
    sums.sizes += float(deltas.abs().sum(dtype=torch.float64))
    sums.summed += float(deltas.sum(dim=0).abs().sum(dtype=torch.float64))
    signs = torch.stack([trim(delta, LARGEST).sign().flatten() for delta in deltas])  # [K, n]
    both, agree = signs.abs() @ signs.abs().mT, signs @ signs.mT
    sums.both += both.cpu()
    sums.opposed += ((both - agree) / 2).cpu()
    if is_selected(name, base.shape, "linear"):
        _add_directions(sums, deltas)


def _add_directions(sums: Diagnosis, deltas: Tensor) -> None:
    """Leading left directions by two steps of subspace iteration, their energy, and how far experts share them."""
    rows, columns = deltas.shape[1:]
    rank = min(LEADING, rows, columns)
    start = torch.randn(columns, rank, generator=torch.Generator().manual_seed(0)).to(deltas)
    subspace = deltas @ start
    for _ in range(2):
        subspace = deltas @ (deltas.mT @ torch.linalg.qr(subspace).Q)
    inside = torch.stack([(q.mT @ deltas).square().sum(dim=(1, 2)) for q in torch.linalg.qr(subspace).Q])  # of i, [j]
    energy = deltas.square().sum(dim=(1, 2))
    sums.leading += inside.diagonal().double().cpu()
    sums.energy += energy.double().cpu()
    if rank < rows:  # else every subspace is the whole space
        share, chance = inside / energy.clamp(min=1e-30), rank / rows
        beyond = ((share + share.mT) / 2 - chance) / (1 - chance)
        sums.overlap.append(torch.where((energy[:, None] > 0) & (energy > 0), beyond.double(), 0.0).cpu())


def _of_experts(measured: Diagnosis, numbers: dict[str, Any]) -> Iterator[Finding]:
    """What every expert, and all of them together, show."""
    norm = numbers["norm"]
    moved = {name: value for name, value in norm.items() if value > 0}
    for name in norm:
        if name not in moved:
            yield Finding("against", name, "is the base itself: it has nothing to merge", "leave it out")
    for name, dtype in zip(norm, measured.dtypes):
        share, far = numbers["unchanged_share"][name], numbers["relative_norm"][name]
        if name in moved and far > 0.5:
            what = f"its change is {far:.0%} of the base's norm: it may come from another base, or from long training"
            yield Finding("against", name, what, "check that it was trained from this base")
        if name in moved and share > 0.5 and dtype in ("bfloat16", "float16"):
            what = f"{share:.0%} of its weights are the base's to the bit: {dtype} rounds small updates away"
            yield Finding("note", name, what, "use a float32 checkpoint where there is one")
        if name in moved and numbers["leading_energy"][name] > 0.999:
            what = f"its linear layers change along {LEADING} directions at most (a merged LoRA adapter)"
            do = "give rank_tolerance=1e-4 to spectral methods, or extract it and use knots or core_space"
            yield Finding("note", name, what, do)
    if len(moved) > 1:
        longest, shortest = max(moved, key=moved.__getitem__), min(moved, key=moved.__getitem__)
        ratio = moved[longest] / moved[shortest]
        if ratio > 3:
            what = f"{longest} changed {ratio:.1f} times as much as {shortest}: a plain sum is mostly {longest}"
            yield Finding("against", "norms", what, "weigh them (method.weight), or choose doge, which evens them out")
        elif ratio < 1.5:
            yield Finding("for", "norms", f"all experts changed alike much (at most {ratio:.2f} times)")
        chance = 1 - len(moved) ** -0.5
        cancelled = numbers["cancelled_share"]
        what = f"{cancelled:.0%} of all change cancels in the sum; of unrelated experts {chance:.0%} would"
        worse = cancelled > 1.1 * chance
        yield Finding("against" if worse else "for" if cancelled < 0.8 * chance else "note", "sum", what)


def _of_pairs(numbers: dict[str, Any]) -> Iterator[Finding]:
    """What every two experts show; of many pairs that show the same, the one that shows it most."""
    alike: dict[str, list[tuple[float, Finding]]] = {}
    for kind, size, finding in _of_each_pair(numbers):
        alike.setdefault(kind, []).append((size, finding))
    for found in alike.values():
        if len(found) <= FEW:
            yield from (finding for _, finding in found)
        else:
            _, most = max(found, key=lambda pair: pair[0])
            subject = f"{len(found)} of {len(numbers['pairs'])} pairs, most {most.subject}"
            yield replace(most, subject=subject)


def _of_each_pair(numbers: dict[str, Any]) -> Iterator[tuple[str, float, Finding]]:
    """What speaks for and against merging two experts: of what kind it is, and how far it goes."""
    for pair in numbers["pairs"]:
        subject, cosine = " and ".join(pair["experts"]), pair["cosine"]
        if cosine is None:  # one of them is the base itself
            continue
        if cosine > 0.95:
            what = f"are nearly one model (cosine {cosine:.2f}): a sum counts it twice"
            do = "leave one out, or average: method.normalize=true, or svc"
            yield "one", cosine, Finding("against", subject, what, do)
        elif cosine < -0.05:
            what = f"point against each other (cosine {cosine:.2f})"
            do = "expect losses on both; try ties, or leave one out"
            yield "against", -cosine, Finding("against", subject, what, do)
        elif cosine < 0.2:
            what = f"are nearly orthogonal (cosine {cosine:.2f}): a sum keeps most of both"
            yield "orthogonal", abs(cosine), Finding("for", subject, what)
        else:
            what = f"share part of their change (cosine {cosine:.2f}): a smaller λ suits a sum"
            yield "shared", cosine, Finding("note", subject, what)
        if pair["sign_conflict"] > CONFLICT:
            what = f"{pair['sign_conflict']:.0%} of the entries that are among the largest of both differ in sign"
            do = "choose a method that elects signs: ties, della"
            yield "signs", pair["sign_conflict"], Finding("against", subject, what, do)
        overlap = pair["subspace_overlap"]
        if overlap is not None and overlap > 0.3 and cosine <= 0.95:
            what = f"each changes much along the other's leading directions ({overlap:.0%} beyond chance)"
            yield "directions", overlap, Finding("note", subject, what, "svc and iso_c count shared directions once")
