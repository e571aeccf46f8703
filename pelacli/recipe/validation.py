"""From a document to a recipe, or to the first mistake in one line: where it is and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from pelacli.errors import RequestError
from pelacli.recipe.fields import Section, SectionError
from pelacli.recipe.keys import Key, dotted, has
from pelacli.recipe.problems import describe
from pelacli.recipe.schema import Recipe


class Origin(Protocol):
    """Where the values of a document come from."""

    def locate(self, key: Key) -> str:
        """Place and name of a key, which begin the message: "r.toml:3: data.workers"."""

    def from_command_line(self, key: Key) -> bool:
        """Whether the command line set the key. Of keys that don't go together, the message names
        one that it set."""

    def remedy(self, key: Key) -> str:
        """What to add to a message about the key; empty for nothing."""


def validate(document: dict[str, Any], origin: Origin) -> Recipe:
    """The recipe that a document describes.

    Raises:
        RequestError: the first mistake, and how many more there are.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        # Unknown keys come first: a key that is missing is often one that was misspelt.
        errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        first = errors[0]
        key = _existing_key(first["loc"], document, first["type"])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, SectionError):
            key = _key_to_name([key + relative for relative in cause.keys], document, origin)
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise RequestError(
            f"{origin.locate(key)}: {describe(first, key)}{more}{origin.remedy(key)}"
        ) from None


SectionType = TypeVar("SectionType", bound=Section)


def section(
    kind: type[SectionType], values: Mapping[str, Any], names: Mapping[str, str]
) -> SectionType:
    """A section of its own, made of arguments in Python; None is not given.

    Args:
        names: key → what the argument is called, where that differs.

    Raises:
        RequestError: the first argument that is no good, by its name.
    """
    try:
        return kind.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        key = cause.keys[0] if isinstance(cause, SectionError) and cause.keys else first["loc"][:1]
        name = names.get(dotted(key), dotted(key))
        raise RequestError(f"{name}: {describe(first, key)}") from None


def _existing_key(location: Key, document: Any, kind: str) -> Key:
    """The part of pydantic's location that is in the document; a missing key stays at its end.

    pydantic adds parts of its own, such as "[key]" where a table's key is no regular expression.
    """
    for n in range(len(location) + 1):
        if not has(document, location[:n]):
            return location[:n] if kind == "missing" else location[: n - 1]
    return location


def _key_to_name(keys: list[Key], document: Any, origin: Origin) -> Key:
    """Of keys that don't go together: one of the command line's, else one that is set at all."""
    for key in keys:
        if origin.from_command_line(key):
            return key
    return next((key for key in keys if has(document, key)), keys[0])
