"""Training methods that prepare experts for merging: where the gradient is taken, and nothing else."""

from mergeopt_core.finetuning.mergopt import MergOPT
from mergeopt_core.finetuning.offset import Offset, Shortfall
from mergeopt_core.finetuning.perturbation import Moved, Perturbation, PerturbedOptimizer, select
from mergeopt_core.finetuning.sam import ASAM, SAM
from mergeopt_core.finetuning.tangent import Tangent
from mergeopt_core.finetuning.weights import MasterWeights

__all__ = [
    "ASAM", "SAM", "MasterWeights", "MergOPT", "Moved", "Offset", "Perturbation", "PerturbedOptimizer", "Shortfall",
    "Tangent", "select",
]  # fmt: skip
