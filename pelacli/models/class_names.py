"""Names of a model's classes: kept where its library reads them, and met by the data's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pelacli.models.inputs import ImageInput
from pelacli.models.libraries import library
from pelacli.models.opened import OpenModel


def write(opened: OpenModel, names: Sequence[str]) -> None:
    """Keep the names of its classes in a model that takes images, where its library reads them; a
    library that has no place for them keeps none.

    Args:
        names: one for each output.
    """
    adapter = library(opened.library)
    keep = getattr(adapter, "name_classes", None)
    if keep is not None and isinstance(opened.inputs, ImageInput):
        keep(opened.module, names)
        opened.config = adapter.config(opened.module)
        opened.inputs = replace(opened.inputs, labels=tuple(names))


def positions(classes: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """The model's number of each of the data's classes, found by name; None unless it has them all
    and each once.

    Args:
        labels: the model's names; case and spaces around them do not count.
    """
    number_of = {_plain(name): number for number, name in enumerate(labels)}
    numbers = [number_of[_plain(name)] for name in classes if _plain(name) in number_of]
    return numbers if classes and len(numbers) == len(classes) == len(set(numbers)) else None


def are_others(classes: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether both are named, and the model does not have all of the data's classes."""
    return bool(classes and labels) and positions(classes, labels) is None


def _plain(name: str) -> str:
    return name.strip().lower()
