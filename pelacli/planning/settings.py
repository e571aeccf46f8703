"""The settings of [decompose] for planning from stored spectra: as when those were made, but for
what the flags say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pelacli.errors import RequestError
from pelacli.ranks.budgets import registry as budgets
from pelacli.ranks.policies import registry as policies
from pelacli.recipe import flags as recipe_flags
from pelacli.recipe import overrides as recipe_overrides
from pelacli.recipe.decompose import MEASURED_ON, Decompose
from pelacli.recipe.flags import StoredKeys
from pelacli.recipe.stored import known_keys

# Keys of [decompose] that the spectra depend on, or that need the weights.
_NEED_THE_MODEL = (
    "calibrate", "samples", "correct", "include", "exclude", "latency", *budgets.searched(),
    *MEASURED_ON,
)  # fmt: skip


def from_stored(
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    where: str,
    overrides: Sequence[str] = (),
) -> Decompose:
    """The settings that were stored with spectra, changed by flags.

    Args:
        stored: the keys that were set when the spectra were made. Those that need the model are
            passed over, as are those of another version, and its budget where another is given.
        given: flags, which win; None is not given.
        where: the spectra's file, for error messages.
        overrides: "decompose.key=value" each.

    Raises:
        RequestError: a flag that needs the model or that is no good, or a stored value that this
            version can't read.
    """
    flags = {key: value for key, value in given.items() if value is not None}
    kept = {key: value for key, value in stored.items() if key not in _NEED_THE_MODEL}
    kept = known_keys(kept, ("decompose",), lambda key: f"{where}: {'.'.join(map(str, key))}")
    asked = recipe_overrides.section_with("decompose", flags, overrides)
    if asked.get("unit") == "latency":
        raise RequestError(
            f"{where}: holds spectra, no model that could be timed; budget in params or flops, or "
            "decompose the model itself by --unit latency"
        )
    if kept.get("unit") == "latency":  # of the device that it was made on
        del kept["unit"]
    if any(name in asked for name in budgets.names()):
        kept = {key: value for key, value in kept.items() if key not in budgets.names()}
        if kept.get("policy") in set(policies.names()) - set(policies.with_budget("ratio")):
            del kept["policy"]
    _check_flags(flags, where)
    if policy := budgets.implied_policy(flags):
        flags.setdefault("policy", policy)
    settings = recipe_flags.from_flags(
        {"model": where, "output": where},
        {"decompose": kept | flags},
        overrides,
        StoredKeys(where, frozenset(("decompose", key) for key in kept if key not in flags)),
    ).decompose
    assert settings is not None
    _check_flags(settings.model_fields_set, where)
    return settings


def check_has_budget(
    flags: Mapping[str, Any], overrides: Sequence[str], left_out: Sequence[str] = ()
) -> None:
    """Refuse a command line none of whose options says how small.

    Args:
        flags: key → value, all that there are; None was not given.
        overrides: "decompose.key=value" each.
        left_out: budgets not to name in the message.

    Raises:
        RequestError: naming the options that say how small.
    """
    given = recipe_overrides.section_with("decompose", recipe_flags.without_none(flags), overrides)
    if not any(name in given for name in budgets.names()):
        names = [_option(name, flags) for name in budgets.names() if name not in left_out]
        names[0] += " (how much smaller)"
        raise RequestError(f"decompose needs {', '.join(names[:-1])} or {names[-1]}")


def _option(budget: str, flags: Mapping[str, Any]) -> str:
    """How a command line gives a budget; one that has no flag of its own is set as a key."""
    return f"--{budget.replace('_', '-')}" if budget in flags else f"--set decompose.{budget}=…"


def _check_flags(keys: Iterable[str], where: str) -> None:
    """Refuse keys that need the model.

    Raises:
        RequestError: naming the first of them.
    """
    for key in _NEED_THE_MODEL:
        if key in keys:
            raise RequestError(
                f"{where}: stored spectra can't tell what {key} would change; "
                f"leave it out, or decompose the model itself"
            )
