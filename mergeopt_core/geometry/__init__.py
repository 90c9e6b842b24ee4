"""The shape of task vectors: how their elements are distributed and how they lie to each other."""

from mergeopt_core.geometry.task_vectors import (
    LaplaceFit,
    SignAgreement,
    cosines,
    gram,
    ks_laplace,
    ks_normal,
    laplace_fit,
    sample_positions,
    sign_agreement,
    squared_distance,
)

__all__ = [
    "LaplaceFit", "SignAgreement", "cosines", "gram", "ks_laplace", "ks_normal", "laplace_fit", "sample_positions",
    "sign_agreement", "squared_distance",
]  # fmt: skip
