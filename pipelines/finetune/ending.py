"""How a run ends: with the weights that are saved, or at a loss that is no number with the last good ones kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from conf.errors import UserError
from mergeopt_core.finetuning import MasterWeights
from pipelines.finetune.callbacks import NotFiniteError
from pipelines.finetune.checkpoints import LAST_GOOD
from pipelines.finetune.linear import delinearise

if TYPE_CHECKING:
    from pipelines.finetune.run import Run


def finish(run: Run, loaded: Any, trainer: Any) -> None:
    """Take the float32 masters where they exist, and the model's own forward pass again."""
    for optimizer in (trainer.method, getattr(trainer.method, "base", None)):
        if isinstance(optimizer, MasterWeights):
            for p, master in optimizer.masters.items():
                p.data = master.detach()
    if run.method["method"] == "tangent":
        delinearise(loaded.model)


@contextmanager
def brought_back(run: Run, loaded: Any, trainer: Any) -> Iterator[None]:
    """Weights are at θ again, whatever happens; a loss that is no number stops the run, the last good weights kept."""
    try:
        try:
            yield
        finally:
            if hasattr(trainer.method, "restore"):
                trainer.method.restore()
    except NotFiniteError as error:
        kept = _keep(run, loaded, trainer)
        raise UserError(
            f"{run.name}: {error}", where=f"last good weights: {kept}",
            do="lower optimizer.lr, set training.clip, or look at the data of that step",
        ) from None  # fmt: skip


def _keep(run: Run, loaded: Any, trainer: Any) -> str:
    """Where the last good weights are: those before the step, if they are numbers, else the last checkpoint's."""
    if all(bool(p.isfinite().all()) for p in loaded.model.parameters()):
        folder = run.checkpoints / f"{LAST_GOOD}-{trainer.state.global_step}"
        finish(run, loaded, trainer)
        if run.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            loaded.save(folder)
        return str(folder)
    saved = sorted(run.checkpoints.glob("checkpoint-*"))
    return str(saved[-1]) if saved else "none (training.save_steps was not set)"
