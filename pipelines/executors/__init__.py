"""Executors: the same jobs on this process or on many workers."""

from pipelines.executors.base import Failure, Outcome, run_trials

__all__ = ["Failure", "Outcome", "run_trials"]
