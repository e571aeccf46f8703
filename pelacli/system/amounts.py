"""How much of something there is, for people: stretches of time, and how far some work is."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

Reach = Callable[[float, float], object]  # (how much is done, of how much)


class Unit(Enum):
    """What some work is counted in."""

    PIECES = "pieces"
    BYTES = "bytes"
    SHARE = "share"  # of 1


def duration(seconds: float) -> str:
    """A stretch of time: "4 s", "12 min", "1.6 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"


def span(least: float, most: float) -> str:
    """A stretch of time that is not known better: "2 to 3 min", "40 to 60 s"."""
    size, unit = (1.0, "s") if most < 99.5 else (60.0, "min") if most < 5970 else (3600.0, "h")
    low, high = (float(f"{seconds / size:.2g}") for seconds in (least, most))
    return f"about {high:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"


def share_done(done: float, total: float, unit: Unit) -> str:
    """How far some work is: "64 of 256", "3.1 of 14.2 GB", "23 %"."""
    if unit is Unit.SHARE:
        return f"{100 * done / total:.0f} %"
    if unit is Unit.PIECES:
        return f"{done:g} of {total:g}"
    size, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
    return f"{done / size:.1f} of {total / size:.1f} {name}"
