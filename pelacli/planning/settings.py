"""The settings of [decompose] for planning from stored spectra: as when those were made, but for
what the flags say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pelacli.errors import RequestError
from pelacli.ranks.budget import BUDGETS
from pelacli.ranks.policies import registry
from pelacli.recipe import flags as recipe_flags
from pelacli.recipe.flags import StoredKeys
from pelacli.recipe.schema import MEASURED_ON, Decompose
from pelacli.recipe.stored import known_keys

# Keys of [decompose] that the spectra depend on, or that need the weights.
_NEED_THE_MODEL = (
    "calibrate", "samples", "correct", "include", "exclude", "max_drop", *MEASURED_ON,
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
    if any(key in flags for key in BUDGETS):
        kept = {key: value for key, value in kept.items() if key not in BUDGETS}
        if kept.get("policy") in set(registry.names()) - set(registry.with_budget("ratio")):
            del kept["policy"]
    _check_flags(flags, where)
    if "threshold" in flags:
        flags.setdefault("policy", "threshold")
    settings = recipe_flags.from_flags(
        {"model": where, "output": where},
        {"decompose": kept | flags},
        overrides,
        StoredKeys(where, frozenset(("decompose", key) for key in kept if key not in flags)),
    ).decompose
    assert settings is not None
    _check_flags(settings.model_fields_set, where)
    return settings


def check_has_budget(flags: Mapping[str, Any], offered: Sequence[str] = BUDGETS) -> None:
    """Refuse flags none of which says how small.

    Args:
        flags: key → value; None was not given.
        offered: the keys to name in the message.

    Raises:
        RequestError: naming the flags that say how small.
    """
    if all(flags.get(key) is None for key in BUDGETS):
        names = [f"--{key.replace('_', '-')}" for key in offered]
        names[0] += " (how much smaller)"
        raise RequestError(f"decompose needs {', '.join(names[:-1])} or {names[-1]}")


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
