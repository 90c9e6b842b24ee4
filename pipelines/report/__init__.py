"""The report of a study: tables, figures and a page that say what merging was worth."""

from pipelines.report.report import Report, write_report
from pipelines.report.rows import TrialRow

__all__ = ["Report", "TrialRow", "write_report"]
