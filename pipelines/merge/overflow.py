"""Values that a narrower dtype cannot hold."""

from __future__ import annotations

import torch
from torch import Tensor

from conf.errors import UserError


def check_cast(name: str, wide: Tensor, cast: Tensor, do: str) -> None:
    """Raise ``UserError`` where a tensor that has been cast holds a value that is not finite: one read, in a hot cache.

    ``wide`` is what it was cast from; ``do`` says what helps against an overflow.
    """
    if not cast.numel() or not cast.is_floating_point() or torch.isfinite(torch.stack(torch.aminmax(cast))).all():
        return
    if not torch.isfinite(wide).all():
        raise UserError(
            f"{name}: the merge holds {int((~torch.isfinite(wide)).sum())} values that are not finite", do=do
        )
    dtype, most = str(cast.dtype).removeprefix("torch."), torch.finfo(cast.dtype).max
    what = f"{name} overflows {dtype}: |max| = {wide.abs().max().item():.6g}, {dtype} holds {most:.6g}"
    raise UserError(what, do=do)
