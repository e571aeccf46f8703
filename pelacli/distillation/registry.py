"""Find a loss between outputs by its name."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import cast

from pelacli import distillation
from pelacli.distillation.base import OutputLoss


@cache
def names() -> tuple[str, ...]:
    """The losses that there are."""
    files = {module.name for module in pkgutil.iter_modules(distillation.__path__)}
    return tuple(sorted(files - {"base", "registry"}))


def get(name: str) -> OutputLoss:
    """The loss of this name, one of `names`."""
    return cast(OutputLoss, import_module(f"{distillation.__name__}.{name}"))
