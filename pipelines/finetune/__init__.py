"""Fine-tuning: base + task + method → an expert, an ordinary transformers checkpoint."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.finetune.data import task_fingerprint
    from pipelines.finetune.methods import check_finetuning
    from pipelines.finetune.run import finetune

__all__ = ["check_finetuning", "finetune", "task_fingerprint"]
_HOMES = {"check_finetuning": "methods", "finetune": "run", "task_fingerprint": "data"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
