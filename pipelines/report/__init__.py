"""The report of a study: tables, figures and a page that say what merging was worth."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.report.data import TrialRow
    from pipelines.report.report import write_report
    from pipelines.report.tables import Interval, Report, Section

HOMES = {
    "Interval": "tables", "Report": "tables", "Section": "tables", "TrialRow": "data", "write_report": "report",
}  # fmt: skip
__all__ = ["Interval", "Report", "Section", "TrialRow", "write_report"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: the command line's help needs none of them."""
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
