"""What an expert's data say about its weights: the diagonal of the Fisher information, and the inputs of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def diagonal_fisher(
    model: nn.Module, examples: Iterable[Any], log_likelihood: Callable[[nn.Module, Any], Tensor]
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information of every parameter, by name, each in its parameter's shape and float32.

    F_i = (1/N) · Σ_n (∂ log p(y_n | x_n, θ) / ∂θ_i)²

    The gradient is squared for one example at a time: the square of a batch's mean gradient is something else. With
    y_n drawn from the model it is the Fisher information itself, with the data's y_n the "empirical" one.
    ``log_likelihood`` gives the scalar log p(y | x, θ) of one example; the model's own ``grad`` fields are left alone.
    Matena & Raffel, "Merging Models with Fisher-Weighted Averaging", 2021, https://arxiv.org/abs/2111.09832.

    Raises:
        ValueError: no examples, or a gradient that is not finite (naming the parameter).
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
    count = 0
    for example in examples:
        value = log_likelihood(model, example)
        gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients):
            if gradient is not None:
                sums[name].addcmul_(gradient.float(), gradient.float())
        count += 1
    if not count:
        raise ValueError("there are no examples to take the Fisher information on")
    for name, total in sums.items():
        if not torch.isfinite(total.sum()):
            raise ValueError(f"the gradient of {name} is not finite")
        total.div_(count)
    return sums


def input_grams(
    model: nn.Module, examples: Iterable[Any], forward: Callable[[nn.Module, Any], Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Mean outer product of the inputs of every linear layer, by the name of its weight.

    G = XᵀX / T ``[in, in]`` over the T inputs (tokens) ``X [T, in]`` that the layer saw, in float32; the scale makes
    experts with more data count no more. A layer whose weight is an embedding's (a tied head) is left out. ``forward``
    runs the model on one example, without padding.
    Jin et al., "Dataless Knowledge Fusion", 2022, https://arxiv.org/abs/2212.09849.

    Returns:
        The Gram matrices, and for layers that are given the very input of another one (query, key, value) the name of
        that one's weight, under which their matrix is found.

    Raises:
        ValueError: no layer saw an input, or an input is not finite (naming the weight).
    """
    grams = _Grams(model)
    handles = [layer.register_forward_pre_hook(partial(grams.add, name)) for name, layer in grams.layers.items()]
    try:
        with torch.no_grad():
            for example in examples:
                grams.seen = []
                forward(model, example)
    finally:
        for handle in handles:
            handle.remove()
    if not grams.sums:
        raise ValueError("no linear layer of the model saw an input")
    for name, total in grams.sums.items():
        if not torch.isfinite(total.sum()):
            raise ValueError(f"the input of {name} is not finite")
        total.div_(grams.tokens[name])
    return grams.sums, grams.aliases


class _Grams:
    """XᵀX of every linear layer, added up by a hook on it."""

    def __init__(self, model: nn.Module):
        tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        names = {id(p): name for name, p in model.named_parameters()}
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in tied]
        self.layers = {names[id(m.weight)]: m for m in linear if id(m.weight) in names}
        self.sums: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}
        self.aliases: dict[str, str] = {}
        self.seen: list[tuple[Tensor, str]] = []
        """Inputs of this example, each with the first layer that was given it."""

    def add(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take in what a layer is given, unless another layer was given the very same tensor."""
        given = inputs[0]
        if name in self.aliases:
            return
        owner = next((own for tensor, own in self.seen if tensor is given), None)
        if owner is not None and name not in self.sums:
            self.aliases[name] = owner
            return
        self.seen.append((given, name))
        rows = given.detach().reshape(-1, given.shape[-1]).float()  # [T, in]
        if name not in self.sums:
            self.sums[name], self.tokens[name] = rows.new_zeros(rows.shape[1], rows.shape[1]), 0
        self.sums[name].addmm_(rows.mT, rows)
        self.tokens[name] += len(rows)
