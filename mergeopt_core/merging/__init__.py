"""Merge methods, one per file; importing this package puts all of ours into mergekit's registry."""

from mergeopt_core.merging import (
    dare,
    fisher_regmean,
    iso,
    linear,
    mergekit_api,
    mixup,
    model_stock,
    subspace_boosting,
    ties,
    tsv_m,
    wudi,
)
from mergeopt_core.merging.mergekit_api import check_parameters, describe, names
from mergeopt_core.merging.run import BoundMethod, merge_tensor, prepare

__all__ = [
    "BoundMethod", "check_parameters", "dare", "describe", "fisher_regmean", "iso", "linear", "merge_tensor",
    "mergekit_api", "mixup", "model_stock", "names", "prepare", "subspace_boosting", "ties", "tsv_m", "wudi",
]  # fmt: skip
