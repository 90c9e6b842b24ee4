"""Executors: the same jobs on this process or on many workers."""

from pipelines.executors.base import Crew, Failure, Outcome, crew, run_trials

__all__ = ["Crew", "Failure", "Outcome", "crew", "run_trials"]
