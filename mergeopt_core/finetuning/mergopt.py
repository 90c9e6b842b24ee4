"""MergOPT: gradients taken where a merge with others would put the weights.

With z ~ Laplace(μ, b) per element, α ~ Uniform(A) and K ~ Uniform{1, …, K_max} per optimizer step,

    θ ← base_step(θ, ∇L(θ + (Kα − 1) z)).

Task Arithmetic with coefficient α over K experts puts the weights at θ0 + α Σ_j Δ_j, which is the own expert's
θ + (α − 1) Δ_own + α Σ_{j≠own} Δ_j; one z in place of all K task vectors gives (Kα − 1) z (MergOPT, ICLR 2026,
Algorithm 1 and Eq. 5; authors' code: Yangqun123456/MergOPT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mergeopt_core.finetuning import compiled
from mergeopt_core.finetuning.ascent import Ascent, Shortfall
from mergeopt_core.finetuning.offset import ALPHAS, MAX_TASKS, SCALE, Offset, Scale, check, draw
from mergeopt_core.finetuning.origin import LaplaceFit, Origin
from mergeopt_core.finetuning.perturbation import Perturbation, PerturbedOptimizer
from mergeopt_core.finetuning.sampling import Noise, add_noise, noise_like
from mergeopt_core.finetuning.selection import select


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
        named_parameters: Names for ``include`` and ``exclude``; default: the base optimizer's own.
        include: Shell patterns of the weights that move; default all trainable ones.
        exclude: Shell patterns of weights that stay.
        frozen: Let named parameters move that are not trained, such as the weights below low-rank adapters.
        masters: float32 masters of half-precision weights, by parameter: then nothing is copied.
        kernel: plain; compiled, a faster one for the same noise; auto, compiled where it pays.

    Raises:
        ValueError: Empty ``alphas``, ``max_tasks`` < 1, ``scale`` < 0, an unknown name, or patterns that match nothing.
    """

    def __init__(
        self, base: Optimizer, alphas: Sequence[float] = ALPHAS, max_tasks: int = MAX_TASKS, loc: float = 0.0,
        scale: Scale = SCALE, distribution: str = "laplace", seed: int = 0, *, own_vector: str = "approximate",
        inner: str = "sample", ascent_steps: int = 3, ascent_size: float = 0.5, fit_start: float = SCALE,
        fit_memory: float = 0.9, theta0: Sequence[Tensor] | Origin | None = None,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None, include: Sequence[str] = (),
        exclude: Sequence[str] = (), frozen: bool = False, masters: dict[Tensor, Tensor] | None = None,
        kernel: str = "auto",
    ):  # fmt: skip
        check(alphas, max_tasks, scale, distribution)
        if own_vector not in ("approximate", "exact") or inner not in ("sample", "ascent"):
            raise ValueError("own_vector is approximate or exact, inner is sample or ascent")
        if own_vector == "exact" and inner == "ascent":
            raise ValueError("inner='ascent' moves one z: take own_vector='approximate' with it")
        moved = select(base, named_parameters, include, exclude, frozen)
        super().__init__(base, Perturbation(moved, masters))
        self.alphas, self.max_tasks = tuple(float(a) for a in alphas), int(max_tasks)
        self.loc, self.distribution, self.seed = float(loc), distribution, int(seed)
        self.kernel = self._kernel(kernel)
        sizes = (w.numel() for w in self.perturbation.weights())
        self.places = list(accumulate(sizes, initial=0))
        """Where each weight's noise begins in a stream; the last is the stream's length."""
        self.exact = own_vector == "exact"
        known = self.exact or scale == "fitted"
        self.origin = _origin(theta0, self.perturbation) if known else None
        self.fit = (
            LaplaceFit(self.origin, self.loc, fit_start, fit_memory) if scale == "fitted" and self.origin else None
        )
        self.scale = SCALE if isinstance(scale, str) else float(scale)
        self.ascent = Ascent(self, ascent_steps, ascent_size) if inner == "ascent" else None
        self.last_offset: Offset | None = None
        self.last_shortfall: Shortfall | None = None

    def _kernel(self, kernel: str) -> str:
        if kernel not in ("auto", "plain", "compiled"):
            raise ValueError(f"unknown kernel {kernel!r}: valid names are auto, plain, compiled")
        weights = self.perturbation.weights()
        if kernel == "auto":
            kernel = "compiled" if compiled.worthwhile(sum(w.numel() for w in weights), weights[0].device) else "plain"
        return kernel

    @property
    def passes(self) -> int:
        """Gradients taken for one step."""
        return 1 + self.ascent.steps if self.ascent else 1

    def scale_of(self, i: int) -> float:
        """b of the i-th weight now."""
        return self.fit.scale_of(i) if self.fit else self.scale

    def draw(self, step: int) -> Offset:
        """The offset of an optimizer step: a function of the seed and the step alone."""
        return draw(self.seed, step, self.alphas, self.max_tasks)

    def noise(self, offset: Offset, expert: int = 0) -> dict[str | int, Tensor]:
        """z of an offset, drawn again: by weight name, or by place where weights have no names.

        With the exact own vector, ``expert`` is one of the others: 1, …, K − 1.
        """
        stream = self._stream(offset, expert)
        return {
            moved.name or i: noise_like(moved.weight, stream, self.places[i], loc=self.loc, scale=self.scale_of(i))
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
        self._move(offset)
        self.last_offset, self.ready = offset, True
        return offset

    def _move(self, offset: Offset) -> None:
        if not self.exact:
            stream = self._stream(offset)
            self.perturbation.move(lambda i, w, out: self._add(i, w, out, offset.coefficient, stream))
            return
        others = [self._stream(offset, expert) for expert in range(1, offset.tasks)]

        def fill(i: int, weight: Tensor, out: Tensor) -> None:
            assert self.origin is not None
            moved = out if out.dtype == weight.dtype else torch.empty_like(weight)
            torch.add(weight, self.origin.vector(i, weight), alpha=offset.alpha - 1.0, out=moved)
            for stream in others:
                self._add(i, moved, moved, offset.alpha, stream)
            if moved is not out:
                out.copy_(moved)

        self.perturbation.move(fill)

    def _add(self, i: int, weight: Tensor, out: Tensor, factor: float, stream: Noise) -> None:
        """Write the i-th weight plus a multiple of its part of a stream."""
        add = compiled.add_noise if self.kernel == "compiled" else add_noise
        add(weight, out, factor, stream, self.places[i], loc=self.loc, scale=self.scale_of(i))

    def gradients(self, closure: Callable[[], Any]) -> Any:
        """Take the gradients that the base optimizer is to step with; the closure's loss at the moved weights."""
        self.zero_grad()
        if self.ascent:
            self.last_offset, self.last_shortfall, loss = self.ascent.run(self.draw(self.steps), closure)
            self.ready = True
            return loss
        with self.perturbed(), torch.enable_grad():
            return closure()

    def shortfall(self, closure: Callable[[], Any], draws: int = 1, steps: int = 10, size: float = 0.5) -> Shortfall:
        """How far sampled offsets fall short of the worst case that ascent finds from them; nothing is stepped.

        Args:
            closure: Computes a loss and its gradients, and returns the loss.
            draws: Sampled offsets, of this step and the following ones.
            steps: Ascent steps from each.
            size: Step length of the ascent.
        """
        found = []
        for k in range(draws):
            found.append(Ascent(self, steps, size).run(self.draw(self.steps + k), closure)[1])
            self.zero_grad()
        return Shortfall.mean(found)

    def after_step(self) -> None:
        """Fit the scale to where the step led."""
        if self.fit:
            self.fit.update(self.perturbation.weights())

    def extra_state(self) -> dict[str, Any]:
        """The random state and the running fit."""
        state: dict[str, Any] = {
            "seed": self.seed,
            "last_offset": asdict(self.last_offset) if self.last_offset else None,
        }
        if self.fit:
            state["scales"] = list(self.fit.scales)
        if self.origin:
            state["theta0"] = self.origin.checksum()
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Go on where the saved run stopped."""
        self.seed = state["seed"]
        self.last_offset = Offset(**state["last_offset"]) if state["last_offset"] else None
        if self.origin and "theta0" in state:
            self.origin.check(state["theta0"])
        if self.fit and "scales" in state:
            self.fit.scales = list(state["scales"])


def _origin(theta0: Sequence[Tensor] | Origin | None, perturbation: Perturbation) -> Origin:
    if isinstance(theta0, Origin):
        return theta0
    return Origin(perturbation.weights() if theta0 is None else theta0)
