"""Labels of samples: what they say in one spelling, and the names and numbers of their classes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from pelacli.errors import RequestError

_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
# What programs write for a value that is not there. "none" and "NA" are words that classes have.
_MISSING = {"nan", "null", "<na>", "#n/a", "n/a"}
_NO_LABEL = {"-1", "-"}  # GLUE's and SNLI's words for it
# Class numbers may have gaps, but numbers far above the count of classes number something else.
_GAPS, _FEW = 100, 1000


def plain(value: Any) -> Any:
    """A label in one spelling: text without blanks around it; 1.0 as 1, as csv and JSON may each
    write it; None where there is none."""
    if isinstance(value, str):
        text = value.strip()
        return text or None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def is_none(value: Any) -> bool:
    """Whether a label says that the sample has no class: GLUE's −1, SNLI's "-"."""
    return str(value) in _NO_LABEL or whole_number(value) == -1


def is_missing_word(value: Any) -> bool:
    """Whether a text is what programs write for a value that is not there."""
    return isinstance(value, str) and value.strip().casefold() in _MISSING


def check(value: Any, where: str, label: str) -> None:
    """Refuse a label that is no class.

    Raises:
        RequestError: a list or an object; a word for a missing value; an infinite number.
    """
    if is_missing_word(value):
        raise RequestError(
            f"{where}: {label} {value!r} is what programs write for a missing value; fill it in, "
            "leave the entry out, or call the class something else"
        )
    if not isinstance(value, str | int | float) or (isinstance(value, float) and math.isinf(value)):
        raise RequestError(
            f"{where}: {label} {value!r:.60} is no class; a class is one word or one number"
        )


def names_of(values: Sequence[Any], origin: str) -> list[str]:
    """The names of the classes that labels tell of: by the alphabet; where all are whole numbers,
    "0", "1", … up to the highest.

    Args:
        values: labels, one at least, as `plain` gives them.
        origin: where they stand, in errors.

    Raises:
        RequestError: a number below 0 or far above the count of classes; fractions; names that
            differ in nothing but capitals.
    """
    whole = [whole_number(value) for value in values]
    numbers = [number for number in whole if number is not None]
    if len(numbers) == len(values):
        if min(numbers) < 0:
            raise RequestError(f"{origin}: label {min(numbers)} is no class; number them from 0")
        distinct, highest = len(set(numbers)), max(numbers)
        if highest >= max(_FEW, _GAPS * distinct):
            raise RequestError(
                f"{origin}: the labels go up to {highest}, and only {distinct} of them differ: "
                "these are no classes; number the classes from 0, or name them"
            )
        return [str(number) for number in range(highest + 1)]
    if all(_decimal(value) for value in values):
        raise RequestError(
            f"{origin}: the labels are scores, no classes; for those there are the tasks "
            "text-regression and sentence-embedding"
        )
    names = sorted({str(value) for value in values})
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise RequestError(
                f"{origin}: the classes {other!r} and {name!r} differ in capitals alone; write "
                "both the same way"
            )
    return names


def are_numbers(names: Sequence[str]) -> bool:
    """Whether classes are called by their places: "0", "1", …"""
    return list(names) == [str(number) for number in range(len(names))]


def whole_number(value: Any) -> int | None:
    """The value as an integer, where it is one, or the text of one: "1" and "1.0"."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        fits = _WHOLE.fullmatch(value.strip())
        return int(value.strip().partition(".")[0]) if fits and len(value) < 100 else None
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def score(value: Any, where: str) -> float:
    """A finite number.

    Raises:
        RequestError: the value is none.
    """
    try:
        number = float(value) if "_" not in str(value) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(
            f"{where}: {value!r:.60} is no score; give a finite number, with a point for decimals"
        )
    return number


def _decimal(value: Any) -> bool:
    """Whether a label is a number with decimals, also behind a comma."""
    try:
        return math.isfinite(float(str(value).replace(",", ".")))
    except (TypeError, ValueError, OverflowError):
        return False


def in_order(names: Sequence[str], order: Sequence[str] | None) -> list[str] | None:
    """The model's names, where it has names of its own and the data's are among them."""
    if order is None or not {n.casefold() for n in names} <= {n.casefold() for n in order}:
        return None
    return list(order)


def spelling(name: str, order: Sequence[str] | None) -> str:
    """The model's spelling of a name."""
    return next((own for own in order or () if own.casefold() == name.casefold()), name)
