"""Numbers and lists as people read them."""

from __future__ import annotations

import math

from mergeopt_core.statistics import Interval, Tally

UNKNOWN = "–"


def number(x: float, digits: int = 3, sign: str = "") -> str:
    """0.612, with a real minus sign; a dash where it is not known."""
    return UNKNOWN if math.isnan(x) else f"{round(x, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def signed(x: float, digits: int = 3) -> str:
    """+0.092 or −0.092."""
    return number(x, digits, "+")


def bounds(interval: Interval, digits: int = 3, sign: str = "") -> str:
    """[0.590, 0.633], or nothing where there is no interval."""
    low, high = (number(x, digits, sign) for x in (interval.low, interval.high))
    return f"[{low}, {high}]" if interval.known else ""


def score(interval: Interval | None, digits: int = 3, sign: str = "") -> str:
    """0.612 [0.590, 0.633]."""
    if interval is None:
        return UNKNOWN
    return f"{number(interval.estimate, digits, sign)} {bounds(interval, digits, sign)}".strip()


def gap(interval: Interval | None, digits: int = 3) -> str:
    """+0.092 [+0.070, +0.114]."""
    return score(interval, digits, "+")


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


def count(n: int, noun: str) -> str:
    """1 expert, 12 experts."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def listed(names: list[str], limit: int = 6) -> str:
    """A, b and c; the first few and how many more."""
    if len(names) > limit:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"
