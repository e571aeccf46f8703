"""What a model is trained and judged on: one file per task, imported when it is asked for.

To add a task, write ``tasks/NAME.py`` with a class `Task` derived from `pelacli.tasks.base.Base`;
nothing else changes. ``task = "some-name"`` in a recipe finds ``some_name.py``, and ``task_args``
are the fields of its class. Files that begin with an underscore, and ``base``, are no tasks.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.loader import Batch
from pelacli.tasks.base import Base, Metrics

__all__ = ["Base", "Metrics", "evaluate", "get", "losses", "names"]


def names() -> list[str]:
    """The tasks there are."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(
        name.replace("_", "-") for name in found if name != "base" and not name.startswith("_")
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
    kind: type[Base] = import_module(f"{__name__}.{name.replace('-', '_')}").Task
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


def losses(task: Base, output: Any, batch: Batch, weight: float = 1.0) -> dict[str, Tensor]:
    """The task's losses by name, times a weight; "task" where there is but one."""
    found = task.loss(output, batch)
    named = found if isinstance(found, Mapping) else {"task": found}
    return {name: weight * value for name, value in named.items()}


def evaluate(
    module: nn.Module,
    loader: Iterable[Batch],
    task: Base,
    device: torch.device | str = "cpu",
    num_classes: int | None = None,
) -> dict[str, float]:
    """The task's metrics of a model, in eval mode; its mode before comes back.

    Every process of a distributed run must call it; each adds its part, and all get the whole.

    Args:
        num_classes: the model's; by default the loader's.
    """
    classes = num_classes or getattr(loader, "num_classes", None)
    return task.evaluate(module, loader, torch.device(device), classes)
