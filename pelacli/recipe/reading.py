"""Read a recipe: TOML, overrides and flags in; one line per mistake out. No torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pelacli.console import warn
from pelacli.errors import RequestError
from pelacli.recipe.fields import Mistake
from pelacli.recipe.keys import Key, dotted, has, keys_of, value_of
from pelacli.recipe.mistakes import _sections, line_of, problem
from pelacli.recipe.schema import Recipe

# KEY=VALUE; quoted parts of the key may hold anything
_OVERRIDE = re.compile(r"""((?:"(?:\\.|[^"\\])*"|'[^']*'|[^="'])+)=(.*)""", re.DOTALL)
_UPGRADE = "upgrade pela (pip install -U pelacli)"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        overrides: "a.b=value" each; values as in TOML, anything else is text.

    Raises:
        RequestError: one line with file, line, key, what is wrong and the remedy.
    """
    text, document = _read(Path(path))
    given = _override(document, overrides)

    def where(key: Key) -> str:
        for n in range(len(key), 0, -1):  # a missing key is placed by the section it is missing in
            place = _overridden(key[:n], key, given)
            if place is None and has(tomllib.loads(text), key[:n]):
                place = f"{path}:{line_of(text, key[:n])}: {dotted(key)}"
            place = place or _overridden(key[:n], key, given, inside=True)
            if place is not None:
                return place
        return f"{path}: {dotted(key)}" if key else str(path)

    return _validate(document, where, lambda key: bool(_overridden(key, key, given)))


def from_flags(
    top: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Any]],
    overrides: Sequence[str] = (),
    *,
    stored: Collection[Key] = (),
    stored_in: str = "",
) -> Recipe:
    """A recipe from the command line; a value of None was not given.

    Args:
        stored: keys of ``sections`` whose values come from a file instead, and ``stored_in``: that
            file, for error messages.
    """
    document: dict[str, Any] = _given(top)
    for name, flags in sections.items():
        document[name] = _given(flags)
    given = _override(document, overrides)

    def is_stored(key: Key) -> bool:
        return key[:2] in stored and not _overridden(key, key, given)

    def is_set(key: Key) -> bool:
        is_flag = bool(stored) and has(document, key) and not is_stored(key)
        return is_flag or bool(_overridden(key, key, given))

    def where(key: Key) -> str:
        if is_stored(key):
            return f"{stored_in}: {dotted(key)}"
        place = _overridden(key, key, given) or _overridden(key, key, given, inside=True)
        return place or _flag(key, sections)

    def remedy(key: Key) -> str:
        return f"; {_UPGRADE}, or give {_flag(key, sections)}" if is_stored(key) else ""

    return _validate(document, where, is_set, remedy)


def known(values: Mapping[str, Any], section: Key, where: Callable[[Key], str]) -> dict[str, Any]:
    """The keys of a stored section that this version has. A note names the others, which another
    version of pela has written.

    Args:
        section: the section's key; () is the top level.
        where: key → place and name.
    """
    sections, kept = _sections(), {}
    for name, value in values.items():
        key = (*section, name)
        if name not in sections[section]:
            warn(f"{where(key)}: unknown to this pela, and passed over")
        elif key in sections and isinstance(value, dict):
            kept[name] = known(value, key, where)
        else:
            kept[name] = value
    return kept


def from_stored(document: Mapping[str, Any], step: str, where: str) -> Recipe:
    """What a stored recipe says of a step's data and task: the recipe's own as they are, and the
    step's as the section [eval]. Nothing else of it is read, so nothing else can be unreadable.

    Args:
        document: the recipe, as `pelacli.recipe.schema.resolved` gives it, of any version.
        step: the step's section, as "finetune".
        where: of the recipe, for error messages and notes.

    Raises:
        RequestError: data, or the task that goes with it, can't be read.
    """

    def stored_at(key: Key) -> str:
        return f"{where}.{dotted((step, *key[1:]) if key[0] == 'eval' else key)}"

    def parts(section: Any) -> dict[str, Any]:
        section = section if isinstance(section, dict) else {}
        return _given({key: section.get(key) for key in ("data", "task", "task_args")})

    wanted = parts(document) | {"eval": parts(document.get(step))}
    if "data" in wanted["eval"]:
        wanted.pop("data", None)
    elif "data" not in wanted:
        wanted = {}  # without data the task has no say
    wanted = {"model": where, "output": where} | known(wanted, (), stored_at)
    return _validate(wanted, stored_at, lambda key: False, lambda key: f"; {_UPGRADE}")


def with_flags(
    recipe: Recipe, section: str, *, instead_of: Collection[str] = (), **flags: Any
) -> Recipe:
    """The recipe with the flags that were given in the place of its own values.

    Args:
        section: the section that the flags belong to, made if there is none; "" is the top level.
        instead_of: keys whose values in the recipe fall to the flags.
        flags: by the name of their key; None was not given.

    Raises:
        RequestError: one line that names the flag.
    """
    given = _given(flags)
    if not given:
        return recipe
    document = recipe.model_dump(mode="json", exclude_unset=True)
    if section and document.get(section) is None:
        document[section] = {}
    target = document[section] if section else document
    for key in instead_of:
        target.pop(key, None)
    target.update(given)
    depth = 1 if section else 0

    def is_flag(key: Key) -> bool:
        return len(key) > depth and key[depth] in given

    def where(key: Key) -> str:
        if not is_flag(key):
            return f"with {', '.join(_flag((k,)) for k in given)}: {dotted(key)}"
        return _flag(key, (section,))

    return _validate(document, where, is_flag)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        return text, tomllib.loads(text)
    except FileNotFoundError:
        raise RequestError(
            f"{path}: there is no such recipe; `pela recipes list` shows some"
        ) from None
    except IsADirectoryError:
        raise RequestError(f"{path}: is a directory; name the recipe file in it") from None
    except OSError as error:
        raise RequestError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not a text file; a recipe is TOML in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise RequestError(_not_toml(path, text, str(error))) from None
    except (ValueError, RecursionError):
        raise RequestError(
            f"{path}: not valid TOML: a number is too long or a list too deep"
        ) from None


def _not_toml(path: Path, text: str, error: str) -> str:
    said, _, place = error.partition(" (at ")
    found = re.match(r"line (\d+)", place)
    line = int(found[1]) if found else len(text.rstrip().split("\n"))
    # the commonest slip: model = vit_base, ratio = 2/3
    bare = found and said.startswith(("Invalid value", "Expected newline"))
    remedy = "; text and fractions need quotes" if bare else ""
    said = said.replace("Cannot overwrite a value", "this key is there already")
    return f"{path}:{line}: not valid TOML: {said[:1].lower()}{said[1:]}{remedy}"


def _override(document: dict[str, Any], overrides: Sequence[str]) -> dict[Key, str]:
    """Apply the overrides in place; gives key → the override that set it."""
    given: dict[Key, str] = {}
    for override in overrides:
        parts = _OVERRIDE.fullmatch(override)
        if parts is None or not parts[1].strip():
            raise RequestError(f"--set {override}: give KEY=VALUE, as pretrain.epochs=5")
        keys, value = keys_of(parts[1].strip()), parts[2].strip()
        if keys is None:
            raise RequestError(
                f"--set {override}: {parts[1].strip()!r} is no key; quote parts that hold "
                'more than letters, digits, _ and -: decompose.pin."blocks[.]0"=8'
            )
        target: Any = document
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise RequestError(f"--set {override}: {key} is no section")
        target[keys[-1]] = value_of(value)
        given.pop(keys, None)  # the last one counts, also in the order of looking
        given[keys] = f"--set {override}"
    return given


def _validate(
    document: dict[str, Any],
    where: Callable[[Key], str],
    is_set: Callable[[Key], bool],
    remedy: Callable[[Key], str] = lambda key: "",
) -> Recipe:
    """The recipe, or the first mistake: where it is, what it is, and how many more there are.

    Args:
        where: key → place and name.
        is_set: whether a key comes from the command line. Of keys that don't go together, such a
            one is named.
        remedy: key → what to add to the message.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        # Unknown keys come first: a key that is missing is often one that was misspelt.
        problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
        first = problems[0]
        key = _real_key(first["loc"], document, first["type"])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, Mistake):
            keys = [key + one for one in cause.keys]
            there = [one for one in keys if has(document, one)]
            key = next(filter(is_set, keys), [*there, *keys][0])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RequestError(f"{where(key)}: {problem(first, key)}{more}{remedy(key)}") from None


def _real_key(location: Key, document: Any, kind: str) -> Key:
    """The part of pydantic's location that is in the document, and the key that is missing there.

    It also holds things like "[key]", for a table's key that is no regular expression.
    """
    for n in range(len(location) + 1):
        if not has(document, location[:n]):
            return location[:n] if kind == "missing" else location[: n - 1]
    return location


def _overridden(
    part: Key, key: Key, given: Mapping[Key, str], *, inside: bool = False
) -> str | None:
    """The override that set ``part``, or (inside) something in it, and the key if it is another."""
    for keys, said in reversed(list(given.items())):
        if (keys[: len(part)] == part) if inside else (part[: len(keys)] == keys):
            return said if keys == key else f"{said}: {dotted(key)}"
    return None


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None}


def _flag(key: Key, sections: Collection[str] = ()) -> str:
    """What a key is called on the command line: --min-rank for decompose.min_rank."""
    own = key[1:] if len(key) > 1 and key[0] in sections else key
    if own and own[0] == "model":
        return "MODEL"
    return f"--{str(own[0]).replace('_', '-')}" if own else "command line"
