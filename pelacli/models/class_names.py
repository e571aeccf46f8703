"""Names of a model's classes: read from its configuration, kept there, and met by the data's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from pelacli.models.inputs import ImageInput
from pelacli.models.opened import OpenModel

_UNNAMED = re.compile(r"LABEL_\d+")


def read(config: Any) -> tuple[str, ...]:
    """The names in a configuration of transformers, by number; empty where it has none."""
    names = [str(name) for _, name in sorted(config.id2label.items())]
    return () if all(_UNNAMED.fullmatch(name) for name in names) else tuple(names)


def write(opened: OpenModel, names: Sequence[str]) -> None:
    """Keep the names in the configuration of a model of transformers that takes images."""
    config: Any = opened.module.config
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    opened.config |= {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": dict(config.label2id),
    }
    opened.inputs = replace(cast(ImageInput, opened.inputs), labels=tuple(names))


def forget(config: Any) -> None:
    """Take the names out of a configuration of transformers: they were another head's. Its own
    setter of ``num_labels`` keeps them where the number is the same."""
    config.id2label = {number: f"LABEL_{number}" for number in range(config.num_labels)}
    config.label2id = {name: number for number, name in config.id2label.items()}


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
