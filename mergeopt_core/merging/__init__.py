"""Merge methods, one per file; importing this package puts all of ours into mergekit's registry."""

from mergeopt_core.merging import (
    ace,
    adamerging,
    adapters,
    consensus,
    dare,
    doge,
    fisher_regmean,
    iso,
    linear,
    lines,
    localize_stitch,
    magmax,
    mergekit_api,
    mixup,
    model_stock,
    orthomerge,
    pcb,
    subspace_boosting,
    svc,
    ties,
    tsv_m,
    wudi,
)
from mergeopt_core.merging.mergekit_api import check_parameters, describe, names
from mergeopt_core.merging.run import BoundMethod, merge_tensor, prepare

__all__ = [
    "BoundMethod", "ace", "adamerging", "adapters", "check_parameters", "consensus", "dare", "describe", "doge",
    "fisher_regmean", "iso", "linear", "lines", "localize_stitch", "magmax", "merge_tensor", "mergekit_api", "mixup",
    "model_stock", "names", "orthomerge", "pcb", "prepare", "subspace_boosting", "svc", "ties", "tsv_m", "wudi",
]  # fmt: skip
