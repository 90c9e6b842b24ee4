"""Low-rank adapters, and how an offset reaches the merged update.

An adapted layer computes (W + s·B·A) x. Only A and B are trained, but a merge moves W + s·B·A, so the offset is put on
the frozen W below the adapter: the gradients of A and B are then taken at W + s·B·A + ε, as a merge would put it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from conf.errors import UserError, nearest
from conf.schema import Lora
from mergeopt_core.finetuning.offset import Origin


def adapt(model: nn.Module, spec: Lora) -> Any:
    """Put adapters on the model's target layers.

    Raises:
        UserError: No layer has one of the target names.
    """
    from peft import LoraConfig, get_peft_model

    linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for target in spec.targets:
        if target not in linear:
            raise UserError(
                f"no linear layer is called {target!r}", where="training.lora.targets", do=nearest(target, linear)
            )
    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=list(spec.targets),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, config)


def layers(model: nn.Module) -> dict[str, Any]:
    """The adapted layers by the name of the weight below them."""
    from peft.tuners.lora import LoraLayer

    found = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    return {name.removeprefix("base_model.model.") + ".weight": m for name, m in found.items()}


def merged_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights that an offset moves: those below the adapters."""
    return [(name, layer.get_base_layer().weight) for name, layer in layers(model).items()]


class AdapterOrigin(Origin):
    """Knows θ − θ0 of the moved weights as the adapters' s·B·A."""

    def __init__(self, model: nn.Module):
        super().__init__([])
        self.layers = {layer.get_base_layer().weight.data_ptr(): layer for layer in layers(model).values()}

    def vector(self, i: int, weight: Tensor) -> Tensor:
        """s·B·A above the i-th moved weight."""
        return self.layers[weight.data_ptr()].get_delta_weight("default").detach().to(weight.dtype)

    def checksum(self) -> float:
        """The frozen weights are the base's own: there is nothing to confuse."""
        return 0.0
