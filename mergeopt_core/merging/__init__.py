"""Merge methods, one a file; importing this package puts all of ours into mergekit's registry."""

from mergeopt_core.merging import (
    dare,
    elementwise,
    fisher,
    iso_c,
    iso_cts,
    mergekit_api,
    mixup,
    model_stock,
    regmean,
    subspace_boosting,
    ties,
    ties_global,
    tsv_m,
    wudi,
)
from mergeopt_core.merging.mergekit_api import check_parameters, describe, names, prepare
from mergeopt_core.merging.run import merge_tensor, side_by_side

__all__ = [
    "check_parameters",
    "dare",
    "describe",
    "elementwise",
    "fisher",
    "iso_c",
    "iso_cts",
    "merge_tensor",
    "mergekit_api",
    "mixup",
    "model_stock",
    "names",
    "prepare",
    "regmean",
    "side_by_side",
    "subspace_boosting",
    "ties",
    "ties_global",
    "tsv_m",
    "wudi",
]
