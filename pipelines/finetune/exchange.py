"""Task vectors of other experts, read a tensor at a time: those of a pool's members, left in files, and given experts'.

A pool's experts are trained in stretches of equal length. At the end of each every member leaves its task vector, and
all go on once all have, with gradients taken where a merge with the others would put the weights.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from conf.errors import UserError
from mergeopt_core.finetuning.weights import Origin
from pipelines.checkpoints.checkpoint import MappedFile, OpenCheckpoint
from pipelines.checkpoints.headers import Place, TensorInfo, read_safetensors_header
from pipelines.checkpoints.write import Shard, ShardWriter

FILE = "task_vector.safetensors"


class StoredVector(Mapping[str, Tensor]):
    """Δ of an expert in a file of its own, mapped."""

    def __init__(self, file: Path):
        self._entries, self._file = read_safetensors_header(file), MappedFile(file)
        self._whole = Place(file, 0, file.stat().st_size)

    def __getitem__(self, name: str) -> Tensor:
        return self._file.tensor(*self._entries[name])

    def release(self) -> None:
        """Give back all pages, those that came with the ones asked for too; they are read again where needed."""
        self._file.release(self._whole, least=0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class GivenVector(Mapping[str, Tensor]):
    """Δ = θ − θ0 of a given expert, from two mapped checkpoints."""

    def __init__(self, expert: Any, base: OpenCheckpoint):
        self.expert, self.base = expert, base

    def __getitem__(self, name: str) -> Tensor:
        delta = self.expert.tensor(name).float() - self.base.tensor(name).float()
        for checkpoint in (self.expert, self.base):
            checkpoint.release(name)
        return delta

    def __iter__(self) -> Iterator[str]:
        return iter(self.base.header)

    def __len__(self) -> int:
        return len(self.base.header)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """UserError where the expert, or the base, lacks a weight of these shapes."""
        for name, shape in shapes.items():
            for who, header in ((self.base.path, self.base.header), (self.expert.path, self.expert.header)):
                if name not in header or header[name].shape != shape:
                    told = f"of shape {list(header[name].shape)}" if name in header else "missing"
                    what = f"{name} is {told} in {who}, and of shape {list(shape)} in the model that is trained"
                    do = "give experts of the same base, or leave the weight out with finetuning.exclude"
                    raise UserError(what, where="finetuning.experts", do=do)


class StoredOrigin(Origin):
    """Knows θ0 as the base's mapped checkpoint: nothing is copied."""

    def __init__(self, base: OpenCheckpoint):
        super().__init__([])
        self.base = base
        self.names: list[str] = []
        """Of the weights that move, in their order."""

    def vector(self, i: int, weight: Tensor) -> Tensor:
        """The i-th weight's task vector so far."""
        return weight - self.base.tensor(self.names[i]).to(weight.device, weight.dtype)


@dataclass
class Exchange:
    """A member's part in a pool that is trained in ``rounds`` + 1 stretches."""

    folder: Path
    member: str
    members: tuple[str, ...]
    """All members, in the order in which subsets of them are drawn."""
    rounds: int
    until: int | None = None
    """Exchange that this call ends with, to be gone on from later; None: it waits at every one, and runs to the end."""
    wait: Callable[[], None] | None = None
    """Returns when all members have left their task vectors of this round."""
    waited: float = field(default=0.0, compare=False)
    """Seconds spent waiting."""

    def file(self, round: int, member: str) -> Path:
        """Where a member's task vector of a round lies."""
        return self.folder / f"{round}-{member}" / FILE

    def steps(self, total: int) -> list[int]:
        """Steps after which task vectors are exchanged; UserError where there are not enough of them."""
        if self.rounds and total <= self.rounds:
            do = f"give {total - 1} rounds at most: an exchange before every step but the first"
            raise UserError(f"{self.rounds} exchanges do not fit into {total} steps", where="finetuning.rounds", do=do)
        return [round(total * r / (self.rounds + 1)) for r in range(1, self.rounds + 1)]

    def reached(self, round: int) -> bool:
        """Whether the member has left its task vector of a round, or of a later one."""
        return any(self.file(later, self.member).exists() for later in range(round, self.rounds + 1))

    def others(self, round: int) -> list[StoredVector]:
        """The other members' task vectors of a round; the member's own older one is removed: nobody needs it."""
        if round > 1:
            shutil.rmtree(self.file(round - 1, self.member).parent, ignore_errors=True)
        return [StoredVector(self.file(round, m)) for m in self.members if m != self.member] if round else []

    def leave(self, round: int, method: Any, origin: Origin) -> None:
        """Write the member's task vector, in the weights' dtype; the file is there whole or not at all."""
        moved, weights = method.perturbation.moved, method.perturbation.weights()
        dtypes = [str(w.dtype).removeprefix("torch.") for w in weights]
        plan = {m.name: TensorInfo(dtype, tuple(w.shape)) for m, w, dtype in zip(moved, weights, dtypes)}
        place = self.file(round, self.member).parent
        draft = place.with_name(f"{place.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        with torch.no_grad(), ShardWriter(draft, [Shard(FILE, plan)]) as writer:
            for i, (m, weight) in enumerate(zip(moved, weights)):
                writer.write(m.name, origin.vector(i, weight))
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)


class StretchOverError(Exception):
    """The member stands where this call was to end."""


def take_part(exchange: Exchange | None, method: Any, origin: Any, given: list[GivenVector], total: int) -> list[Any]:
    """Give a method the task vectors of given experts, or the Trainer's callback that exchanges those of a pool."""
    names = [moved.name for moved in method.perturbation.moved]
    if exchange is None:
        shapes = {name: tuple(w.shape) for name, w in zip(names, method.perturbation.weights())}
        for vector in given:
            vector.check(shapes)
        method.exchange(given)
        return []
    if isinstance(origin, StoredOrigin):
        origin.names = names
    return [ExchangeCallback(exchange, method, origin, total)]


class ExchangeCallback(TrainerCallback):
    """Leaves the member's task vector at the end of each stretch, and takes up the others'."""

    def __init__(self, exchange: Exchange, method: Any, origin: Origin, total: int):
        self.exchange, self.method, self.origin, self.at = exchange, method, origin, exchange.steps(total)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the others' task vectors of the stretch that begins or goes on."""
        passed = sum(step <= state.global_step for step in self.at)
        if self.exchange.until is not None and passed >= self.exchange.until:
            self.exchange.leave(passed, self.method, self.origin)
            raise StretchOverError
        self.method.exchange(self.exchange.others(passed))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """At an exchange: wait for the others, or save and stop."""
        if state.global_step not in self.at:
            return
        passed = self.at.index(state.global_step) + 1
        if self.exchange.wait is None:
            control.should_save = control.should_training_stop = passed == self.exchange.until
            return
        self.exchange.leave(passed, self.method, self.origin)
        begun = time.perf_counter()
        self.exchange.wait()
        self.exchange.waited += time.perf_counter() - begun
        self.method.exchange(self.exchange.others(passed))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the task vector once the checkpoint that the next stretch begins from is whole."""
        if self.exchange.wait is None and state.global_step in self.at:
            self.exchange.leave(self.at.index(state.global_step) + 1, self.method, self.origin)
