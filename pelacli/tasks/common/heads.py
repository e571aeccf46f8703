"""How many classes the head of a task gets, and their names."""

from __future__ import annotations

from collections.abc import Sequence

from pelacli.data.dataset import Dataset
from pelacli.errors import RequestError


def head_classes(dataset: Dataset, num_classes: int | None) -> tuple[list[str], int]:
    """The classes of a head for a dataset.

    Args:
        dataset: the training split. Where the model names more classes than ``num_classes``, the
            head is for the data's own classes alone.
        num_classes: the recipe's. It may be larger than the number of the data's classes: the
            further classes are then never right. None: as many as the data has.

    Returns:
        (the known names, at most as many as there are classes; the number of classes, 0 where
        neither the recipe nor the data says it).

    Raises:
        RequestError: the recipe asks for fewer classes than the data has.
    """
    names = list(dataset.classes or ())
    if num_classes is None:
        return names, len(names)
    own = list(dataset.own_classes or names)
    if num_classes < len(own):
        raise RequestError(
            f"num_classes = {num_classes}: {dataset.spec} has {len(own)} classes; set it to "
            f"{len(own)} or more, or leave it out"
        )
    return (own if num_classes < len(names) else names), num_classes


def all_named(names: Sequence[str], count: int) -> list[str]:
    """The names, and further ones up to the count for classes that the data does not have."""
    return [*names, *(f"class {number}" for number in range(len(names), count))]
