"""Transformers models as the linear models that tangent-space experts are: to train them, and to score them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from mergeopt_core.finetuning import Tangent


def linearise(
    model: Any, theta0: Mapping[str, Tensor] | None = None, vector: Mapping[str, Tensor] | None = None
) -> None:
    """Make the model's forward pass f(x; θ0) + J(x; θ0)(θ − θ0), in place; everything else about it stays.

    There is no cache of keys and values: generation computes the whole text for every token.

    Args:
        model: A transformers causal language model, or one whose first output is an embedding (an image tower).
        theta0: θ0 by parameter name; default: its parameters now.
        vector: θ − θ0 by parameter name where nothing is trained; the model's parameters are then θ0.

    Raises:
        ValueError: Tensors of other names or shapes than the model's parameters.
    """
    forward, generate = model.forward, getattr(model, "generate", None)  # the bound methods of the class
    tangent = Tangent(model, theta0, vector)
    text = model.main_input_name == "input_ids"
    always = {"use_cache": False} if text else {}

    def linear(*args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        items = kwargs.pop("num_items_in_batch", None)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("use_cache", "return_dict", "past_key_values")}
        model.forward = forward
        try:
            logits = tangent(*args, pick=lambda out: out[0], **kwargs, **always)
        finally:
            model.forward = linear
        if not text:
            return (logits,)
        given = {"logits": logits, "labels": labels, "vocab_size": model.config.vocab_size, "num_items_in_batch": items}
        loss = None if labels is None else model.loss_function(**given)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def uncached(*args: Any, **kwargs: Any) -> Any:
        return generate(*args, **{**kwargs, "use_cache": False})  # type: ignore[misc]

    model.forward = linear
    if text:
        model.generate = uncached


def delinearise(model: Any) -> None:
    """Give the model its own forward pass back; its parameters stay."""
    for name in ("forward", "generate"):
        model.__dict__.pop(name, None)


@contextmanager
def linearised(model: Any, vector: Mapping[str, Tensor] | None) -> Iterator[None]:
    """The model, whose parameters are θ0, as f(x; θ0) + J(x; θ0) v inside; as it is where ``vector`` is None."""
    if vector is None:
        yield
        return
    linearise(model, vector=vector)
    try:
        yield
    finally:
        delinearise(model)
