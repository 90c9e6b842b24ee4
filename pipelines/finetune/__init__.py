"""Fine-tuning: base + task + method → an expert, an ordinary transformers checkpoint."""

from typing import Any

from pipelines.finetune.data import task_fingerprint
from pipelines.finetune.optimizers import check_finetuning, settings_that_matter

__all__ = ["check_finetuning", "finetune", "settings_that_matter", "task_fingerprint"]


def __getattr__(name: str) -> Any:
    if name != "finetune":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.finetune.train import finetune  # with torch and transformers, which the rest does without

    return finetune
