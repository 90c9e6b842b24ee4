"""Training in the tangent space: the model as its first-order expansion at θ0, in which task vectors simply add up.

f_lin(x; θ) = f(x; θ0) + J(x; θ0)(θ − θ0) (Ortiz-Jimenez et al. 2023). J is applied by forward-mode differentiation, so
no Jacobian is formed; one evaluation takes three matrix products where the module takes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel


class Tangent:
    """The linearised model, a function of the module's own parameters θ, which may be trained.

    Args:
        model: The module; its parameters are θ.
        theta0: θ0 by parameter name; default: the parameters now.
        vector: θ − θ0 by parameter name, where it is fixed; the module's parameters are then θ0, and no copy is made.

    Raises:
        ValueError: ``theta0`` or ``vector`` lacks a parameter, or holds one of another shape.
    """

    def __init__(
        self, model: nn.Module, theta0: Mapping[str, Tensor] | None = None, vector: Mapping[str, Tensor] | None = None
    ):
        self.model = model
        own = dict(model.named_parameters())
        for what, given in (("theta0", theta0), ("vector", vector)):
            wrong = [n for n, p in own.items() if given is not None and (n not in given or given[n].shape != p.shape)]
            if wrong:
                raise ValueError(f"{what} lacks {len(wrong)} parameters of these names and shapes, such as {wrong[0]}")
        self._vector = None if vector is None else {name: vector[name] for name in own}
        if vector is not None:
            self.theta0 = {name: p.detach() for name, p in own.items()}
        else:
            source = own if theta0 is None else theta0
            self.theta0 = {name: source[name].detach().to(p.device, p.dtype).clone() for name, p in own.items()}

    @property
    def vector(self) -> dict[str, Tensor]:
        """θ − θ0 by parameter name."""
        return self._vector or {name: p - self.theta0[name] for name, p in self.model.named_parameters()}

    def __call__(self, *args: Any, pick: Callable[[Any], Tensor] = lambda out: out, **kwargs: Any) -> Tensor:
        """f(x; θ0) + J(x; θ0)(θ − θ0); ``pick`` takes the tensor out of what the module returns.

        The module runs in evaluation mode (no dropout), in training too.
        """

        def at(parameters: dict[str, Tensor]) -> Tensor:
            return pick(functional_call(self.model, parameters, args, kwargs))

        training = self.model.training
        self.model.eval()
        try:
            with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels have no forward-mode derivative
                start, slope = jvp(at, (self.theta0,), (self.vector,))
        finally:
            self.model.train(training)
        return start + slope
