"""From mergekit's specification of a method to the one that people are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from mergeopt_core.merging import mergekit_methods as stock
from mergeopt_core.merging.info import MethodInfo, Parameter
from mergeopt_core.merging.parameter_help import help_for


def method_info(spec: Any, fast: Any, hidden: Sequence[str], *, doc: str, **traits: Any) -> MethodInfo:
    """The description of a method from its specification in the registry and, where it has one, that of its fast
    path."""
    contract = spec.contract
    base = contract.base.value if contract.base.value in ("required", "optional") else "none"
    in_base = int(base == "required")
    most = [n for n in (contract.max_non_base, contract.max_inputs and contract.max_inputs - in_base) if n]
    own = {p.name: p for p in spec.parameters}
    shown = [p for p in (fast or spec).parameters if p.name not in hidden]
    parameters = [_parameter(spec.name, p, own.get(p.name, p)) for p in shown]
    if fast:
        parameters.append(
            Parameter("reference", "bool", False, help=help_for(spec.name, "reference"), mergekit_default=False)
        )
    return MethodInfo(
        name=spec.name,
        pretty=spec.pretty_name or spec.name,
        url=spec.reference_url or "",
        doc="\n".join(line.strip() for line in doc.strip().splitlines()),
        parameters=tuple(parameters),
        base=base,
        min_experts=max(1, contract.min_inputs - in_base, contract.min_non_base or 0),
        max_experts=min(most) if most else None,
        **traits,
    )


def _parameter(method: str, spec: Any, own: Any) -> Parameter:
    """A parameter as declared, with the default and the bounds that this program gives it."""
    kind, optional = spec.value_type, False
    if type(None) in get_args(kind):
        optional, kind = True, next(a for a in get_args(kind) if a is not type(None))
    choices = tuple(get_args(kind)) if get_origin(kind) is Literal else ()
    default = None if own.required else own.default
    ours = stock.DEFAULTS.get((method, spec.name), default)
    if ours is None and not optional and spec.name == "weight":
        ours = stock.REQUIRED_WEIGHT
    low, high = stock.RANGES.get(spec.name, (None, None))
    origin = get_origin(kind) or kind
    if choices:
        shown = "str"
    else:
        shown = (
            "dict"
            if origin is not Any and isinstance(origin, type) and issubclass(origin, Mapping)
            else origin.__name__
        )
    return Parameter(
        name=spec.name,
        type=shown,
        default=dict(ours) if isinstance(ours, Mapping) else ours,
        per_expert=spec.scope.value != "shared",
        required=own.required,
        choices=choices,
        low=low,
        high=high,
        optional=optional,
        help=help_for(method, spec.name),
        mergekit_default=default,
    )
