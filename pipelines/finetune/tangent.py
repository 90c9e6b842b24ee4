"""Tangent-space training of transformers models, and loading such an expert as the linear model that it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from conf.errors import UserError
from mergeopt_core.finetuning import Tangent

FLAG = "tangent.json"
"""File beside an expert's weights that says: trained linearised at a base."""


def linearise(model: Any, theta0: Mapping[str, Tensor] | None = None) -> None:
    """Make the model's forward pass f(x; θ0) + J(x; θ0)(θ − θ0), in place; everything else about it stays.

    Args:
        model: A transformers causal language model.
        theta0: θ0 by parameter name; default: its parameters now.
    """
    forward = model.forward  # the bound method of the class
    tangent = Tangent(model, theta0)

    def linear(input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        items = kwargs.pop("num_items_in_batch", None)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("use_cache", "return_dict", "past_key_values")}
        model.forward = forward
        try:
            logits = tangent(input_ids=input_ids, use_cache=False, pick=lambda out: out.logits, **kwargs)
        finally:
            model.forward = linear
        given = {"logits": logits, "labels": labels, "vocab_size": model.config.vocab_size, "num_items_in_batch": items}
        loss = None if labels is None else model.loss_function(**given)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    model.forward = linear


def delinearise(model: Any) -> None:
    """Give the model its own forward pass back; θ stays."""
    model.__dict__.pop("forward", None)


def write_flag(out: Path, base: Path) -> None:
    """Say beside the weights where they were linearised."""
    (out / FLAG).write_text(json.dumps({"linearised_at": str(base.resolve())}, indent=1) + "\n")


def load_linearised(folder: Path, base: Path | None = None) -> nn.Module:
    """An expert trained in the tangent space, or a merge of such, as the linear model: scored like any other model.

    Args:
        folder: The checkpoint θ.
        base: θ0; default: what the expert's flag names.

    Raises:
        UserError: No base is named, or the weights do not fit it.
    """
    if base is None:
        flag = folder / FLAG
        if not flag.is_file():
            raise UserError(f"{folder} carries no {FLAG}", do="name the base that it was linearised at")
        base = Path(json.loads(flag.read_text())["linearised_at"])
    start = AutoModelForCausalLM.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=start.dtype)
    try:
        linearise(model, dict(start.named_parameters()))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{folder} does not fit the base", where=str(error), do=f"check {base}") from None
    return model.eval()
