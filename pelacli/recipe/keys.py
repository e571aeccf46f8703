"""Dotted keys of a recipe: parsed, written, and looked up in a document."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any

# A key's parts from the top of the recipe down; a whole number is an item of a list.
Key = tuple[str | int, ...]


def parse_key(text: str) -> tuple[str, ...] | None:
    """The parts of a dotted key: "decompose.pin.'a.b'" → ("decompose", "pin", "a.b"). None if the
    text is not a key."""
    document: Any = parse_toml([f"{text} = 0"]) if "\n" not in text else None
    parts: list[str] = []
    while isinstance(document, dict) and len(document) == 1:
        ((part, document),) = document.items()
        parts.append(part)
    return tuple(parts) if parts and document == 0 else None


def parse_value(text: str) -> Any:
    """A value as TOML writes it. Anything else is text, so that a command line needs no quotes."""
    document = parse_toml([f"value = {text}"])
    return document["value"] if document and len(document) == 1 else text


def parse_toml(lines: Sequence[str]) -> dict[str, Any] | None:
    """The document of these lines; None where they are not TOML."""
    try:
        return tomllib.loads("\n".join(lines))
    except (ValueError, RecursionError):
        return None


def has(document: Any, key: Key) -> bool:
    """Whether the document sets the key to something."""
    for part in key:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return False
    return document is not None


def dotted(key: Key) -> str:
    """The key as TOML writes it, with the number of a list's item in brackets."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[\w-]+", part)
            text += ("." if text else "") + (part if bare else f"'{part}'")
    return text
