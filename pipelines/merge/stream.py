"""The one stream of merged tensors: what a live model is given and what is written to disk are the same bits."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from threading import local
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor

from conf.errors import UserError, raise_all
from mergeopt_core import merging
from mergeopt_core.geometry import squared_distance
from mergeopt_core.randomness import one_thread
from mergeopt_core.spectral.decompositions import one_blas_thread
from mergeopt_core.spectral.low_rank import Low
from pipelines.checkpoints.adapters import AdaptedCheckpoint, Model
from pipelines.checkpoints.checkpoint import OpenCheckpoint
from pipelines.checkpoints.fingerprint import WeightHash
from pipelines.checkpoints.headers import PARTS, VOCABULARY, Mismatch
from pipelines.merge.layout import Layout, make_layout, rank_notes
from pipelines.merge.recipe import Recipe
from pipelines.merge.resident import DeviceTensors

CPU = torch.device("cpu")

LOADERS = 3
"""Threads that copy tensors to an accelerator ahead of the merge."""

WORTH_THREADS = 64 * 2**20
"""Bytes of a merged model from which on its tensors are merged side by side."""


class Merge:
    """A recipe with its checkpoints open: ``problems()`` from headers, ``tensors()`` in sorted-name order.

    Arithmetic is in float32 whatever the checkpoints hold, with one cast at the end. Experts are told apart by
    ``ids`` (their fingerprints), so random masks belong to an expert, not to its position, and methods in which experts
    have equal rank give the same bits in any order. ``statistics`` holds, for methods that need them, one tensor
    source per expert; ``cache`` is a mapping in which kernels keep what does not depend on the subset of experts.
    """

    def __init__(
        self,
        recipe: Recipe,
        base: OpenCheckpoint,
        experts: Sequence[OpenCheckpoint],
        ids: Sequence[str] | None = None,
        *,
        base_id: str | None = None,
        statistics: Sequence[OpenCheckpoint] = (),
        cache: Any = None,
        resident: DeviceTensors | None = None,
    ):
        self.recipe, self.base, self.statistics, self.cache = recipe, base, statistics, cache
        self.resident = resident
        """What keeps checkpoints' tensors on an accelerator between merges."""
        self.report: dict[str, Any] = {}
        """What kernels found out on the way, by tensor: the numerical rank where it leaves a method ill-posed."""
        self.digest: WeightHash | None = None
        """Where it is set, every tensor that ``tensors`` yields is added to it."""
        self.origin: OpenCheckpoint | None = None
        """Where it is set (to the base, or for a single model to the base that it comes from), its distance from the
        merge is taken as tensors pass."""
        self._squares: dict[str, float] = {}
        self._given, self._ids, self._base_id = experts, ids, base_id

    @property
    def base_id(self) -> str:
        """The base's fingerprint."""
        return self._base_id or self.base.fingerprint()

    @cached_property
    def experts(self) -> list[Model]:
        """The experts; a LoRA adapter as the base with the adapter on it."""
        if self.base.adapter:
            raise UserError(f"the base {self.base.name} is an adapter", do="give the whole model it was trained on")
        return [AdaptedCheckpoint(self.base, expert) if expert.adapter else expert for expert in self._given]

    @cached_property
    def ids(self) -> list[str]:
        """What tells the experts apart: their fingerprints unless given."""
        return list(self._ids) if self._ids is not None else [expert.fingerprint() for expert in self._given]

    @cached_property
    def layout(self) -> Layout:
        """Merged tensors and their sources, from headers."""
        layout = make_layout(self.recipe, self.base, self.experts, lambda: self.ids)
        layout.notes += rank_notes(self.recipe, self.experts)
        return layout

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """All parameters of the method, checked, with defaults filled in; ValueError where one is wrong."""
        shared = {p.name for p in merging.describe(self.recipe.method).parameters if not p.per_expert}
        given = {k: v if k in shared else self._in_order(k, v) for k, v in self.recipe.parameters.items()}
        return merging.check_parameters(self.recipe.method, given, len(self._given))

    @cached_property
    def method(self) -> merging.BoundMethod:
        """The method with its checked parameters, for all tensors."""
        more: dict[str, Any] = {"seed": self.recipe.seed, "cache": self.cache, "report": self.report}
        return merging.BoundMethod(self.recipe.method, self.parameters, self.ids, **more)

    @property
    def working_bytes(self) -> int:
        """Bytes that merging takes at most: float32 of the largest tensor, and its inputs and those loaded ahead."""
        largest = max((info.count for info in self.layout.outputs.values()), default=0)
        return 4 * largest * (2 * len(self.experts) + 4)

    @property
    def update_norm(self) -> float | None:
        """‖θ − θ0‖₂ over all floating-point tensors of the merge, a tied head counted once, as its values are written.

        None where ``origin`` is not set, or has no such tensor (other vocabularies, or a head of the model's own).
        """
        total = math.fsum(self._squares.values())
        return math.sqrt(total) if self._squares and math.isfinite(total) else None

    def problems(self) -> list[Mismatch]:
        """Everything that keeps this merge from being made, all at once; no weight is read."""
        method = self.recipe.method
        found: list[Mismatch] = []
        try:
            _ = self.parameters
            if (needed := merging.describe(method).statistics) and not self.statistics:
                what = f"needs {needed} statistics of every expert"
                found.append(Mismatch("", method, what, "collect them first: mergebench statistics"))
        except ValueError as error:
            found.append(Mismatch("", method, f"cannot be used: {error}", f"see: mergebench methods {method}"))
        return found + self.layout.problems

    def check(self) -> None:
        """Raise ``UserError`` with the problems, if there are any."""
        raise_all([UserError(f"{p.subject} {p.what}", do=p.do) for p in self.problems()])

    def tensors(
        self, device: str | torch.device = "cpu", names: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Merged tensors (those named, or all) in the recipe's dtype, by sorted name; one group of input tensors is
        held per CPU thread.

        A yielded tensor may be a view of an input: copy it before changing it. Raises ``UserError`` naming tensor and
        expert, or the cause, for values that are not finite, as read or as yielded.
        """
        self.check()
        where = torch.device(device)
        self.resident = (self.resident or DeviceTensors(where)) if where.type == "cuda" else None
        if self.resident is not None:
            self.resident.begin(model.path for model in (self.base, *self.experts))
        prepared = self._prepared(where)
        with ThreadPoolExecutor(1, "digest") as pool:
            adding: Future[None] | None = None
            rest = (prepared, list(self.layout.outputs) if names is None else names)
            make = self._loaded_ahead(where, *rest) if self.resident else self._side_by_side(*rest)
            for name, merged in make:
                if self.digest is not None and self.resident is None:
                    self.digest.add(name, merged)
                elif self.digest is not None:  # its bytes come to the host while the next ones are merged
                    if adding is not None:
                        adding.result()
                    adding = pool.submit(self.digest.add, name, merged)
                yield name, merged
                self._release(name)
            if adding is not None:
                adding.result()

    def _side_by_side(self, prepared: Mapping[str, Any] | None, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Merged tensors on the CPU, in several threads where that pays, as many at once as memory takes."""

        def merge(name: str) -> Tensor:
            return self._merged(name, *self._gathered(name), prepared)

        outputs = self.layout.outputs
        if sum(info.size for info in outputs.values()) < WORTH_THREADS or not self.method.side_by_side:
            return ((name, merge(name)) for name in names)
        copies = 4 * (len(self.experts) + 4)  # of each tensor, in float32 and for working
        room = psutil.virtual_memory().available // 2
        return map_in_order(merge, names, torch.get_num_threads(), lambda name: copies * outputs[name].count, room)

    def _loaded_ahead(
        self, device: torch.device, prepared: Mapping[str, Any] | None, names: Sequence[str]
    ) -> Iterator[tuple[str, Tensor]]:
        """Merged tensors of an accelerator, to which the inputs of the next ones are copied meanwhile."""
        streams = local()

        def load(name: str) -> tuple[list[Tensor], list[Low] | None, torch.cuda.Event]:
            if not hasattr(streams, "own"):
                streams.own = torch.cuda.Stream(device)
            with torch.cuda.stream(streams.own):
                (inputs, factors), ready = self._gathered(name, device), torch.cuda.Event()
                ready.record()
            return inputs, factors, ready

        current = torch.cuda.current_stream(device)
        for name, (inputs, factors, ready) in map_in_order(load, names, LOADERS):
            current.wait_event(ready)
            for tensor in (*inputs, *itertools.chain.from_iterable(factors or ())):
                tensor.record_stream(current)
            yield name, self._merged(name, inputs, factors, prepared)

    def _prepared(self, device: torch.device) -> Mapping[str, Any] | None:
        """What the method learns from all tensors before the first is merged; None for most methods."""
        return self.method.prepare(lambda: self.inputs(device))

    def inputs(self, device: str | torch.device = "cpu") -> Iterator[tuple[str, Tensor, list[Tensor]]]:
        """Name, base and experts of every tensor of the merge, as stored, by sorted name; one group is held at once."""
        for name in self.layout.outputs:
            if name in self.layout.kept:
                continue
            base, *experts = self._inputs(name, torch.device(device))
            yield name, base, experts
            self._release(name)

    def _gathered(self, name: str, device: torch.device = CPU) -> tuple[list[Tensor], list[Low] | None]:
        """What a tensor is merged from; where that is factors, the experts' own tensors are not read."""
        factors = self.factors(name, device) if self.method.reads_factors else None
        return self._inputs(name, device, experts=factors is None), factors

    def _merged(
        self, name: str, inputs: Sequence[Tensor], factors: list[Low] | None, prepared: Mapping[str, Any] | None
    ) -> Tensor:
        """One merged tensor ``[*shape]`` of the base's and the experts'."""
        base, *experts = inputs
        merged = self._cast(name, base, experts, prepared, factors)
        if self.origin is not None and merged.is_floating_point():
            origin = base if self.origin is self.base else self._from_origin(name, merged)
            with one_thread():
                self._squares[name] = math.nan if origin is None else squared_distance(merged, origin)
        return merged

    def _from_origin(self, name: str, merged: Tensor) -> Tensor | None:
        """The origin's tensor where it has one of this name and shape."""
        assert self.origin is not None
        info = self.origin.header.get(name)
        same = info is not None and info.shape == tuple(merged.shape)
        return self._read(self.origin, name, merged.device) if same else None

    def factors(self, name: str, device: str | torch.device = "cpu") -> list[Low] | None:
        """Every expert's update of a tensor as factors; None where an expert's is no product of two small ones."""
        adapters = [expert for expert in self.experts if isinstance(expert, AdaptedCheckpoint)]
        aligned = self.layout.vocabulary is not None and VOCABULARY.search(name)
        if len(adapters) < len(self.experts) or aligned or self.layout.sources[0].get(name) != name:
            return None
        found = []
        for adapter, sources in zip(adapters, self.layout.sources[1:]):
            low = adapter.low_rank(name) if sources.get(name) == name else None
            if low is None:
                return None
            if not torch.isfinite(low.b.sum() + low.a.sum()):
                what = f"{name}: the adapter {adapter.name} holds values that are not finite"
                raise UserError(what, do="check that adapter")
            found.append(Low(low.b.to(device), low.a.to(device)))
        return found

    def _cast(
        self,
        name: str,
        base: Tensor,
        experts: list[Tensor],
        prepared: Mapping[str, Any] | None,
        factors: list[Low] | None,
    ) -> Tensor:
        """The method's result in the recipe's dtype."""
        device = base.device
        out = getattr(torch, self.layout.outputs[name].dtype)
        try:
            statistics = self._statistics(name, device)
            more: dict[str, Any] = {"statistics": statistics, "prepared": prepared, "factors": factors}
            merged = base if name in self.layout.kept else self.method.merge(name, base, experts, **more)
        except ValueError as error:
            raise UserError(self._with_names(str(error)), do="check that checkpoint, or the parameters") from error
        if merged.dtype == out:
            return merged
        cast = merged.to(out)
        check_cast(name, merged, cast, "write it in bfloat16 or float32: dtype=float32")
        return cast

    def _inputs(self, name: str, device: torch.device = CPU, experts: bool = True) -> list[Tensor]:
        """The base's tensor, then each expert's, as stored (kernels widen them to float32, a block at a time); without
        ``experts``, the base's in the place of theirs, which are not read."""
        loaded = [self._load(k, name, device) if experts or k == 0 else None for k in range(len(self.experts) + 1)]
        if self.layout.vocabulary is not None and VOCABULARY.search(name):
            loaded = self.layout.vocabulary.align([None if t is None else t.to(torch.float32) for t in loaded])
        base = loaded[0]
        assert base is not None
        return [base if tensor is None else tensor for tensor in loaded]

    def _load(self, model: int, name: str, device: torch.device) -> Tensor | None:
        source = self.layout.sources[model].get(name)
        if source is None:
            return None
        return self._read((self.base, *self.experts)[model], source, device)

    def _read(self, model: Model, name: str, device: torch.device) -> Tensor:
        return self.resident.tensor(model, name) if self.resident else model.tensor(name).to(device)

    def _statistics(self, name: str, device: torch.device) -> list[Tensor | None] | None:
        if not self.statistics:
            return None
        return [s.tensor(name).to(device) if name in s.header else None for s in self.statistics]

    def _release(self, name: str) -> None:
        for model, sources in zip((self.base, *self.experts), self.layout.sources):
            if name in sources:
                model.release(sources[name])
        if self.origin is not None:
            self.origin.release(name)

    def _in_order(self, name: str, value: Any) -> Any:
        """A mapping from expert to value as a list in the experts' order."""
        if not isinstance(value, Mapping) or not merging.describe(self.recipe.method).parameter(name).per_expert:
            return value
        values = []
        for path, expert in zip(self.recipe.experts, self.experts):
            key = next((k for k in (path, expert.name) if k in value), None)
            if key is None:
                raise ValueError(f"{self.recipe.method}: {name} gives no value for expert {expert.name}")
            values.append(value[key])
        return values

    def _with_names(self, message: str) -> str:
        """An error's text with the experts' names where it has their ids."""
        for key, expert in zip(self.method.keys, self.experts):
            message = message.replace(key, expert.name)
        return message


def single_model(base: OpenCheckpoint, model: OpenCheckpoint) -> Merge:
    """One model as it is (base, expert, adapter or part on its base), for ``merge_into``: its checkpoint's own bits.

    A whole model brings its own vocabulary and tie; its architecture has to be the live model's.
    """
    base = base if model.adapter or model.config.get("model_type") in PARTS else model
    return Merge(Recipe(base.path, (model.path,), "passthrough"), base, [model], [model.path])


def check_cast(name: str, wide: Tensor, cast: Tensor, do: str) -> None:
    """Raise ``UserError`` where a tensor that has been cast holds a value that is not finite: one read, in a hot cache.

    ``wide`` is what it was cast from; ``do`` says what helps against an overflow.
    """
    if not cast.numel() or not cast.is_floating_point() or torch.isfinite(torch.stack(torch.aminmax(cast))).all():
        return
    if bad := int((~torch.isfinite(wide)).sum()):
        raise UserError(f"{name}: the merge holds {bad} values that are not finite", do=do)
    dtype, most = str(cast.dtype).removeprefix("torch."), torch.finfo(cast.dtype).max
    what = f"{name} overflows {dtype}: |max| = {wide.abs().max().item():.6g}, {dtype} holds {most:.6g}"
    raise UserError(what, do=do)


Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    size: Callable[[Item], int] = lambda item: 0,
    room: int = 0,
) -> Iterator[tuple[Item, Result]]:
    """Each item with ``function(item)``, in the items' order; at most one more than ``threads`` are held at once.

    Their sizes together stay within ``room``, unless one alone is larger. Torch and LAPACK run on one thread in each,
    so that the bits are those of a single thread. An error is raised when its item is due; items not started by then
    are dropped.
    """
    before = torch.get_num_threads()
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(threads, "merge", torch.set_num_threads, (1,))
    try:
        with one_blas_thread():
            for item in items:
                while waiting and (len(waiting) > threads or sum(map(size, (*_items(waiting), item))) > room):
                    yield _next(waiting)
                waiting.append((item, pool.submit(function, item)))
            while waiting:
                yield _next(waiting)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _items(waiting: deque[tuple[Item, Future[Result]]]) -> Iterator[Item]:
    return (item for item, _ in waiting)


def _next(waiting: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    item, future = waiting.popleft()
    return item, future.result()
