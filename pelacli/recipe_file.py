"""Read a recipe: TOML, overrides and flags in; one line per mistake out. No torch."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pelacli.errors import RequestError
from pelacli.recipe import Recipe

Key = tuple[str | int, ...]

_MISSING = "missing"
# pydantic's kinds of error → what is expected, in plain words
_EXPECTED = {
    "int_type": "a whole number", "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number",
    "string_type": "text in quotes", "bool_type": "true or false", "bool_parsing": "true or false",
    "list_type": "a list", "dict_type": "a table", "model_type": "a section", "path_type": "a path",
    "tuple_type": "a list", "model_attributes_type": "a section",
}  # fmt: skip


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        overrides: "a.b=value" each; values as in TOML, anything else is text.

    Raises:
        RequestError: one line with file, line, key, what is wrong and the remedy.
    """
    text, document = _read(path)
    places = _override(document, overrides)
    return _validate(document, lambda key: places.get(_dotted(key)) or _place(path, text, key))


def from_flags(
    top: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Any]],
    overrides: Sequence[str] = (),
) -> Recipe:
    """A recipe from the command line alone; a value of None was not given."""
    document: dict[str, Any] = _given(top)
    for name, flags in sections.items():
        document[name] = _given(flags)
    places = _override(document, overrides)
    return _validate(document, lambda key: places.get(_dotted(key)) or _flag(key))


def with_flags(recipe: Recipe, section: str, **flags: Any) -> Recipe:
    """The recipe with the flags that were given in the place of its own values.

    Args:
        section: the section that the flags belong to; "" is the top level.
    """
    given = _given(flags)
    if not given:
        return recipe
    document = recipe.model_dump(mode="json", exclude_unset=True)
    target = document.setdefault(section, {}) if section else document
    target.update(given)
    return _validate(document, _flag)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except FileNotFoundError:
        raise RequestError(
            f"{path}: there is no such recipe; `pela recipes list` shows some"
        ) from None
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not a text file; a recipe is TOML in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise RequestError(f"{path}: can't be read: {error.strerror}") from None


def _override(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Apply the overrides in place; gives dotted key → the override, to be named in errors."""
    places = {}
    for override in overrides:
        key_text, equals, value_text = override.partition("=")
        if not equals or not key_text.strip():
            raise RequestError(f"--set {override}: give KEY=VALUE, as pretrain.epochs=5")
        keys = _keys(key_text.strip(), override)
        try:
            value = tomllib.loads(f"value = {value_text}")["value"]
        except tomllib.TOMLDecodeError:
            value = value_text.strip()  # bare text needs no quotes on a command line
        target: Any = document
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise RequestError(f"--set {override}: {key} is no section")
        target[keys[-1]] = value
        places[_dotted(tuple(keys))] = f"--set {override}"
    return places


def _keys(text: str, override: str) -> list[str]:
    """The parts of a dotted key; quoted parts may hold dots."""
    try:
        document: Any = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        raise RequestError(f"--set {override}: {text!r} is no key; quote parts with dots") from None
    keys = []
    while isinstance(document, dict):
        (key, document) = next(iter(document.items()))
        keys.append(key)
    return keys


def _validate(document: dict[str, Any], place: Any) -> Recipe:
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = problems[0]
        key = _real_key(first["loc"], document)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        where, name = place(key), _dotted(key)
        said = f"{where}: {name}: " if name and name not in where else f"{where}: "
        raise RequestError(said + _problem(first, key) + more) from None


def _real_key(location: Key, document: Any) -> Key:
    """The part of pydantic's location that is a key of the document: it adds names of types."""
    key: list[str | int] = []
    for part in location:
        if isinstance(document, dict) and (part in document or part is location[-1]):
            if part not in document and part in ("int", "float", "str", "bool"):
                break
            key.append(part)
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int):
            key.append(part)
            document = document[part] if part < len(document) else None
    return tuple(key)


def _problem(error: Any, key: Key) -> str:
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        known = _known(key[:-1])
        near = difflib.get_close_matches(str(key[-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key; {hint}"
    if kind == _MISSING:
        return "this key is missing"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "literal_error":
        return f"{given!r} is none of {error['ctx']['expected']}"
    if kind in _EXPECTED:
        return f"{_shown(given)} is not {_EXPECTED[kind]}"
    message = error["msg"].removeprefix("Input should be ")
    return f"{_shown(given)} must be {message}" if message != error["msg"] else error["msg"]


def _shown(value: Any) -> str:
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else repr(value)
    return (text or "")[:60]


def _known(key: Key) -> list[str]:
    """The keys that the section at ``key`` may have."""
    model: type[BaseModel] = Recipe
    for part in key:
        field = model.model_fields.get(str(part))
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)


def _place(path: Path, text: str, key: Key) -> str:
    """file:line of a key: the last line that it takes to make the key appear."""
    lines = text.splitlines()
    for n in range(1, len(lines) + 1):
        try:
            document: Any = tomllib.loads("\n".join(lines[:n]))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a list
        for part in key:
            try:
                document = document[part]
            except (KeyError, IndexError, TypeError):
                break
        else:
            if key:
                return f"{path}:{n}"
    return _place(path, text, key[:-1]) if len(key) > 1 else str(path)


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None}


def _flag(key: Key) -> str:
    """How a key is called on the command line."""
    return f"--{str(key[-1]).replace('_', '-')}" if key else "command line"


def _dotted(key: Key) -> str:
    return ".".join(
        f'"{part}"' if isinstance(part, str) and "." in part else str(part) for part in key
    )
