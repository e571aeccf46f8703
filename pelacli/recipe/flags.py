"""Recipes from the flags of the command line, alone or in place of a recipe's own values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pelacli.recipe import overrides as recipe_overrides
from pelacli.recipe.keys import Key, dotted, has
from pelacli.recipe.overrides import Overrides
from pelacli.recipe.schema import Recipe
from pelacli.recipe.stored import UPGRADE
from pelacli.recipe.validation import validate


@dataclass(frozen=True)
class StoredKeys:
    """Keys whose values come from a file that pela wrote, not from a flag.

    Attributes:
        file: for error messages.
        keys: (section, key) each.
    """

    file: str = ""
    keys: frozenset[Key] = frozenset()


def from_flags(
    top: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Any]],
    overrides: Sequence[str] = (),
    stored: StoredKeys | None = None,
) -> Recipe:
    """A recipe that no file holds.

    Args:
        top, sections: flags for the top level and for each section; None was not given.
        overrides: "a.b=value" each, which win.
        stored: the keys of ``sections`` that are not flags.

    Raises:
        RequestError: one line that names the flag, the override or the file.
    """
    document: dict[str, Any] = without_none(top)
    for name, flags in sections.items():
        document[name] = without_none(flags)
    applied = recipe_overrides.apply(document, overrides)
    origin = _FlagsAndOverrides(document, frozenset(sections), stored or StoredKeys(), applied)
    return validate(document, origin)


def with_flags(
    recipe: Recipe, section: str, *, instead_of: Collection[str] = (), **flags: Any
) -> Recipe:
    """The recipe with flags in place of its own values.

    Args:
        section: the section that the flags belong to, made if there is none; "" is the top level.
        instead_of: keys of the recipe whose values give way to the flags.
        flags: by the name of their key; None was not given.

    Raises:
        RequestError: one line that names the flag.
    """
    changes = without_none(flags)
    if not changes:
        return recipe
    document = recipe.model_dump(mode="json", exclude_unset=True)
    if section and document.get(section) is None:
        document[section] = {}
    target = document[section] if section else document
    for key in instead_of:
        target.pop(key, None)
    target.update(changes)
    return validate(document, _FlagsOverRecipe(section, tuple(changes)))


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given."""
    return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class _FlagsAndOverrides:
    """The origin of each key: a flag, a stored value, or an override."""

    document: Mapping[str, Any]
    sections: frozenset[str]
    stored: StoredKeys
    overrides: Overrides

    def locate(self, key: Key) -> str:
        if self._is_stored(key):
            return f"{self.stored.file}: {dotted(key)}"
        override = self.overrides.locate(key, key) or self.overrides.locate_within(key, key)
        return override or _flag(key, self.sections)

    def from_command_line(self, key: Key) -> bool:
        if self.overrides.sets(key):
            return True
        # Without stored keys every key is a flag, and none of them is to be preferred.
        return bool(self.stored.keys) and has(self.document, key) and not self._is_stored(key)

    def remedy(self, key: Key) -> str:
        return f"; {UPGRADE}, or give {_flag(key, self.sections)}" if self._is_stored(key) else ""

    def _is_stored(self, key: Key) -> bool:
        return key[:2] in self.stored.keys and not self.overrides.sets(key)


@dataclass(frozen=True)
class _FlagsOverRecipe:
    """The origin of each key: a flag, or a recipe that is valid without the flags."""

    section: str
    flags: tuple[str, ...]

    def locate(self, key: Key) -> str:
        if self.from_command_line(key):
            return _flag(key, {self.section})
        return f"with {', '.join(_flag((flag,)) for flag in self.flags)}: {dotted(key)}"

    def from_command_line(self, key: Key) -> bool:
        depth = 1 if self.section else 0
        return len(key) > depth and key[depth] in self.flags

    def remedy(self, key: Key) -> str:
        return ""


def _flag(key: Key, sections: Collection[str] = ()) -> str:
    """What the command line calls a key: --min-rank for decompose.min_rank."""
    name = key[1:] if len(key) > 1 and key[0] in sections else key
    if name and name[0] == "model":
        return "MODEL"
    if len(name) > 1 and name[0] == "latency":  # its keys have flags of their own
        name = name[1:]
    return f"--{str(name[0]).replace('_', '-')}" if name else "command line"
