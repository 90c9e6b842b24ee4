"""float32 masters of half-precision weights: the optimizer steps in float32, the model computes in half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class MasterWeights(Optimizer):
    """Gives the base optimizer a float32 copy of each half-precision parameter, and rounds the result into that.

    With ``MergOPT(opt, masters=opt.masters)`` the working weights are moved in place and brought back from the masters:
    the offset then costs no further copy.

    Args:
        base: An optimizer over the model's half-precision parameters that has not stepped yet.

    Raises:
        ValueError: The optimizer has a state already.
    """

    def __init__(self, base: Optimizer):
        if base.state:
            raise ValueError("the optimizer has stepped already: wrap it before the first step")
        super().__init__([{**g, "params": list(g["params"])} for g in base.param_groups], base.defaults)
        self.base = base
        self.masters: dict[Tensor, Tensor] = {}
        for group, view in zip(base.param_groups, self.param_groups):
            group["params"] = [self._master(p) for p in view["params"]]
        self._pairs = list(self.masters.items())

    def _master(self, p: Tensor) -> Tensor:
        if p.dtype not in (torch.bfloat16, torch.float16):
            return p
        self.masters[p] = torch.nn.Parameter(p.detach().float())
        return self.masters[p]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the masters with the working weights' gradients, and round the result into the working weights."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._pass_on()
        for p, master in self._pairs:
            master.grad = None if p.grad is None else p.grad.float()
        self.base.step()
        for p, master in self._pairs:
            master.grad = None
            p.copy_(master)
        return loss

    def _pass_on(self) -> None:
        """Tell the base optimizer what a schedule wrote into this one's groups."""
        for group, view in zip(self.base.param_groups, self.param_groups):
            group.update({k: v for k, v in view.items() if k != "params"})

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, and the masters' values."""
        self._pass_on()
        return {**self.base.state_dict(), "masters": [m.detach() for _, m in self._pairs]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the base optimizer's state and the masters."""
        rest = dict(state_dict)
        for (p, master), value in zip(self._pairs, rest.pop("masters"), strict=True):
            master.copy_(value)
            p.copy_(master)
        self.base.load_state_dict(rest)
        for group, view in zip(self.base.param_groups, self.param_groups):
            view.update({k: v for k, v in group.items() if k != "params"})
