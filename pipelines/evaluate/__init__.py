"""Scoring: a suite of lm-eval tasks on a live model, built once and run on every merge.

Importing this package is cheap; lm-eval, torch and transformers come with ``pipelines.evaluate.evaluator``.
"""

from pipelines.evaluate.suite import check_suite, suite_fingerprint

__all__ = ["check_suite", "suite_fingerprint"]
