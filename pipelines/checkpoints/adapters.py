"""A LoRA adapter on its base, as a checkpoint: W + s·B·A is computed in float32 when a tensor is asked for.

LoRA (Hu et al. 2021): s = alpha / r, or alpha / √r when rank-stabilized (Kalajdzievski 2023). DoRA (Liu et al. 2024):
m · (W + s·B·A) / ‖W + s·B·A‖, the norm of each output row. Files are laid out as peft saves them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

from pipelines.checkpoints.checkpoint import OpenCheckpoint
from pipelines.checkpoints.headers import EMBEDDING, HEAD, Mismatch, TensorInfo, first

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


PREFIX = "base_model.model."
PART = re.compile(
    r"^(?P<module>.+?)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector(?:\.weight)?)$"
)
KEPT = re.compile(r"\.(?:base_layer|modules_to_save)\.")
UNKNOWN = re.compile(r"\.(lora_\w+|trainable_tokens\w*|token_adapter)\b")
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that move part of the base's weight into the adapter: it fits only the base as left behind."""

SETTINGS = (
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config r "
    "target_modules exclude_modules layers_to_transform layers_pattern modules_to_save lora_alpha lora_dropout bias "
    "fan_in_fan_out use_rslora use_dora init_lora_weights rank_pattern alpha_pattern trainable_token_indices lora_bias "
    "ensure_weight_tying loftq_config eva_config corda_config lora_ga_config velora_config qalora_group_size "
    "megatron_core"
)
"""Settings that are applied here, or say nothing that the adapter's tensors do not; others change the forward pass."""


@dataclass
class _Update:
    """Names of one weight's low-rank parts in the adapter's file, and their scale."""

    a: str = ""
    b: str = ""
    magnitude: str = ""
    scale: float = 0.0
    rank: int = 0
    embedding: bool = False


@dataclass
class _Plan:
    updates: dict[str, _Update] = field(default_factory=dict)  # by the base's tensor name
    replaced: dict[str, str] = field(default_factory=dict)  # base's tensor name → adapter's
    problems: list[Mismatch] = field(default_factory=list)


class AdaptedCheckpoint:
    """What ``OpenCheckpoint`` is for a whole model, for a base with an adapter on it."""

    adapter = None

    def __init__(self, base: OpenCheckpoint, adapter: OpenCheckpoint):
        self.base, self.lora = base, adapter
        self.path, self.name = adapter.path, adapter.name
        self.config = base.config
        self.settings: Mapping[str, Any] = adapter.adapter or {}
        self._plan = _make_plan(self.settings, adapter, base)
        self._head = first(HEAD, [*base.header, *self._plan.replaced]) or "lm_head.weight"
        self._embedding = first(EMBEDDING, base.header)
        self.header = self._header()

    @property
    def problems(self) -> list[Mismatch]:
        """What in the adapter cannot be applied to this base."""
        return self._plan.problems

    @property
    def ranks(self) -> dict[str, int]:
        """Rank bound of the update, by tensor."""
        return {name: update.rank for name, update in self._plan.updates.items()}

    @property
    def folder(self) -> Path:
        """Where its tokenizer is: the adapter's folder if that has one."""
        return self.lora.folder if (self.lora.folder / "tokenizer.json").is_file() else self.base.folder

    @property
    def tied(self) -> bool:
        """A tied base stays tied unless the adapter changes embedding or head (and does not tie them itself)."""
        touched = {*self._plan.updates, *self._plan.replaced} & {self._head, self._embedding}
        return self.base.tied and (not touched or bool(self.settings.get("ensure_weight_tying")))

    @property
    def size_bytes(self) -> int:
        """Bytes that are read: the base's and the adapter's."""
        return self.base.size_bytes + self.lora.size_bytes

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        """The adapter's fingerprint (the base's is known beside it)."""
        return self.lora.fingerprint(cache_dir)

    def tensor(self, name: str) -> Tensor:
        """The weight with its update: float32 ``[*shape]`` where there is one, else the base's as stored."""
        weight = self._weight(name)
        update = self._plan.updates.get(name)
        return weight if update is None else _apply(weight, update, self.settings, self.lora)

    def release(self, name: str) -> None:
        """Give mapped pages back."""
        self.base.release(name)
        self.lora.release(self._plan.replaced.get(name, name))

    def _weight(self, name: str) -> Tensor:
        if name in self._plan.replaced:
            return self.lora.tensor(self._plan.replaced[name])
        if name not in self.base.header and name == self._head and self._embedding:
            return self.base.tensor(self._embedding)
        return self.base.tensor(name)

    def _header(self) -> dict[str, TensorInfo]:
        header = dict(self.base.header)
        if self.base.tied and not self.tied and self._embedding:
            header[self._head] = header[self._embedding]
        header |= {name: self.lora.header[own] for name, own in self._plan.replaced.items()}
        return header | {n: TensorInfo("float32", header[n].shape) for n in self._plan.updates if n in header}


