"""Ratios as text that reads back as the same ratio."""

from __future__ import annotations

from fractions import Fraction


def text(ratio: Fraction) -> str:
    """A decimal where a short one is exact, else the fraction: 0.5, 2/3."""
    decimal = f"{float(ratio):.6f}".rstrip("0").rstrip(".")
    return decimal if Fraction(decimal) == ratio else str(ratio)


def rounded_up(part: int, whole: int) -> str:
    """part / whole, rounded up to 4 digits: as a budget it suffices for the part."""
    return text(Fraction(-(-part * 10_000 // whole), 10_000))


def rounded_down(share: float) -> str:
    """A share, rounded down to 4 digits."""
    return text(Fraction(int(share * 10_000), 10_000))
