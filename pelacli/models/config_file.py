"""config.json of a model's directory, before its library reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.messages import shown
from pelacli.system import json_files

FILE = "config.json"
# What counts a model's parts. A slip here would build parts until memory runs out; no width or
# number of words does, since weights are built without memory.
_COUNTS = re.compile(r"(layers|blocks|depths?|repeats?|stages)$")
_MOST = 10_000


def read(folder: Path, remedy: str) -> dict[str, Any]:
    """config.json as it is.

    Raises:
        RequestError: it is missing, no JSON object, or says how often something is repeated with a
            number that no model has.
    """
    file = folder / FILE
    config = json_files.read_as(dict, file, remedy)
    check_counts(config, str(file), remedy)
    return config


def check_counts(value: Any, where: str, remedy: str) -> None:
    """Refuse a configuration, or a part of one, with more layers than any model has.

    Raises:
        RequestError: with the key.
    """
    if isinstance(value, list):
        for item in value:
            check_counts(item, where, remedy)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        check_counts(item, where, remedy)
        counts = item if isinstance(item, list) else [item]
        if _COUNTS.search(key) and any(isinstance(n, int | float) and n > _MOST for n in counts):
            raise RequestError(f"{where}: {key} is {shown(item)}, which no model has; {remedy}")
