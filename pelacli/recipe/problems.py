"""What is wrong with a value of a recipe, in plain words, and what to do about it."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

from pelacli.messages import did_you_mean, shown
from pelacli.recipe.keys import Key, dotted, parse_value
from pelacli.recipe.schema import sections

# pydantic's types of error → what was expected
_EXPECTED = {
    "int_type": "a whole number", "float_type": "a number", "string_type": "text",
    "bool_type": "true or false", "list_type": "a list", "dict_type": "a table",
    "model_type": "a section", "path_type": "a path",
}  # fmt: skip
# … → the name of the limit in pydantic's context, and what it means
_LIMITS = {
    "greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"), "less_than": ("lt", "below"),
}  # fmt: skip
_LONGEST = 40  # characters of a text that a message quotes


def describe(error: Any, key: Key) -> str:
    """The problem, and the remedy where there is one.

    Args:
        error: one of pydantic's ``ValidationError.errors()``.
        key: the key that it is about.
    """
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key; " + _suggest_key(key)
    if kind == "missing":
        field = sections()[key[:-1]][str(key[-1])]
        return f'is missing; add {key[-1]} = "…": {field.description}'
    if kind == "value_error":
        return str(context["error"])
    if kind == "finite_number":
        return "expected a finite number"
    if kind == "string_too_short":
        return "is empty"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        hint = did_you_mean(str(value), choices, quoted=True)
        return f"{shown(value)} is none of {', '.join(choices)}{'; ' + hint if hint else ''}"
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"{shown(value)} is out of range; {words} {context[name]:g}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, not {_show(value)}{_remedy(kind, value)}"
    return str(error["msg"])


def _remedy(kind: str, value: Any) -> str:
    """How to write the value that was probably meant; empty where there is no guess."""
    if kind == "model_type":
        return "; write its name in brackets, and its keys below"
    if kind == "string_type" and isinstance(value, int | float):
        return f"""; write it in quotes, in a shell '"{_show(value).split()[-1]}"'"""
    if kind == "list_type" and isinstance(value, str):
        return f'; write ["{value.strip("[]")[:_LONGEST]}"]'
    if isinstance(value, str):
        unquoted = type(parse_value(value)).__name__  # "bool", "int", "float", "str" …
        if kind == f"{unquoted}_type" or (unquoted, kind) == ("int", "float_type"):
            return "; write it without quotes"
    return ""


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value if len(value) <= _LONGEST else value[:_LONGEST] + '…'!r}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list | tuple) else f"the {type(value).__name__} {value}"


def _suggest_key(key: Key) -> str:
    """Where an unknown key belongs, if another section has one of its name; else the most similar
    key of its own section."""
    known, name = sections(), str(key[-1])
    # The nearest section shares most of the path; of those that share as much, the highest.
    distances = {
        section: (-_shared(section, key), len(section))
        for section, fields in known.items()
        if name in fields
    }
    nearest = [s for s, distance in distances.items() if distance == min(distances.values())]
    if nearest:
        names = [f"[{dotted(s)}]" if s else "the top, above all sections" for s in nearest]
        return f"it belongs to {' or '.join(names)}"
    fields = known[key[:-1]]
    return did_you_mean(name, fields, quoted=True, otherwise=f"known keys: {', '.join(fields)}")


def _shared(one: Key, other: Key) -> int:
    """How many parts two keys have in common, from the top."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
