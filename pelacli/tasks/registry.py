"""Find a task by its name, and give it its settings. A task's name is that of its file, with
hyphens: ``tasks/text_regression.py`` is "text-regression"."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from pelacli import tasks
from pelacli.errors import RequestError
from pelacli.messages import did_you_mean
from pelacli.tasks.base import Base

_NOT_TASKS = ("base", "common", "registry")


def names() -> list[str]:
    """The names of all tasks."""
    files = (module.name for module in pkgutil.iter_modules(tasks.__path__))
    return sorted(file.replace("_", "-") for file in files if file not in _NOT_TASKS)


def get(name: str, settings: Mapping[str, Any] | None = None) -> Base:
    """The task of this name, with its settings.

    Args:
        settings: the recipe's ``task_args``.

    Raises:
        RequestError: there is no such task, or it has no such setting, or not of this value.
    """
    kind, settings = _class(name), settings or {}
    for key in settings:
        if key not in kind.model_fields:
            others = ", ".join(kind.model_fields) or "no settings"
            hint = did_you_mean(key, kind.model_fields, quoted=True, otherwise=f"it has {others}")
            raise RequestError(f"task_args: task {name!r} has no {key!r}; {hint}")
    try:
        return kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in ("task_args", *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise RequestError(f"{path}: {message} (task {name!r})") from None


def _class(name: str) -> type[Base]:
    known = names()
    if name not in known:
        hint = did_you_mean(name, known, quoted=True, otherwise=f"there are {', '.join(known)}")
        raise RequestError(f"unknown task {name!r}: {hint}")
    kind: type[Base] = import_module(f"{tasks.__name__}.{name.replace('-', '_')}").Task
    return kind
