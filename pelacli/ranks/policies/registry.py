"""Find a policy by its name."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import cast

from pelacli.ranks import policies
from pelacli.ranks.policies.base import Policy


@cache
def names() -> tuple[str, ...]:
    """The policies that there are, those first that can meet a ratio."""
    files = {module.name for module in pkgutil.iter_modules(policies.__path__)}
    known = files - {"base", "registry"}
    return tuple(sorted(known, key=lambda name: ("ratio" not in get(name).BUDGETS, name)))


def with_budget(key: str) -> tuple[str, ...]:
    """The policies that a key of a budget belongs to: "ratio", "energy" or "threshold"."""
    return tuple(name for name in names() if key in get(name).BUDGETS)


def get(name: str) -> Policy:
    """The policy of this name, one of `names`."""
    return cast(Policy, import_module(f"{policies.__name__}.{name}"))
