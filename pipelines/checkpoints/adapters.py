"""A LoRA adapter on its base, as a checkpoint: W + s·B·A is computed in float32 when a tensor is asked for.

LoRA (Hu et al. 2021): s = alpha / r, or alpha / √r when rank-stabilized (Kalajdzievski 2023). DoRA (Liu et al. 2024):
m · (W + s·B·A) / ‖W + s·B·A‖, the norm of each output row. Files are laid out as peft saves them.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor

from conf.errors import UserError
from mergeopt_core.randomness import one_thread
from mergeopt_core.spectral.low_rank import Low
from pipelines.checkpoints.checkpoint import OpenCheckpoint, Reader, reader_of
from pipelines.checkpoints.headers import EMBEDDING, HEAD, Mismatch, TensorInfo, first

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

    def add(self, part: str, key: str, info: TensorInfo) -> None:
        """Note one part: its kind and its name in the file."""
        if part.startswith("lora_magnitude"):
            self.magnitude = key
        elif part.endswith(("A", "A.weight")):
            self.a, self.rank = key, info.shape[0] if info.shape else 0
        else:
            self.b = key
        self.embedding = self.embedding or part.startswith("lora_embedding")


def _plain(pattern: str) -> bool:
    """Whether a pattern is sound and cannot take long: no group is repeated, few characters are."""
    with contextlib.suppress(re.error, OverflowError, RecursionError):
        re.compile(pattern)
        return len(pattern) < 300 and not re.search(r"\)[*+{?]", pattern) and len(re.findall(r"[*+{]", pattern)) < 4
    return False


class AdaptedCheckpoint:
    """What ``OpenCheckpoint`` is for a whole model, for a base with an adapter on it."""

    adapter = None

    def __init__(self, base: OpenCheckpoint, adapter: OpenCheckpoint):
        self.base, self.lora = base, adapter
        self.path, self.name = adapter.path, adapter.name
        self.config = base.config
        self.settings: Mapping[str, Any] = adapter.adapter or {}
        self._updates: dict[str, _Update] = {}  # by the base's tensor name
        self._replaced: dict[str, str] = {}  # base's tensor name → adapter's
        self.problems: list[Mismatch] = []
        """What in the adapter cannot be applied to this base."""
        self._check_settings()
        self._sort_tensors()
        for target, update in self._updates.items():
            self._scale(target, update)
        self._head = first(HEAD, [*base.header, *self._replaced]) or "lm_head.weight"
        self._embedding = first(EMBEDDING, base.header)
        self.header = self._header()

    @property
    def ranks(self) -> dict[str, int]:
        """Rank bound of the update, by tensor."""
        return {name: update.rank for name, update in self._updates.items()}

    @property
    def folder(self) -> Path:
        """Where its tokenizer is: the adapter's folder if that has one."""
        return self.lora.folder if (self.lora.folder / "tokenizer.json").is_file() else self.base.folder

    @property
    def tied(self) -> bool:
        """A tied base stays tied unless the adapter changes embedding or head (and does not tie them itself)."""
        touched = {*self._updates, *self._replaced} & {self._head, self._embedding}
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
        update = self._updates.get(name)
        return weight if update is None else self._apply(weight, update)

    def low_rank(self, name: str) -> Low | None:
        """A tensor's update as factors in its layout, rank 0 where it has none; None where it is no product of two."""
        update, info = self._updates.get(name), self.header[name]
        if name in self._replaced or (update and update.magnitude) or len(info.shape) != 2:
            return None
        if update is None:
            return Low(torch.zeros(info.shape[0], 0), torch.zeros(0, info.shape[1]))
        a, b = (self.lora.tensor(part).to(torch.float32) for part in (update.a, update.b))  # [r, in], [out, r]
        root = math.sqrt(abs(update.scale))
        b, a = b * math.copysign(root, update.scale), a * root
        return Low(a.T, b.T) if self._transposed(update) else Low(b, a)

    def reader(self, name: str) -> Reader:
        """What copies the bytes of the weight with its update."""
        return reader_of(self.tensor(name))

    def release(self, name: str) -> None:
        """Give mapped pages back."""
        self.base.release(name)
        self.lora.release(self._replaced.get(name, name))

    def _weight(self, name: str) -> Tensor:
        if name in self._replaced:
            return self.lora.tensor(self._replaced[name])
        if name not in self.base.header and name == self._head and self._embedding:
            return self.base.tensor(self._embedding)
        return self.base.tensor(name)

    def _header(self) -> dict[str, TensorInfo]:
        header = dict(self.base.header)
        if self.base.tied and not self.tied and self._embedding:
            header[self._head] = header[self._embedding]
        header |= {name: self.lora.header[own] for name, own in self._replaced.items()}
        return header | {n: TensorInfo("float32", header[n].shape) for n in self._updates if n in header}

    def _complain(self, tensor: str, what: str, do: str) -> None:
        self.problems.append(Mismatch(tensor, self.name, what, do))

    def _check_settings(self) -> None:
        kind, start = self.settings.get("peft_type", "LORA"), self.settings.get("init_lora_weights")
        if kind != "LORA":
            self._complain("", f"is a {kind} adapter", "merge it with peft first")
        if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
            what = f"was started from the base's weights (init_lora_weights={start})"
            self._complain("", what, "convert it to plain LoRA with peft")
        for pattern, alpha in (self.settings.get("alpha_pattern") or {}).items():
            if not _plain(pattern) or isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
                what = f"alpha_pattern gives {pattern[:40]!r} the scale {str(alpha)[:40]!r}"
                raise UserError(what, where=str(self.lora.folder), do="mend adapter_config.json")
        for key in [key for key, value in self.settings.items() if value and key not in SETTINGS.split()]:
            self._complain("", f"uses {key}, which is not merged here", "merge it with peft first")

    def _sort_tensors(self) -> None:
        """Sort the adapter's tensors by what they do to which of the base's tensors."""
        for key, info in self.lora.header.items():
            name = key.removeprefix(PREFIX)
            if match := PART.match(name):
                self._updates.setdefault(match["module"] + ".weight", _Update()).add(match["part"], key, info)
            elif UNKNOWN.search(name):
                self._complain(name, "is a kind of adapter that is not merged here", "merge it with peft first")
            else:
                self._replaced[KEPT.sub(".", name)] = key
        known = {*self.base.header, first(HEAD, self.base.header) or "lm_head.weight"}
        for target in [*self._updates, *self._replaced]:
            if target not in known:
                self._complain(target, "is adapted but not in the base", "give the base it was trained on")

    def _scale(self, target: str, update: _Update) -> None:
        """Set the scale of one update, and check that its shapes fit the base's weight."""
        if not update.a or not update.b or update.rank == 0:
            return self._complain(target, "has one of lora_A and lora_B only", "save the adapter again")
        module, alphas = target.removesuffix(".weight"), self.settings.get("alpha_pattern") or {}
        match = next((k for k in alphas if re.match(rf"(.*\.)?({k})$", module)), None)
        alpha = alphas[match] if match is not None else self.settings.get("lora_alpha", 8)
        update.scale = alpha / (math.sqrt(update.rank) if self.settings.get("use_rslora") else update.rank)
        a, b = self.lora.header[update.a].shape, self.lora.header[update.b].shape
        replaced = self._replaced.get(target)
        stored = self.lora.header[replaced] if replaced else self.base.header.get(target)
        made = (b[0], a[1]) if len(a) == len(b) == 2 else ()
        if self._transposed(update):
            made = made[::-1]
        if stored and (made != stored.shape or a[0] != b[1]):
            what = f"is {list(stored.shape)} in the base, the adapter's is {list(b)} × {list(a)}"
            self._complain(target, what, "give the base it was trained on")

    def _transposed(self, update: _Update) -> bool:
        """Whether the weight is stored as ``[in, out]``: fan-in-fan-out layers and embeddings."""
        return update.embedding or bool(self.settings.get("fan_in_fan_out"))

    def _apply(self, weight: Tensor, update: _Update) -> Tensor:
        """W + s·B·A in float32, DoRA-scaled, in the layout of the weight."""
        a, b = (self.lora.tensor(name).to(torch.float32) for name in (update.a, update.b))  # [r, in], [out, r]
        turned = self._transposed(update)
        with torch.no_grad(), one_thread():  # a matrix product's bits may depend on the number of threads
            product = torch.mul(b @ a, update.scale)  # [out, in]
            result = product.T.contiguous() if turned else product
            result.add_(weight)
            if update.magnitude:
                rows = result.T if turned else result  # [out, in]
                magnitude = self.lora.tensor(update.magnitude).to(torch.float32).flatten()  # [out]
                factor = magnitude / torch.linalg.vector_norm(rows, dim=1)
                result = result * (factor[None, :] if turned else factor[:, None])
        return result


Model = Union[OpenCheckpoint, AdaptedCheckpoint]
