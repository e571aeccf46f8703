"""Recipes that another version of pela may have stored, in an artefact or beside spectra.

A later version may have added keys, or values that this one doesn't know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pelacli.console import warn
from pelacli.recipe.data import Data
from pelacli.recipe.keys import Key, dotted
from pelacli.recipe.schema import sections, task_of
from pelacli.recipe.validation import validate

UPGRADE = "upgrade pela (pip install -U pelacli)"


def known_keys(
    values: Mapping[str, Any], section: Key, locate: Callable[[Key], str]
) -> dict[str, Any]:
    """The keys of a stored section that this version has. A note names each of the others.

    Args:
        section: the section's key; () is the top level.
        locate: key → place and name, for the notes.
    """
    known, kept = sections(), {}
    for name, value in values.items():
        key = (*section, name)
        if name not in known[section]:
            warn(f"{locate(key)}: unknown to this pela, and passed over")
        elif key in known and isinstance(value, dict):
            kept[name] = known_keys(value, key, locate)
        else:
            kept[name] = value
    return kept


def data_and_task(
    document: Mapping[str, Any], step: str, where: str
) -> tuple[Data | None, str, dict[str, Any]]:
    """The data that a step used, and the name and settings of its task.

    Nothing else of the recipe is read, so nothing else in it can be unreadable.

    Args:
        document: the recipe, as `pelacli.recipe.schema.resolved` gives it, of any version.
        step: the step's section, as "finetune".
        where: place of the recipe, for error messages and notes.

    Returns:
        None as the data where the step had none; the task then means nothing.

    Raises:
        RequestError: the data, or the task that goes with it, can't be read.
    """
    top, section = _data_keys(document), _data_keys(document.get(step))
    if "data" in section:
        top.pop("data", None)
    elif "data" not in top:
        return None, "", {}
    origin = _StoredRecipe(where, step)
    # The step's keys stand in [eval], as a later version may know a step that this one doesn't.
    kept = known_keys(top | {"eval": section}, (), origin.locate)
    recipe = validate({"model": where, "output": where} | kept, origin)
    assert recipe.eval is not None
    return recipe.eval.data or recipe.data, *task_of(recipe, recipe.eval)


def _data_keys(section: Any) -> dict[str, Any]:
    """What a section says of its data and task."""
    section = section if isinstance(section, dict) else {}
    keys = ("data", "task", "task_args")
    return {key: section[key] for key in keys if section.get(key) is not None}


@dataclass(frozen=True)
class _StoredRecipe:
    """The origin of all keys: a stored recipe, whose step stands in for [eval]."""

    where: str
    step: str

    def locate(self, key: Key) -> str:
        stored_key = (self.step, *key[1:]) if key[0] == "eval" else key
        return f"{self.where}.{dotted(stored_key)}"

    def from_command_line(self, key: Key) -> bool:
        return False

    def remedy(self, key: Key) -> str:
        return f"; {UPGRADE}"
