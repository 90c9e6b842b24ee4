"""Scoring: a suite of lm-eval tasks on a live model, built once and run on every merge."""