Model = Union[OpenCheckpoint, AdaptedCheckpoint]


def _make_plan(settings: Mapping[str, Any], adapter: OpenCheckpoint, base: OpenCheckpoint) -> _Plan:
    """Sort the adapter's tensors by what they do to which of the base's tensors."""
    plan = _Plan()
    _check_settings(settings, adapter, plan)
    known = {*base.header, first(HEAD, base.header) or "lm_head.weight"}
    for key, info in adapter.header.items():
        name = key.removeprefix(PREFIX)
        if match := PART.match(name):
            target = match["module"] + ".weight"
            update = plan.updates.setdefault(target, _Update())
            _add_part(update, match["part"], key, info)
        elif UNKNOWN.search(name):
            _complain(plan, adapter, name, "is a kind of adapter that is not merged here", "merge it with peft first")
        else:
            plan.replaced[KEPT.sub(".", name)] = key
    for target in [*plan.updates, *plan.replaced]:
        if target not in known:
            _complain(plan, adapter, target, "is adapted but not in the base", "give the base it was trained on")
    for target, update in plan.updates.items():
        _finish(plan, target, update, settings, adapter, base)
    return plan


def _check_settings(settings: Mapping[str, Any], adapter: OpenCheckpoint, plan: _Plan) -> None:
    kind, start = settings.get("peft_type", "LORA"), settings.get("init_lora_weights")
    if kind != "LORA":
        _complain(plan, adapter, "", f"is a {kind} adapter", "merge it with peft first")
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        what = f"was started from the base's weights (init_lora_weights={start})"
        _complain(plan, adapter, "", what, "convert it to plain LoRA with peft")
    for key in [key for key, value in settings.items() if value and key not in SETTINGS.split()]:
        _complain(plan, adapter, "", f"uses {key}, which is not merged here", "merge it with peft first")


def _add_part(update: _Update, part: str, key: str, info: TensorInfo) -> None:
    if part.startswith("lora_magnitude"):
        update.magnitude = key
    elif part.endswith(("A", "A.weight")):
        update.a, update.rank = key, info.shape[0] if info.shape else 0
    else:
        update.b = key
    update.embedding = update.embedding or part.startswith("lora_embedding")


def _finish(
    plan: _Plan,
    target: str,
    update: _Update,
    settings: Mapping[str, Any],
    adapter: OpenCheckpoint,
    base: OpenCheckpoint,
) -> None:
    """Scale of one update, and whether its shapes fit the base's weight."""
    if not update.a or not update.b or update.rank == 0:
        _complain(plan, adapter, target, "has one of lora_A and lora_B only", "save the adapter again")
        return
    module = target.removesuffix(".weight")
    alphas = settings.get("alpha_pattern") or {}
    match = next((k for k in alphas if re.match(rf"(.*\.)?({k})$", module)), None)
    alpha = alphas[match] if match is not None else settings.get("lora_alpha", 8)
    update.scale = alpha / (math.sqrt(update.rank) if settings.get("use_rslora") else update.rank)
    a, b = adapter.header[update.a].shape, adapter.header[update.b].shape
    stored = adapter.header[plan.replaced[target]] if target in plan.replaced else base.header.get(target)
    shape = stored.shape if stored else ()
    made = (b[0], a[1]) if len(a) == len(b) == 2 else ()
    if update.embedding or settings.get("fan_in_fan_out"):
        made = made[::-1]
    if stored and (made != shape or a[0] != b[1]):
        what = f"is {list(shape)} in the base, the adapter's is {list(b)} × {list(a)}"
        _complain(plan, adapter, target, what, "give the base it was trained on")


def _complain(plan: _Plan, adapter: OpenCheckpoint, tensor: str, what: str, do: str) -> None:
    plan.problems.append(Mismatch(tensor, adapter.name, what, do))


def _apply(weight: Tensor, update: _Update, settings: Mapping[str, Any], lora: OpenCheckpoint) -> Tensor:
    """W + s·B·A in float32 ``[out, in]`` (stored transposed for fan-in-fan-out layers and embeddings), DoRA-scaled."""
    import torch

    from mergeopt_core.merging.randomness import one_thread

    a, b = (lora.tensor(name).to(torch.float32) for name in (update.a, update.b))  # [r, in], [out, r]
    turned = update.embedding or bool(settings.get("fan_in_fan_out"))
    with torch.no_grad(), one_thread():  # a matrix product's bits may depend on the number of threads
        product = torch.mul(b @ a, update.scale)  # [out, in]
        result = product.T.contiguous() if turned else product
        result.add_(weight)
        if update.magnitude:
            rows = result.T if turned else result  # [out, in]
            magnitude = lora.tensor(update.magnitude).to(torch.float32).flatten()  # [out]
            factor = magnitude / torch.linalg.vector_norm(rows, dim=1)
            result = result * (factor[None, :] if turned else factor[:, None])
    return result
