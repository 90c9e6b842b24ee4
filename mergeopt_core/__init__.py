"""The science of mergebench as a library of its own: optimizers, merge methods, spectral kernels, statistics."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergeopt_core.finetuning import ASAM, SAM, MergOPT

__all__ = ["ASAM", "SAM", "MergOPT"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("mergeopt_core.finetuning"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
