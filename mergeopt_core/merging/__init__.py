"""Merge methods, one a file; importing this package puts all of ours into mergekit's registry."""

from mergeopt_core.merging.mergekit_api import check_parameters, describe, merge_tensor, names, prepare

__all__ = ["check_parameters", "describe", "merge_tensor", "names", "prepare"]
