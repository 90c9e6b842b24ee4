"""Bytes that training holds on a device, activations aside."""

from __future__ import annotations

from typing import Any

from conf.schema import Optimizer, Training

STATE = {"adamw": 8, "adamw_8bit": 2, "sgd": 0, "adafactor": 0}
"""Bytes of the optimizer's state for a trained weight (Adafactor keeps rows and columns of a matrix only)."""


def bytes_a_weight(method: dict[str, Any], optimizer: Optimizer, training: Training) -> dict[str, int]:
    """Bytes that a weight of the model takes while it is trained, by what holds them; adapters' own are not counted.

    Args:
        method: As ``check_finetuning`` describes it.
        optimizer: The base optimizer.
        training: Precision and adapters.
    """
    name, adapters, half = method["method"], training.lora.rank > 0, training.precision == "bf16_masters"
    moves = name in ("mergopt", "sam", "asam") and method.get("mode") != "released"
    noise = method.get("offsets", "noise") == "noise"
    climbs, origin = (
        method.get("inner") == "ascent",
        method.get("own_vector") == "exact" or method.get("scale") == "fitted",
    )
    momentum = 4 if optimizer.name == "sgd" and optimizer.momentum else 0
    width = 2 if half else 4
    return {
        "weights": width,
        "gradients": (width if climbs or name in ("sam", "asam") else 0) if adapters else 4,  # float32 for the masters
        "masters": 4 if half and not adapters else 0,
        "state": 0 if adapters else STATE[optimizer.name] + momentum,
        "moved": width if moves and (adapters or not half) else 0,
        "ascent": width if climbs else 0,
        "origin": 4 if name == "tangent" or (origin and noise and not adapters) else 0,
    }
