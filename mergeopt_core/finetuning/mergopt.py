"""MergOPT: gradients taken where a merge with others would put the weights.

With z ~ Laplace(μ, b) per element, α ~ Uniform(A) and K ~ Uniform{1, …, K_max} per optimizer step,

    θ ← base_step(θ, ∇L(θ + (Kα − 1) z)).

Task Arithmetic with coefficient α over K experts puts the weights at θ0 + α Σ_j Δ_j, which is the own expert's
θ + (α − 1) Δ_own + α Σ_{j≠own} Δ_j; one z in place of all K task vectors gives (Kα − 1) z (MergOPT, ICLR 2026,
Algorithm 1 and Eq. 5; authors' code: Yangqun123456/MergOPT).

Ours, where other experts' task vectors are at hand (``exchange``): these themselves in place of noise, those of a
random S of the others with |S| = K − 1, and the own one left as it is,

    θ ← base_step(θ, ∇L(θ + α Σ_{j∈S} Δ_j)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from mergeopt_core.finetuning.offset import Ascent, Offset, Shortfall
from mergeopt_core.finetuning.perturbation import Fill, PerturbedOptimizer
from mergeopt_core.finetuning.sampling import (
    DISTRIBUTIONS,
    Noise,
    add_noise,
    add_noise_compiled,
    mixed,
    noise_like,
    worth_compiling,
)
from mergeopt_core.finetuning.weights import Origin, ScaleFit

TaskVector = Mapping[str, Tensor]
"""Δ = θ − θ0 of an expert, by weight name."""

BLOCK = 1 << 18
"""Elements of another expert's task vector that are read at a time."""
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SCALE = 5e-4


