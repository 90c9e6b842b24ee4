"""Training methods that prepare experts for merging: where the gradient is taken, and nothing else."""

from mergeopt_core.finetuning.mergopt import MergOPT, Offset
from mergeopt_core.finetuning.perturbation import Perturbation, PerturbedOptimizer
from mergeopt_core.finetuning.selection import Moved, select

__all__ = ["MergOPT", "Moved", "Offset", "Perturbation", "PerturbedOptimizer", "select"]
