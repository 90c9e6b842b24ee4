"""Several processes, as ``torchrun`` starts them, that train one expert together."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any


def rank() -> int:
    """This process's place among them; the first one writes."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def agreed(value: Any, device: str = "cpu") -> Any:
    """The first rank's value in every rank, none of which goes on before all are here."""
    if ranks() == 1:
        return value
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=device == "cpu")
    return broadcast_object_list([value])[0]


def tells() -> bool:
    """Whether this rank is the first to end in an error, so that the others, which end by that, say nothing."""
    if ranks() == 1:
        return True
    from torch.distributed import TCPStore

    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=5))
        return bool(store.add("mergebench/told", 1) == 1)
    except Exception:  # where the first rank held it, and is gone
        return rank() == 0