class MergOPT(PerturbedOptimizer):
    """Wraps any torch optimizer so that it steps with gradients taken at θ + (Kα − 1) z.

    Args:
        base: The optimizer that steps at θ.
        alphas: Merge coefficients A that α is drawn from.
        max_tasks: K_max, the largest number of experts merged.
        loc: Mean μ of an element of z.
        scale: Laplace scale b of z, in the weights' own units; ``fitted``: per tensor, from the running fit of θ − θ0.
        distribution: laplace, or gaussian of the same standard deviation √2·b.
        seed: Fixes every α, K and z; all replicas of a model take the same one.
        own_vector: approximate, one z for all; exact, (α − 1)(θ − θ0) + α Σ z_j over K − 1 independent others.
        inner: sample; ascent, from the sample a few projected ascent steps on (α, K, z): needs ``step(closure)``.
        ascent_steps: Steps of the ascent, one gradient each.
        ascent_size: Step length of the ascent, as a share of the norm of z and of the range of Kα − 1.
        fit_start: ``scale="fitted"``: b before the weights have moved.
        fit_memory: ``scale="fitted"``: share of the old b that is kept at each step.
        theta0: θ0 of each weight that moves, where it is not the weights now, or what else knows θ − θ0 (fitted and
            exact only).
        kernel: plain; compiled, a faster one for the same noise; auto, compiled where it pays.
        others: The task vectors Δ_j of other experts by weight name, in place of noise; ``exchange`` renews them.
        which: The weights that move, as for ``PerturbedOptimizer``.

    Raises:
        ValueError: Empty ``alphas``, ``max_tasks`` < 1, ``scale`` < 0, an unknown name, or patterns that match nothing.
    """

    def __init__(
        self, base: Optimizer, alphas: Sequence[float] = ALPHAS, max_tasks: int = 7, loc: float = 0.0,
        scale: float | Literal["fitted"] = SCALE, distribution: str = "laplace", seed: int = 0, *,
        own_vector: str = "approximate", inner: str = "sample", ascent_steps: int = 3, ascent_size: float = 0.5,
        fit_start: float = SCALE, fit_memory: float = 0.9, theta0: Sequence[Tensor] | Origin | None = None,
        kernel: str = "auto", others: Sequence[TaskVector] | None = None, **which: Any,
    ):  # fmt: skip
        _check(alphas, max_tasks, scale, distribution, own_vector, inner, kernel)
        super().__init__(base, **which)
        self.alphas, self.max_tasks = tuple(float(a) for a in alphas), int(max_tasks)
        self.loc, self.distribution, self.seed = float(loc), distribution, int(seed)
        weights = self.perturbation.weights()
        moved = self.perturbation.moved
        self.places = list(accumulate((m.parameters[0].numel() for m in moved), initial=0))
        """Where each weight's noise begins in a stream; the last is the stream's length."""
        self.begin = [place + m.before() for place, m in zip(self.places, moved)]
        """Where that of this rank's rows begins: the same noise as for whole weights."""
        if any(m.mesh is not None for m in moved) and (scale == "fitted" or inner == "ascent"):
            raise ValueError("scale='fitted' and inner='ascent' need whole weights: do not shard them")
        if kernel == "auto":
            kernel = "compiled" if worth_compiling(self.places[-1], weights[0].device) else "plain"
        self.kernel, self.exact = kernel, own_vector == "exact"
        self.origin: Origin | None = None
        if self.exact or scale == "fitted":
            self.origin = theta0 if isinstance(theta0, Origin) else Origin(weights if theta0 is None else theta0)
        self.fit = ScaleFit(self.origin, self.loc, fit_start, fit_memory) if self.origin and scale == "fitted" else None
        self.scale = SCALE if isinstance(scale, str) else float(scale)
        self.ascent = self._ascent(ascent_steps, ascent_size) if inner == "ascent" else None
        self.others: Sequence[TaskVector] | None = None
        if others is not None:
            self.exchange(others)
        self.last_offset: Offset | None = None
        self.last_shortfall: Shortfall | None = None

    def exchange(self, others: Sequence[TaskVector]) -> None:
        """From the next step on take offsets from these task vectors; none at all: gradients are taken at θ.

        Each is asked for one tensor at a time whenever it is needed, and may be a mapped file: of one that has
        ``release()``, which is to give back what was read of it, ``BLOCK`` elements are held at a time.

        Raises:
            ValueError: With ``inner="ascent"``, which moves one z, or for weights without names.
        """
        if self.ascent:
            raise ValueError("inner='ascent' moves one z: it does not go with other experts' task vectors")
        if not all(moved.name for moved in self.perturbation.moved):
            raise ValueError("task vectors go by name: pass named_parameters=model.named_parameters()")
        self.others = tuple(others)

    @property
    def passes(self) -> int:
        """Gradients taken for one step."""
        return 1 + self.ascent.steps if self.ascent else 1

    def scale_of(self, i: int) -> float:
        """b of the i-th weight now."""
        return self.fit.scale_of(i) if self.fit else self.scale

    def draw(self, step: int) -> Offset:
        """The offset of an optimizer step: α, K and the seed of z, a function of the seed and the step alone."""
        alpha = self.alphas[mixed(self.seed, step, 1) % len(self.alphas)]
        most = self.max_tasks if self.others is None else min(self.max_tasks, len(self.others) + 1)
        return Offset(step, alpha, 1 + mixed(self.seed, step, 2) % most, mixed(self.seed, step, 3))

    def chosen(self, offset: Offset) -> list[int]:
        """S of an offset: the places of K − 1 of the others, each set as likely as any."""
        shuffled = sorted(range(len(self.others or ())), key=lambda j: mixed(offset.seed, j))
        return sorted(shuffled[: offset.tasks - 1])

    def noise(self, offset: Offset, expert: int = 0) -> dict[str | int, Tensor]:
        """z of an offset, drawn again: by weight name, or by place where weights have no names.

        With the exact own vector, ``expert`` is one of the others: 1, …, K − 1.
        """
        stream = self._stream(offset, expert)
        return {
            moved.name or i: noise_like(moved.weight, stream, self.begin[i], loc=self.loc, scale=self.scale_of(i))
            for i, moved in enumerate(self.perturbation.moved)
        }

    def _stream(self, offset: Offset, expert: int = 0) -> Noise:
        return Noise(offset.key(expert), self.distribution, self.places[-1])

    @contextmanager
    def perturbed(self) -> Iterator[Offset]:
        """Weights are θ + (Kα − 1) z inside, and θ again, bit for bit, outside.

        Any number of micro-batches may run inside, and the context may be entered again before the next ``step``: the
        offset is the same until the optimizer has stepped.
        """
        offset = self.move()
        try:
            yield offset
        finally:
            self.restore()

    def move(self) -> Offset:
        """Enter what ``perturbed`` encloses (for trainers that call back)."""
        if self.perturbation.active:
            raise RuntimeError("the weights are moved already: `perturbed()` does not nest")
        if self.ascent:
            raise RuntimeError("inner='ascent' takes several gradients: use `opt.step(closure)`")
        offset = self.draw(self.steps)
        single = self.others is None and not self.exact
        self.perturbation.move(self._fill(offset) if single else self._fill_terms(offset))
        self.last_offset, self.ready = offset, True
        return offset

    def _fill(self, offset: Offset) -> Fill:
        stream = self._stream(offset)
        return lambda i, weight, out: self._add(i, weight, out, offset.coefficient, stream)

    def _fill_terms(self, offset: Offset) -> Fill:
        """The exact own vector's term, where asked for, and a term for each of the K − 1 others."""
        origin = self.origin if self.exact else None
        streams = [self._stream(offset, j) for j in range(1, offset.tasks)] if self.others is None else []
        vectors = [self.others[j] for j in self.chosen(offset)] if self.others is not None else []

        def fill(i: int, weight: Tensor, out: Tensor) -> None:
            moved = out if out.dtype == weight.dtype else torch.empty_like(weight)  # masters: round once, at the end
            source = weight
            if origin is not None:
                source = torch.add(weight, origin.vector(i, weight), alpha=offset.alpha - 1.0, out=moved)
            for stream in streams:
                self._add(i, source, moved, offset.alpha, stream)
                source = moved
            for vector in vectors:
                _add_vector(self.perturbation.moved[i].name, vector, source, offset.alpha, moved)
                source = moved
            if source is not out:
                out.copy_(source)

        return fill

    def _add(self, i: int, weight: Tensor, out: Tensor, factor: float, stream: Noise) -> None:
        """Write the i-th weight plus a multiple of its part of a stream."""
        add = add_noise_compiled if self.kernel == "compiled" else add_noise
        add(weight, out, factor, stream, self.begin[i], loc=self.loc, scale=self.scale_of(i))

    def gradients(self, closure: Callable[[], Any]) -> Any:
        """Take the gradients that the base optimizer is to step with; the closure's loss at the moved weights."""
        self.zero_grad()
        if self.ascent:
            self.last_offset, self.last_shortfall, loss = self._climb(self.ascent, self.draw(self.steps), closure)
            self.ready = True
            return loss
        with self.perturbed(), torch.enable_grad():
            return closure()

    def shortfall(self, closure: Callable[[], Any], draws: int = 1, steps: int = 10, size: float = 0.5) -> Shortfall:
        """How far sampled offsets, of this step and the next ``draws``, fall short of what ascent finds from them.

        Nothing is stepped. The closure computes a loss and its gradients, and returns the loss; ``steps`` and ``size``
        are those of the ascent.
        """
        ascent = self._ascent(steps, size)
        found = [self._climb(ascent, self.draw(self.steps + k), closure)[1] for k in range(draws)]
        self.zero_grad()
        return Shortfall(sum(f.sampled for f in found) / draws, sum(f.worst for f in found) / draws)

    def _ascent(self, steps: int, size: float) -> Ascent:
        return Ascent(self.alphas, self.max_tasks, self.loc, int(steps), float(size))

    def _climb(self, ascent: Ascent, start: Offset, closure: Callable[[], Any]) -> tuple[Offset, Shortfall, Any]:
        z = list(self.noise(start).values())
        radius = math.sqrt(sum(2.0 * self.scale_of(i) ** 2 * zi.numel() for i, zi in enumerate(z)))

        def cleared() -> Any:
            self.zero_grad()
            return closure()

        return ascent.run(self.perturbation, start, z, radius, cleared)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As for every method; the running scale is then fitted to where the step led."""
        loss = super().step(closure)
        if self.fit:
            self.fit.update(self.perturbation.weights())
        return loss

    def extra_state(self) -> dict[str, Any]:
        """The random state and the running fit."""
        offset = asdict(self.last_offset) if self.last_offset else None
        state: dict[str, Any] = {"seed": self.seed, "last_offset": offset}
        state |= {"scales": list(self.fit.scales)} if self.fit else {}
        return state | ({"theta0": self.origin.checksum()} if self.origin else {})

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Go on where the saved run stopped.

        Raises:
            ValueError: θ0 is another one than the saved run's.
        """
        self.seed = state["seed"]
        self.last_offset = Offset(**state["last_offset"]) if state["last_offset"] else None
        if self.origin and "theta0" in state and state["theta0"] != self.origin.checksum():
            raise ValueError(
                "θ0 is not the one that the saved run started from: make the optimizer before loading trained weights, "
                "or pass theta0="
            )
        if self.fit and "scales" in state:
            self.fit.scales = list(state["scales"])


