"""Find a budget by its name."""

from __future__ import annotations

import pkgutil
from collections.abc import Container
from functools import cache
from importlib import import_module
from typing import cast

from pelacli.ranks import budgets
from pelacli.ranks.budget import Budget
from pelacli.ranks.budgets.base import Kind
from pelacli.ranks.policies import registry as policies


@cache
def names() -> tuple[str, ...]:
    """The budgets that there are: those that a policy lists in the policies' order, then others."""
    listed = [key for policy in policies.names() for key in policies.get(policy).BUDGETS]
    files = {module.name for module in pkgutil.iter_modules(budgets.__path__)}
    known = sorted(files - {"base", "registry"})
    return tuple(sorted(known, key=[*listed, *known].index))


@cache
def get(name: str) -> Kind:
    """The budget of this name, one of `names`."""
    return cast(Kind, import_module(f"{budgets.__name__}.{name}").Kind(name))


def alone() -> tuple[str, ...]:
    """The budgets that allow no other beside them, the last of `names` first."""
    return tuple(name for name in reversed(names()) if get(name).ALONE)


def asked_of_policies() -> tuple[str, ...]:
    """The budgets that a policy meets as they stand: no search, and no ranks from elsewhere."""
    return tuple(name for name in names() if get(name).MET_BY and not get(name).IS_SEARCHED)


def searched() -> tuple[str, ...]:
    """The budgets for which models are measured."""
    return tuple(name for name in names() if get(name).IS_SEARCHED)


def owners(name: str) -> tuple[str, ...]:
    """The policies that can meet a budget; all of them where it asks none."""
    met_by = get(name).MET_BY
    return policies.names() if met_by is None else policies.with_budget(met_by)


def implied_policy(given: Container[str]) -> str | None:
    """The policy that the given budgets can't do without; None where the default one will do."""
    for name in names():
        if name in given and Budget.policy not in owners(name):
            return owners(name)[0]
    return None
