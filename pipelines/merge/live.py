"""From the stream into a live model."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conf.errors import UserError

if TYPE_CHECKING:
    from pipelines.merge.stream import Merge


def merge_into(model: nn.Module, merge: Merge, device: str | torch.device | None = None) -> None:
    """Copy a merge into a live model built from the base's config: the bits that loading it from disk would give.

    Each tensor is cast to the recipe's dtype, then to the parameter's. Arithmetic runs on ``device`` (default: the
    model's). A tied head follows its embedding; the model is given a head of its own, or other vocabulary rows, where
    the merge has them. Raises ``UserError`` where merge and model do not fit.
    """
    anywhere: Any = model
    _fit(anywhere, merge)
    targets = model.state_dict(keep_vars=True)
    device = device if device is not None else next(model.parameters()).device
    if _same_names(anywhere, targets, merge):
        for name, tensor in merge.tensors(device):
            _copy(targets, name, tensor)
    else:
        _copy_converted(anywhere, targets, merge, device)
    _tie(anywhere, targets, merge)


def _copy(targets: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    target = targets[name].data
    if target.shape != tensor.shape:
        raise UserError(f"{name} is {list(tensor.shape)} in the merge and {list(target.shape)} in the model")
    target.copy_(tensor)


def _ends(model: Any) -> tuple[Any, Any]:
    """The head's and the embedding's weight."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return getattr(head, "weight", None), model.get_input_embeddings().weight


def _tie(model: Any, targets: dict[str, Tensor], merge: Merge) -> None:
    """Give a head that an earlier merge untied the embedding's values, where the merge has no head of its own."""
    if not hasattr(model, "get_input_embeddings"):
        return
    head, embedding = _ends(model)
    names = [name for name, tensor in targets.items() if tensor is head]
    if head is None or head is embedding or any(name in merge.layout.outputs for name in names):
        return
    if not merge.base.tied:
        raise UserError(f"the merge has no {names[0]}, which the model needs", do="give a base with an output head")
    head.data.copy_(embedding.data)


def _fit(model: Any, merge: Merge) -> None:
    """Give the model the vocabulary rows and the separate head that the merge has."""
    if not hasattr(model, "get_input_embeddings"):
        return
    head, embedding = _ends(model)
    names = [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor is embedding]
    rows = next((merge.layout.outputs[n].shape[0] for n in names if n in merge.layout.outputs), embedding.shape[0])
    if rows != embedding.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
        head, embedding = _ends(model)
    if head is embedding and sum(name in merge.layout.outputs for name in names) > 1:
        model.get_output_embeddings().weight = nn.Parameter(embedding.detach().clone())
        model.config.tie_word_embeddings = False


def _same_names(model: Any, targets: dict[str, Tensor], merge: Merge) -> bool:
    """Whether the checkpoint calls every weight what the live model calls it."""
    outputs = merge.layout.outputs
    written = {id(targets[name]) for name in outputs if name in targets}
    head = _ends(model)[0] if hasattr(model, "get_output_embeddings") else None
    return all(name in targets for name in outputs) and all(
        id(tensor) in written or tensor is head for tensor in targets.values()
    )


def _copy_converted(model: Any, targets: dict[str, Tensor], merge: Merge, device: str | torch.device) -> None:
    """Through transformers' own loading, for architectures whose modules name or pack weights differently."""
    if not hasattr(model, "from_pretrained"):
        names = [name for name in merge.layout.outputs if name not in targets]
        raise UserError(f"the model has no {', '.join(names[:3])}", do="build the model from the base's config")
    state = {name: tensor.clone() for name, tensor in merge.tensors(device)}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        loaded = type(model).from_pretrained(None, config=model.config, state_dict=state, dtype="auto")
    for name, tensor in loaded.state_dict().items():
        _copy(targets, name, tensor)
