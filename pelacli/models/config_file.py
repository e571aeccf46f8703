"""config.json of a model's directory, before its library reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.manifest import digests
from pelacli.messages import shown
from pelacli.models.weight_files import shapes
from pelacli.system import json_files

FILE = "config.json"
# What counts a model's parts, each of which has tensors of its own and takes a moment to build.
_PARTS = re.compile(r"(layers?|blocks|depths?|repeats?|stages)$")
# What else is counted, such as experts, classes and heads: each is an index of some tensor.
_COUNTS = re.compile(r"^(num|n)_|experts$")

_NAMED = ("id2label", "label2id")  # what has an entry for each class


@dataclass(frozen=True)
class Most:
    """The largest counts that a configuration may hold.

    Attributes:
        parts: of layers and the like.
        others: of all else that is counted.
        why: what a larger one is more than.
    """

    parts: int
    others: int
    why: str = "any model has"


_USUAL = Most(100, 1_000)  # what every model may have, and not be worth a look at its weights
_UNWEIGHED = Most(1_000, 100_000)  # what it may have where there are no weights


def read(folder: Path, remedy: str) -> dict[str, Any]:
    """config.json as it is.

    Raises:
        RequestError: it is missing, no JSON object, or counts more of something than the weights
            beside it can be of, or than any model has.
    """
    file = folder / FILE
    config = json_files.read_as(dict, file, remedy)
    if any(_beyond(config, _USUAL)):
        _refuse(config, _most(folder), str(file), remedy)
    return config


def check_counts(settings: Any, where: str, remedy: str) -> None:
    """Refuse settings of a model with more layers than any model has.

    Raises:
        RequestError: with the key.
    """
    _refuse(settings, _UNWEIGHED, where, remedy)


def _most(folder: Path) -> Most:
    """What the weights of a directory can be of: no more layers than they have tensors, and of all
    else no more than the longest of their sides."""
    stored = [s for file in digests.plain_weight_files(folder) for s in shapes(file).values()]
    if not stored:
        return _UNWEIGHED
    longest = max((side for shape in stored for side in shape), default=0)
    parts, others = max(_USUAL.parts, len(stored)), max(_USUAL.others, longest)
    return Most(parts, others, "the weights beside it can be of")


def _refuse(config: Any, most: Most, where: str, remedy: str) -> None:
    for key, value in _beyond(config, most):
        raise RequestError(f"{where}: {key} is {shown(value)}, more than {most.why}; {remedy}")


def _beyond(value: Any, most: Most) -> Iterator[tuple[str, Any]]:
    """The counts in a configuration, or in a part of one, that are larger than they may be."""
    if isinstance(value, list):
        for item in value:
            yield from _beyond(item, most)
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from _beyond(item, most)
        limit = most.parts if _PARTS.search(key) else most.others if _COUNTS.search(key) else None
        counts = item if isinstance(item, list) else [item]
        if limit is not None and any(isinstance(n, int | float) and n > limit for n in counts):
            yield key, item
        if key in _NAMED and isinstance(item, dict) and len(item) > most.others:
            yield f"the number of classes in {key}", len(item)
