"""Intervals, paired tests, corrections for many questions and constructive interference, on numpy arrays."""

from mergeopt_core.statistics.bootstrap import (
    bootstrap_mean,
    cluster_weights,
    difference_p,
    macro_replicates,
    paired_bootstrap,
    percentile_interval,
    sign_flip,
    task_replicates,
)
from mergeopt_core.statistics.constructive import (
    Standing,
    Tally,
    constructive,
    leads,
    performance_drop,
    share_kept,
    union_test,
)
from mergeopt_core.statistics.power import detectable, documents_needed
from mergeopt_core.statistics.tests import (
    Interval,
    benjamini_hochberg,
    binomial_test,
    clopper_pearson,
    holm,
    mcnemar,
    wilson,
)

__all__ = [
    "Interval", "Standing", "Tally", "benjamini_hochberg", "binomial_test", "bootstrap_mean", "clopper_pearson",
    "cluster_weights", "constructive", "detectable", "difference_p", "documents_needed", "holm", "leads",
    "macro_replicates", "mcnemar", "paired_bootstrap", "percentile_interval", "performance_drop", "share_kept",
    "sign_flip", "task_replicates", "union_test", "wilson",
]  # fmt: skip
