"""Find a task by its name, and give it its settings."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from pelacli import tasks
from pelacli.errors import RequestError
from pelacli.tasks.base import Base


def names() -> list[str]:
    """The tasks there are."""
    found = (module.name for module in pkgutil.iter_modules(tasks.__path__))
    return sorted(
        name.replace("_", "-") for name in found if name not in ("base", "common", "registry")
    )


def get(name: str, args: Mapping[str, Any] | None = None) -> Base:
    """The task of this name, with its settings.

    Args:
        args: the recipe's ``task_args``.

    Raises:
        RequestError: there is no such task, or it has no such setting; the nearest are named.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names())}"
        raise RequestError(f"unknown task {name!r}: {hint}")
    kind: type[Base] = import_module(f"{tasks.__name__}.{name.replace('-', '_')}").Task
    for key in args or {}:
        if key not in kind.model_fields:
            near = difflib.get_close_matches(key, kind.model_fields, 1)
            known = ", ".join(kind.model_fields) or "no settings"
            hint = f"did you mean {near[0]!r}?" if near else f"it has {known}"
            raise RequestError(f"task_args: task {name!r} has no {key!r}; {hint}")
    try:
        return kind(**(args or {}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("task_args", *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise RequestError(f"{place}: {message} (task {name!r})") from None
