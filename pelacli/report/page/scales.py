"""From values to places on an axis, and the round values that are written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        low, high: values at its ends.
        start, end: where these lie, in the units of the plot.
        log: whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        low, high = self._measure(self.low), self._measure(self.high)
        share = (self._measure(value) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Some ``count`` round values within the axis, or fewer."""
        if self.log:
            return self._powers(count)
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(n * step, 12) for n in range(first, last + 1)]

    def _powers(self, count: int) -> list[float]:
        first = math.ceil(math.log10(self.low) - 1e-9)
        last = math.floor(math.log10(self.high) + 1e-9)
        every = max(1, math.ceil((last - first + 1) / count))
        powers = [10.0**n for n in range(first, last + 1, every)]
        if len(powers) >= 2:
            return powers
        between = (m * 10.0**n for n in range(first - 1, last + 1) for m in (1, 2, 5))
        return [value for value in between if self.low <= value <= self.high]

    def _measure(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value


def around(
    values: Iterable[float], start: float, end: float, *, log: bool = False, zero: bool = False
) -> Scale:
    """An axis that holds all values with a margin.

    Args:
        log: positive values; others are left out of it.
        zero: begin at 0 where the values are all positive and not far from it.
    """
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    low, high = (min(known), max(known)) if known else ((0.1, 1.0) if log else (0.0, 1.0))
    if log:
        factor = max(1.25, (high / low) ** 0.06)
        return Scale(low / factor, high * factor, start, end, log=True)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    bottom = low - margin
    if zero and (low >= 0 > bottom or 0 <= low < 0.6 * high):
        bottom = 0.0
    return Scale(bottom, high + margin, start, end)


def label(value: float) -> str:
    """A round value beside an axis."""
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-2 <= size < 1e5:
        return f"{value:,.10g}"
    power = math.floor(math.log10(size) + 1e-9)
    factor = value / 10.0**power
    return _power(power) if abs(factor - 1) < 1e-9 else f"{factor:.3g}·{_power(power)}"


def _power(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))
