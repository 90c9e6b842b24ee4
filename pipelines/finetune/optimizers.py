"""The base optimizer by name, and the training method around it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from conf.errors import UserError, nearest
from conf.schema import Optimizer
from mergeopt_core.finetuning import ASAM, SAM, MasterWeights, MergOPT

NAMES = ("adamw", "sgd", "adafactor", "adamw_8bit")
COMPILING_PAYS = 2e10
"""Elements × steps from which compiling the noise kernel saves more time than it takes."""


def base_optimizer(spec: Optimizer, model: nn.Module, masters: bool = False) -> torch.optim.Optimizer:
    """The optimizer that steps at θ; vectors (norms, biases) are not decayed, as the Trainer does it.

    Raises:
        UserError: An unknown name, a negative learning rate, or 8-bit without bitsandbytes.
    """
    if not spec.lr >= 0 or math.isinf(spec.lr):
        raise UserError(f"the learning rate is {spec.lr}", where="optimizer.lr", do="give a number, 0 or more")
    if not spec.weight_decay >= 0:
        raise UserError(
            f"the weight decay is {spec.weight_decay}", where="optimizer.weight_decay", do="give a number, 0 or more"
        )
    base = _make(spec, _groups(model.named_parameters(), spec.weight_decay))
    return MasterWeights(base) if masters else base


def _make(spec: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr, betas=_betas(spec), eps=spec.eps, fused=True)
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)
    if spec.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=spec.lr)
    if spec.name == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise UserError(
                "adamw_8bit needs bitsandbytes", where="optimizer.name", do="pip install 'mergebench[bitsandbytes]'"
            ) from None
        return AdamW8bit(groups, lr=spec.lr, betas=_betas(spec), eps=spec.eps)
    raise UserError(f"unknown optimizer {spec.name!r}", where="optimizer.name", do=nearest(spec.name, NAMES))


def _betas(spec: Optimizer) -> tuple[float, float]:
    if len(spec.betas) != 2 or any(not 0 <= b < 1 for b in spec.betas):
        raise UserError(f"betas are {spec.betas}", where="optimizer.betas", do="give two numbers from 0 to below 1")
    return spec.betas[0], spec.betas[1]


def _groups(named: Iterable[tuple[str, nn.Parameter]], decay: float) -> list[dict[str, Any]]:
    trained = [p for _, p in named if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def around(
    base: torch.optim.Optimizer, method: dict[str, Any], model: nn.Module, seed: int, steps: int, lora: bool = False
) -> torch.optim.Optimizer:
    """The base optimizer inside the training method that ``check_finetuning`` described.

    Raises:
        UserError: Patterns of ``include`` or ``exclude`` that match nothing, or adapters where ranks could not agree.
    """
    name, options = method["method"], {k: v for k, v in method.items() if k not in ("method", "mode")}
    if name in ("plain", "tangent") or method.get("mode") == "released":
        return base
    options |= {"named_parameters": list(model.named_parameters()), "masters": getattr(base, "masters", None)}
    if lora:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (name != "mergopt" or options["inner"] == "ascent"):
            raise UserError(
                f"{name} with adapters does not run on several ranks", where="training.lora",
                do="use one process: gradients of the frozen weights are not exchanged",
            )  # fmt: skip
        options |= _on_merged_update(model, options)
    try:
        if name == "sam":
            return SAM(base, **options)
        if name == "asam":
            return ASAM(base, **options)
        moving = sum(p.numel() for _, p in options["named_parameters"])
        slow = next(model.parameters()).device.type == "cpu" and moving * steps < COMPILING_PAYS
        return MergOPT(base, **options, seed=seed, kernel="plain" if slow else "compiled")
    except ValueError as error:
        raise UserError(str(error), where="finetuning", do="see `mergebench methods` for names and values") from None


def _on_merged_update(model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """What moves when adapters are trained: the frozen weights below them."""
    from pipelines.finetune.lora import AdapterOrigin, merged_weights

    named = merged_weights(model)
    found: dict[str, Any] = {"named_parameters": named, "frozen": True}
    if options.get("own_vector") == "exact" or options.get("scale") == "fitted":
        found["theta0"] = AdapterOrigin(model)
    return found
