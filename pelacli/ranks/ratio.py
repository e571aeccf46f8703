"""Ratios, exactly: from text, and as text that reads back as the same ratio."""

from __future__ import annotations

import re
from fractions import Fraction

from pelacli.messages import shown

# A decimal or a fraction. Exponents end at three digits: Fraction("1e-999999999") never returns.
_RATIO = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?|[+-]?\d+/\d+", re.IGNORECASE)


def parse(value: str | float | Fraction) -> Fraction:
    """A ratio, exactly: "0.5", "2/3", 0.1 (which is 1/10).

    Raises:
        ValueError: it is no number, or not above 0 and at most 1.
    """
    written = re.sub(r"\s*/\s*", "/", str(value).strip())
    try:
        ratio = Fraction(written) if _RATIO.fullmatch(written) else None
    except (ValueError, ZeroDivisionError):
        ratio = None
    if ratio is None:
        raise ValueError(f"{shown(value)} is no ratio; give a decimal or a fraction: 0.5, 2/3")
    if not 0 < ratio <= 1:
        shortened = shown(written)[1:-1]
        raise ValueError(f"{shortened} is out of range; a ratio is above 0 and at most 1")
    return ratio


def text(ratio: Fraction) -> str:
    """A decimal where a short one is exact, else the fraction: 0.5, 2/3."""
    if ratio.denominator == 1:
        return str(ratio)
    decimal = f"{float(ratio):.6f}".rstrip("0").rstrip(".")
    return decimal if Fraction(decimal) == ratio else str(ratio)


def rounded_up(part: int, whole: Fraction | int) -> str:
    """part / whole, rounded up to 4 digits: as a budget it suffices for the part."""
    return text(Fraction(-(-part * 10_000 // whole), 10_000))


def rounded_down(share: float) -> str:
    """A share, rounded down to 4 digits."""
    return text(Fraction(int(share * 10_000), 10_000))