def _add_vector(name: str, vector: TaskVector, weight: Tensor, alpha: float, out: Tensor) -> None:
    """Write a weight plus α times its part of a task vector, block by block."""
    release = getattr(vector, "release", None)
    parts = [tensor.reshape(-1).split(BLOCK) for tensor in (weight, vector[name], out)]
    for here, delta, there in zip(*parts, strict=True):
        torch.add(here, delta.to(here.device, here.dtype), alpha=alpha, out=there)
        if release:
            release()


def _check(
    alphas: Sequence[float], max_tasks: int, scale: Any, distribution: str, own_vector: str, inner: str, kernel: str
) -> None:
    if not len(alphas):
        raise ValueError("alphas is empty: give one merge coefficient at least")
    if int(max_tasks) < 1:
        raise ValueError(f"max_tasks is {max_tasks}: it must be 1 or more")
    if isinstance(scale, str):
        if scale != "fitted":
            raise ValueError(f"scale is {scale!r}: give a number, or fitted")
    elif not scale >= 0:
        raise ValueError(f"scale is {scale}: the Laplace scale b cannot be negative")
    if own_vector not in ("approximate", "exact") or inner not in ("sample", "ascent"):
        raise ValueError("own_vector is approximate or exact, inner is sample or ascent")
    if own_vector == "exact" and inner == "ascent":
        raise ValueError("inner='ascent' moves one z: take own_vector='approximate' with it")
    for name, given, known in (
        ("distribution", distribution, DISTRIBUTIONS), ("kernel", kernel, ("auto", "plain", "compiled")),
    ):  # fmt: skip
        if given not in known:
            raise ValueError(f"unknown {name} {given!r}: valid names are {', '.join(known)}")
