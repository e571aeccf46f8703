"""Names of classes, from the labels of a data set and from a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pelacli.errors import RequestError


def names_of(values: Sequence[Any], origin: str) -> list[str]:
    """The names of the classes that labels tell of: by the alphabet; where all are whole numbers,
    "0", "1", … up to the highest.

    Args:
        values: labels, one at least.
        origin: where they stand, in errors.

    Raises:
        RequestError: a number below 0, or fractions.
    """
    whole = [whole_number(value) for value in values]
    numbers = [number for number in whole if number is not None]
    if len(numbers) == len(values):
        if min(numbers) < 0:
            raise RequestError(f"{origin}: label {min(numbers)} is no class; number them from 0")
        return [str(number) for number in range(max(numbers) + 1)]
    if all(_decimal(value) for value in values):
        raise RequestError(
            f"{origin}: the labels are scores, no classes; for those there are the tasks "
            "text-regression and sentence-embedding"
        )
    return sorted({str(value) for value in values})


def are_numbers(names: Sequence[str]) -> bool:
    """Whether classes are called by their places: "0", "1", …"""
    return list(names) == [str(number) for number in range(len(names))]


def whole_number(value: Any) -> int | None:
    """The value as an integer, where it is one, or the text of one."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _decimal(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def in_order(names: Sequence[str], order: Sequence[str] | None) -> list[str] | None:
    """The model's names, where it has names of its own and the data's are among them."""
    if order is None or not {n.casefold() for n in names} <= {n.casefold() for n in order}:
        return None
    return list(order)


def spelling(name: str, order: Sequence[str] | None) -> str:
    """The model's spelling of a name."""
    return next((own for own in order or () if own.casefold() == name.casefold()), name)
