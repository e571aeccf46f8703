"""The names of a model's classes in a configuration of transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_UNNAMED = re.compile(r"LABEL_\d+")


def read(config: Any) -> tuple[str, ...]:
    """The names in a configuration, by number; empty where it has none."""
    names = [str(name) for _, name in sorted(config.id2label.items())]
    return () if all(_UNNAMED.fullmatch(name) for name in names) else tuple(names)


def write(config: Any, names: Sequence[str]) -> None:
    """Keep the names in a configuration."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def forget(config: Any) -> None:
    """Take the names out of a configuration: they were another head's. Its own setter of
    ``num_labels`` keeps them where the number is the same."""
    write(config, [f"LABEL_{number}" for number in range(config.num_labels)])
