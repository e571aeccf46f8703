"""A recipe written as TOML: every key with its value, so that it can be run again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from pelacli.recipe import schema
from pelacli.recipe.schema import Recipe


def dumps(recipe: Recipe, notes: Sequence[str] = ()) -> str:
    """The resolved recipe, which reads back as the same.

    What is unset is left out, as TOML has no word for it. So is a task that nobody has named: a
    task by default gives way where the model has no output for it.

    Args:
        notes: lines for comments above it, about what pela chooses itself.
    """
    document = _set(schema.resolved(recipe))
    if "task" not in recipe.model_fields_set:
        del document["task"]
        notes = [f"task: {recipe.task}, as none is named", *notes]
    comments = "".join(f"# {note}\n" for note in notes)
    return comments + ("\n" if comments else "") + tomli_w.dumps(document)


def of_document(document: Mapping[str, Any]) -> str:
    """A recipe as a manifest records it, as TOML; as JSON where TOML has no word for its values."""
    try:
        return tomli_w.dumps(_set(document))
    except (TypeError, ValueError):
        return json.dumps(document, indent=2, default=str)


def _set(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without what is None, and without tables that say nothing."""
    kept = {
        key: _set(value) if isinstance(value, Mapping) else value for key, value in section.items()
    }
    optional = ("model_args", "task_args", "pin")
    return {
        key: value
        for key, value in kept.items()
        if value is not None and not (key in optional and not value)
    }
