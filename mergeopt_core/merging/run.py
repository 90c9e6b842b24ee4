"""One merged tensor, for whoever holds the base's and the experts' tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeopt_core.merging import mergekit_api as api
from mergeopt_core.merging import mergekit_methods as stock
from mergeopt_core.merging.checks import by_expert, check_finite, check_result, check_shapes, copy_buffer, unique_ids
from mergeopt_core.merging.randomness import one_thread


def merge_tensor(
    name: str,
    base: Tensor | None,
    experts: Sequence[Tensor],
    *,
    tensor_name: str,
    ids: Sequence[str],
    parameters: Mapping[str, Any],
    seed: int,
    statistics: Sequence[Tensor | None] | None = None,
    prepared: Mapping[str, Any] | None = None,
    cache: Any = None,
    report: dict[str, Any] | None = None,
) -> Tensor:
    """One merged tensor ``[*shape]`` in float32 (float64 where an input is), the same on any number of threads.

    ``statistics`` are the experts' tensors of ``describe(name).statistics``, ``prepared`` is what ``prepare`` came to,
    ``cache`` a dict-like store of what does not depend on the subset, ``report`` takes findings by tensor name (the
    numerical rank of an update that leaves the method ill-posed). torch's random state is left as found.
    Raises ValueError naming tensor and expert (or the cause) for inputs or a result that are not finite, differing
    shapes and bad parameters.
    """
    info, keys = api.describe(name), unique_ids(ids)
    members = ([("the base", base)] if base is not None else []) + [(f"expert {k}", t) for k, t in zip(keys, experts)]
    check_shapes(members, tensor_name)
    if not all(t.is_floating_point() for _, t in members):
        return copy_buffer([t for _, t in members], tensor_name)
    if base is None and info.base == "required":
        raise ValueError(f"merge method {name} needs the base of {tensor_name}")
    checked = by_expert(info, api.check_parameters(name, parameters, len(experts)), ids)
    work = torch.float64 if any(t.dtype == torch.float64 for _, t in members) else torch.float32
    if not members[0][1].numel():
        return members[0][1].to(work)
    kernel = api.kernel_for(name, checked, bool(checked.pop("reference", False)))
    order = range(len(keys)) if info.ordered else sorted(range(len(keys)), key=lambda k: keys[k])
    passed = base if info.needs_base else None
    late = kernel.traits.propagates if kernel else name in stock.PROPAGATES
    with one_thread():
        if not late:
            check_finite(members, tensor_name)
        if kernel:
            carried = {
                "seed": seed,
                "statistics": dict(zip(keys, statistics)) if statistics is not None else None,
                "prepared": prepared,
                "cache": cache,
                "report": report,
            }
            group = api.make_group(passed, [(keys[k], experts[k]) for k in order], tensor_name)
            result = api.run_kernel(kernel, group, checked, carried)
        else:
            wide = [(keys[k], experts[k].to(work)) for k in order]
            group = api.make_group(passed.to(work) if passed is not None else None, wide, tensor_name)
            result = api.run_stock(name, group, checked, seed)
        check_result(result, checked, members if late else (), tensor_name)
    return result


def side_by_side(name: str, parameters: Mapping[str, Any]) -> bool:
    """Whether tensors may be merged in several threads at once: not where mergekit's own code draws random numbers,
    which it takes from torch's global generator."""
    return (
        not api.describe(name).random or api.kernel_for(name, parameters, bool(parameters.get("reference"))) is not None
    )
