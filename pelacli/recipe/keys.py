"""Dotted keys of a recipe: read, written, and looked up in a document."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any

Key = tuple[str | int, ...]


def keys_of(text: str) -> tuple[str, ...] | None:
    """The parts of a dotted key; None if it is none."""
    document: Any = parsed([f"{text} = 0"]) if "\n" not in text else None
    keys: list[str] = []
    while isinstance(document, dict) and len(document) == 1:
        ((key, document),) = document.items()
        keys.append(key)
    return tuple(keys) if keys and document == 0 else None


def value_of(text: str) -> Any:
    """A TOML value; anything else is text, which needs no quotes on a command line."""
    document = parsed([f"value = {text}"])
    return document["value"] if document and len(document) == 1 else text


def parsed(lines: Sequence[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("\n".join(lines))
    except (ValueError, RecursionError):
        return None


def has(document: Any, key: Key) -> bool:
    for part in key:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return False
    return document is not None


def dotted(key: Key) -> str:
    """As TOML writes it; places in lists are added in brackets."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[\w-]+", part)
            text += ("." if text else "") + (part if bare else f"'{part}'")
    return text
