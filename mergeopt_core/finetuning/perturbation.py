"""The one idea: the gradient is taken at θ + ε, the weights come back bit for bit, the base optimizer steps at θ."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Fill = Callable[[int, Tensor, Tensor], object]
"""``fill(i, weight, out)`` writes θ_i + ε_i to ``out``; ``out`` is contiguous and of the weight's shape."""


@dataclass(frozen=True)
class Moved:
    """One weight that moves: its name and every parameter object that shares it."""

    name: str
    parameters: tuple[Tensor, ...]

    @property
    def weight(self) -> Tensor:
        """The weight itself; of a sharded one (FSDP's ``fully_shard``) this rank's rows."""
        return local(self.parameters[0].detach())

    @property
    def mesh(self) -> Any:
        """The ranks that hold rows of a sharded weight; None where each has all."""
        return getattr(self.parameters[0], "device_mesh", None)

    def before(self) -> int:
        """Elements of the whole weight before those of ``weight``.

        Raises:
            ValueError: Shards that are not the rows of one dimension of ranks.
        """
        if self.mesh is None:
            return 0
        whole: Any = self.parameters[0]
        if self.mesh.ndim != 1 or not whole.placements[0].is_shard(0):
            raise ValueError(
                f"{self.name}: shards are to be rows, over one dimension of ranks, as fully_shard makes them"
            )
        rows = len(whole)
        each = -(-rows // self.mesh.size())
        return min(self.mesh.get_local_rank() * each, rows) * (whole.numel() // max(rows, 1))


def local(tensor: Any) -> Tensor:
    """A tensor as it is; of a sharded one this rank's part, in its own memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def select(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]] | None = None, include: Sequence[str] = (),
    exclude: Sequence[str] = (), frozen: bool = False,
) -> list[Moved]:  # fmt: skip
    """The weights that move, in order of their first appearance; for the arguments see ``PerturbedOptimizer``.

    Raises:
        ValueError: A pattern that matches nothing, patterns without names, or nothing that moves.
    """
    if named_parameters is None:
        groups = optimizer.param_groups
        named_parameters = [pair for g in groups for pair in zip(g.get("param_names", repeat("")), g["params"])]
    found = [(n, p) for n, p in named_parameters if (frozen or p.requires_grad) and p.is_floating_point()]
    if (include or exclude) and any(not n for n, _ in found):
        raise ValueError("include and exclude need names: pass named_parameters=model.named_parameters()")
    names = [n for n, _ in found]
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(n, pattern) for n in names):
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise ValueError(f"the pattern {pattern!r} matches no weight; nearest names: {', '.join(close)}")
    # parameters that are one object, or whose storage is the same, are one weight
    weights: dict[tuple, tuple[str, dict[int, Tensor]]] = {}
    for name, p in found:
        included = not include or any(fnmatchcase(name, pattern) for pattern in include)
        if included and not any(fnmatchcase(name, pattern) for pattern in exclude):
            storage = (p.device, local(p.detach()).data_ptr() or id(p), p.shape, p.stride())
            weights.setdefault(storage, (name, {}))[1][id(p)] = p
    if not weights:
        raise ValueError("no weight is left to move: include, exclude and requires_grad leave nothing")
    return [Moved(name, tuple(tied.values())) for name, tied in weights.values()]


class Perturbation:
    """Moves weights and brings them back exactly, by swapping which memory the parameters point to.

    The moved weights live in buffers of their own (one extra copy of what moves, kept between steps), so θ itself is
    never written: there is no rounding to undo. Where float32 masters of the weights exist, the working weights are
    moved in place and brought back from the masters, at no extra copy. Shards are moved in place too, since FSDP
    gathers from their memory: they are brought back from the extra copy.
    """

    def __init__(self, moved: Sequence[Moved], masters: Mapping[Tensor, Tensor] | None = None):
        self.moved = list(moved)
        found = [masters.get(m.parameters[0]) if masters else None for m in self.moved]
        self._masters = [None if master is None else local(master.detach()) for master in found]
        self._buffers: list[Tensor | None] = [None] * len(self.moved)
        self._home: list[Tensor] | None = None

    @property
    def active(self) -> bool:
        """Whether the weights are away from θ now."""
        return self._home is not None

    def weights(self) -> list[Tensor]:
        """θ, whether or not the weights are away: the masters where they exist."""
        now = self._home if self._home is not None else [m.weight for m in self.moved]
        return [w if master is None else master for w, master in zip(now, self._masters)]

    @torch.no_grad()
    def move(self, fill: Fill) -> None:
        """Put every weight at θ + ε; called again while away, it moves them from θ anew.

        Whatever ``fill`` raises, the weights are back at θ.
        """
        if self._home is None:
            self._home = [self._kept(i, m) for i, m in enumerate(self.moved)]
        theta = self.weights()
        try:
            for i, (moved, home) in enumerate(zip(self.moved, self._home)):
                if moved.mesh is not None:
                    fill(i, theta[i], moved.weight)
                    continue
                place = home if self._masters[i] is not None else self._buffer(i, home)
                fill(i, theta[i], place)
                for p in moved.parameters:
                    p.data = place
        except BaseException:
            self.restore()
            raise
        torch.clear_autocast_cache()

    @torch.no_grad()
    def restore(self) -> None:
        """Bring θ back, bit for bit; does nothing where the weights are at home."""
        if self._home is None:
            return
        for moved, home, master in zip(self.moved, self._home, self._masters):
            if master is not None:
                home.copy_(master)
            if moved.mesh is not None:
                moved.weight.copy_(home)
                continue
            for p in moved.parameters:
                p.data = home
        self._home = None
        torch.clear_autocast_cache()

    def gradients(self) -> list[Tensor | None]:
        """The gradient of every weight that moves; of tied parameters, their sum."""
        parts = [[local(p.grad) for p in moved.parameters if p.grad is not None] for moved in self.moved]
        return [sum(grads[1:], grads[0]) if grads else None for grads in parts]

    @contextmanager
    def with_gradients(self) -> Iterator[None]:
        """Weights that move without being trained get gradients inside, which ``zero_grad`` clears."""
        frozen = [p.requires_grad_(True) for m in self.moved for p in m.parameters if not p.requires_grad]
        try:
            yield
        finally:
            for p in frozen:
                p.requires_grad_(False)

    def norm(self, own: Tensor) -> float:
        """The norm over all ranks' shards, from that of this rank's."""
        if (mesh := self.moved[0].mesh) is not None:
            torch.distributed.all_reduce(own.square_(), group=mesh.get_group())
            own.sqrt_()
        return float(own)

    def _kept(self, i: int, moved: Moved) -> Tensor:
        """Where θ is while the weight is away, unless there is a master of it."""
        weight = moved.weight
        return weight if moved.mesh is None or self._masters[i] is not None else self._buffer(i, weight).copy_(weight)

    def _buffer(self, i: int, home: Tensor) -> Tensor:
        buffer = self._buffers[i]
        if buffer is None or buffer.device != home.device or buffer.dtype != home.dtype:
            buffer = self._buffers[i] = torch.empty(home.shape, dtype=home.dtype, device=home.device)
        return buffer


class PerturbedOptimizer(Optimizer):
    """A base optimizer whose gradients are taken away from θ; shares its parameter groups and state.

    Learning-rate schedulers and clipping work on it as they do on the base. ``state_dict`` is the
    base's with one more entry, ``perturbation``.

    Args:
        base: The optimizer that steps at θ.
        named_parameters: Names for ``include`` and ``exclude``; default: the base optimizer's own.
        include: Shell patterns of the weights that move; default all trainable ones.
        exclude: Shell patterns of weights that stay.
        frozen: Let named parameters move that are not trained, such as the weights below low-rank adapters.
        masters: float32 masters of half-precision weights, by parameter: then nothing is copied.

    Raises:
        ValueError: Patterns that match nothing.
    """

    def __init__(
        self, base: Optimizer, *, named_parameters: Iterable[tuple[str, Tensor]] | None = None,
        include: Sequence[str] = (), exclude: Sequence[str] = (), frozen: bool = False,
        masters: Mapping[Tensor, Tensor] | None = None,
    ):  # fmt: skip
        super().__init__(base.param_groups, base.defaults)
        self.base = base
        self.perturbation = Perturbation(select(base, named_parameters, include, exclude, frozen), masters)
        self.steps, self.ready = 0, False
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state, self.defaults = self.base.param_groups, self.base.state, self.base.defaults

    def gradients(self, closure: Callable[[], Any]) -> Any:
        """Take the gradients that the base optimizer is to step with, running the closure once or more."""
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """What a method adds to the state dict."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what ``extra_state`` gave."""

    def restore(self) -> None:
        """Bring θ back, bit for bit."""
        self.perturbation.restore()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let the base optimizer step at θ, with gradients taken at moved weights before, or by the closure now.

        Raises:
            RuntimeError: While the weights are moved, or when no gradient was taken at moved weights since.
        """
        if self.perturbation.active:
            raise RuntimeError("the weights are moved: bring them back before the step")
        loss = self.gradients(closure) if closure is not None else None
        if not self.ready:
            raise RuntimeError(
                "no gradient was taken at moved weights: backward belongs inside `perturbed()` or a closure"
            )
        self.base.step()
        self.steps, self.ready = self.steps + 1, False
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the base optimizer's parameters and of everything that moves."""
        for moved in self.perturbation.moved:
            for p in moved.parameters:
                p.grad = None
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, and the perturbation's under ``perturbation``."""
        if self.perturbation.active:
            raise RuntimeError("the weights are moved: bring them back before saving")
        return {**self.base.state_dict(), "perturbation": {"steps": self.steps, **self.extra_state()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state dict; one of the bare base optimizer leaves the perturbation as it is."""
        rest = dict(state_dict)
        extra = rest.pop("perturbation", None)
        self.base.load_state_dict(rest)
        self._share()
        if extra is not None:
            self.steps = extra["steps"]
            self.load_extra_state(extra)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; its parameters are trained but do not move."""
        if hasattr(self, "base"):
            self.base.add_param_group(param_group)
        else:  # during construction: this view of the base's groups
            super().add_param_group(param_group)
