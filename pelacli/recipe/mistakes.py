"""What is wrong with a recipe, in words: the key, the mistake and its remedy."""

from __future__ import annotations

import difflib
import re
from itertools import takewhile
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pelacli.recipe.keys import Key, dotted, has, parsed, value_of
from pelacli.recipe.schema import Recipe

# pydantic's kinds of error → what is expected, in plain words
_EXPECTED = {
    "int_type": "a whole number", "float_type": "a number", "string_type": "text",
    "bool_type": "true or false", "list_type": "a list", "dict_type": "a table",
    "model_type": "a section", "path_type": "a path",
}  # fmt: skip
_LIMITS = {
    "greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"), "less_than": ("lt", "below"),
}  # fmt: skip


def problem(error: Any, key: Key) -> str:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key; " + _nearest(key)
    if kind == "missing":
        field = _sections()[key[:-1]][str(key[-1])]
        return f'is missing; add {key[-1]} = "…": {field.description}'
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_too_short":
        return "is empty"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = difflib.get_close_matches(str(given), choices, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{given!r} is none of {', '.join(choices)}{hint}"
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"{given} is out of range; {words} {context[name]:g}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, not {_shown(given)}{_remedy(kind, given)}"
    return str(error["msg"])


def _remedy(kind: str, given: Any) -> str:
    if kind == "model_type":
        return "; write its name in brackets, and its keys below"
    if kind == "string_type" and isinstance(given, int | float):
        return f"""; write it in quotes, in a shell '"{_shown(given).split()[-1]}"'"""
    if kind == "list_type" and isinstance(given, str):
        return f'; write ["{given.strip("[]")}"]'
    meant = type(value_of(given)).__name__ if isinstance(given, str) else ""
    if (meant, kind) in {("int", "float_type"), (meant, f"{meant}_type")} - {("str", "str_type")}:
        return "; write it without quotes"
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value if len(value) <= 40 else value[:40] + '…'!r}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list | tuple) else f"the {type(value).__name__} {value}"


def _nearest(key: Key) -> str:
    """A known key for an unknown one: of the same name in another section, or alike."""
    sections, name = _sections(), str(key[-1])
    homes = {k: (-_shared(k, key), len(k)) for k, fields in sections.items() if name in fields}
    nearest = [k for k, distance in homes.items() if distance == min(homes.values())]
    if nearest:
        names = [f"[{dotted(k)}]" if k else "the top, above all sections" for k in nearest]
        return f"it belongs to {' or '.join(names)}"
    known = sections[key[:-1]]
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def _shared(one: Key, other: Key) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def _sections(model: type[BaseModel] = Recipe, at: Key = ()) -> dict[Key, dict[str, FieldInfo]]:
    """Every section of a recipe with the keys that it may have."""
    found = {at: dict(model.model_fields)}
    for name, field in model.model_fields.items():
        for option in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(option, type) and issubclass(option, BaseModel):
                found |= _sections(option, (*at, name))
    return found


def line_of(text: str, key: Key) -> int:
    """The line, from 1, on which a key begins that the text has.

    A line is the key's if with it the document has the key and before it not. Lines in the midst of
    a list or a long text end no document, and are passed over.
    """
    lines = text.split("\n")
    low, high = 0, len(lines)  # so many lines have the key not, have it
    while high - low > 1:
        middle = (low + high) // 2
        for n in sorted(range(low + 1, high), key=lambda n: abs(n - middle)):
            document = parsed(lines[:n])
            if document is not None:
                low, high = (low, n) if has(document, key) else (n, high)
                break
        else:
            break
    for n in range(low + 1, high):  # an item of a list over several lines
        if has(parsed([*lines[:n], "]"]), key):
            return n
    return low + 1
