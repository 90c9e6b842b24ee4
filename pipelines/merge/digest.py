"""The hash of merged weights, taken as they stream by: by it a merge is known again wherever it is made."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class WeightHash:
    """SHA-256 over name, dtype, shape and bytes of every tensor, in the order in which they are added."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in one tensor ``[*shape]``, on any device."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._digest.update(f"{name} {dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)  # [count]
        self._digest.update(flat.view(torch.uint8).numpy().data)

    def hexdigest(self) -> str:
        """The hash so far, as 64 hex digits."""
        return self._digest.hexdigest()
