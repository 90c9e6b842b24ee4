"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergeopt_core.statistics import Interval, Tally

UNKNOWN = "–"


def number(x: float, digits: int = 3) -> str:
    """0.612, with a real minus sign; a dash where it is not known."""
    return UNKNOWN if math.isnan(x) else f"{x:.{digits}f}".replace("-", "−")


def signed(x: float, digits: int = 3) -> str:
    """+0.092 or −0.092."""
    return UNKNOWN if math.isnan(x) else f"{x:+.{digits}f}".replace("-", "−")


def bounds(interval: Interval, digits: int = 3) -> str:
    """[0.590, 0.633], or nothing where there is no interval."""
    if not interval.known:
        return ""
    return f"[{number(interval.low, digits)}, {number(interval.high, digits)}]"


def score(interval: Interval | None, digits: int = 3) -> str:
    """0.612 [0.590, 0.633]."""
    if interval is None:
        return UNKNOWN
    return f"{number(interval.estimate, digits)} {bounds(interval, digits)}".strip()


def gap(interval: Interval | None, digits: int = 3) -> str:
    """+0.092 [+0.070, +0.114]."""
    if interval is None:
        return UNKNOWN
    if not interval.known:
        return signed(interval.estimate, digits)
    between = f"[{signed(interval.low, digits)}, {signed(interval.high, digits)}]"
    return f"{signed(interval.estimate, digits)} {between}"


def tally(count: Tally | None) -> str:
    """7/9 [0.45, 0.94]."""
    return UNKNOWN if count is None else f"{count.k}/{count.n} {bounds(count.share, 2)}"


def p_value(p: float | None) -> str:
    """0.012, or <0.001."""
    if p is None or math.isnan(p):
        return UNKNOWN
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def direction(interval: Interval | None) -> int:
    """+1 or −1 where an interval lies on one side of zero, 0 where it does not (or is not known)."""
    if interval is None or not interval.excludes_zero:
        return 0
    return 1 if interval.low > 0 else -1


def experts(count: int) -> str:
    """1 expert, 12 experts."""
    return f"{count} expert" + ("" if count == 1 else "s")


def listed(names: list[str], limit: int = 6) -> str:
    """A, b and c; the first few and how many more."""
    if len(names) > limit:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"
