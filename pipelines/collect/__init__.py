"""Data statistics of experts that some merge methods need."""

from pipelines.collect.find import (
    Collected,
    Subject,
    check_collect,
    find_statistic,
    make_statistics,
    need_statistics,
    needed_kinds,
    open_statistics,
    pool_subjects,
    statistics_for,
)

__all__ = [
    "Collected",
    "Subject",
    "check_collect",
    "find_statistic",
    "make_statistics",
    "need_statistics",
    "needed_kinds",
    "open_statistics",
    "pool_subjects",
    "statistics_for",
]
