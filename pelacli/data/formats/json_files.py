"""JSON files of entries: which file holds a split, and what an entry must have. Errors name the
file and the entry."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pelacli.data.splits import SPLITS, choose_split, split_names
from pelacli.errors import RequestError
from pelacli.system import own_files

_KINDS = (".json", ".jsonl")


def files(spec: str, split: str, *, several: bool = False) -> tuple[list[Path], str | None]:
    """The files of a split.

    Args:
        spec: a JSON file, or a folder of them.
        split: its name, of which the file's name is made or in which it stands as a word
            ("flickr30k_train.json"); or file names in the folder, with commas between.
        several: all files in whose names it stands are the split; files whose names hold no split's
            name are all of the data, whatever the split; and without others, this one is no split.

    Returns:
        (files, the split's name; None where there is no other to tell it from).

    Raises:
        RequestError: there is no such file, or the name fits several.
    """
    root = Path(spec).expanduser()
    if root.is_file():
        return [root], None
    if not root.is_dir():
        raise RequestError(f"{spec}: no such folder or file")
    if any(kind in split for kind in _KINDS):
        named = [root / part.strip() for part in split.split(",")]
        for file in named:
            if not file.is_file():
                raise RequestError(f"{file}: there is no such file")
        return named, split
    files_by_word: dict[str, list[Path]] = {}
    for file in sorted(root.iterdir()):
        if file.suffix in _KINDS:
            for word in {file.stem, *re.split(r"[^A-Za-z0-9]+", file.stem)}:
                files_by_word.setdefault(word, []).append(file)
    if not files_by_word:
        raise RequestError(f"{spec}: no JSON files in it")
    if several:
        return _together(files_by_word, split, spec)
    split_name = choose_split(split, list(files_by_word), spec)
    exact = [file for file in files_by_word[split_name] if file.stem == split_name]
    chosen = exact or files_by_word[split_name]
    if len(chosen) > 1:
        names = ", ".join(file.name for file in chosen)
        raise RequestError(f"{spec}: {names} are all {split!r}; name one in data, or several")
    return chosen, split_name


def _together(
    files_by_word: Mapping[str, list[Path]], split: str, spec: str
) -> tuple[list[Path], str | None]:
    """`files` where several are a split; the files come by the words of their names."""
    named = files_by_word.keys() & {name for names in SPLITS for name in names}
    if not named:
        return sorted({file for some in files_by_word.values() for file in some}), None
    split_name = choose_split(split, list(files_by_word), spec)
    return files_by_word[split_name], None if named <= set(split_names(split_name)) else split_name


def read(file: Path) -> Any:
    """What a JSON file holds; of .jsonl, the list of its lines.

    Raises:
        RequestError: it can't be read; the line is named.
    """
    try:
        own_files.check_ends(file, pipes=True)
        text = file.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    if file.suffix != ".jsonl":
        return parsed(text, str(file))
    # splitlines() parts texts at U+2028 too
    return [
        parsed(line, f"{file}, line {number}")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def parsed(text: str, where: str, remedy: str = "mend or leave it out") -> Any:
    """What a JSON text says.

    Raises:
        RequestError: it is no JSON; or it says what no reader could know how to take: a key twice,
            half of a surrogate pair, which is no character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_single_keys)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except _KeyTwiceError as error:
        raise RequestError(f"{where}: the key {error.args[0]!r} comes twice; keep one") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise RequestError(
            f"{where}: {half} is half of a character (a surrogate without its other half); "
            "leave it out"
        ) from None
    except RecursionError:
        raise RequestError(f"{where}: lists or objects nested too deeply; {remedy}") from None
    except ValueError as error:  # also of a number with thousands of digits
        raise RequestError(f"{where}: not JSON ({error}); {remedy}") from None
    return value


class _KeyTwiceError(Exception):
    """An object has a key twice."""


def _single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs; of a key that comes twice, json would keep the last one."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwiceError(next(key for key in keys if keys.count(key) > 1))
    return entries


def entries(file: Path) -> list[tuple[dict[str, Any], str]]:
    """(entry, its place in words) of a file that is a list of objects."""
    return listed(read(file), file)


def listed(rows: Any, file: Path, key: str | None = None) -> list[tuple[dict[str, Any], str]]:
    """`entries` of what was read from a file already; ``key`` is under which it stands there."""
    source = str(file) if key is None else f"{file}, {key}"
    if not isinstance(rows, list):
        raise RequestError(f"{source}: expected a list of entries, found {kind(rows)}")
    numbered = []
    for number, row in enumerate(rows, 1):
        where = f"{source}, entry {number}"
        if not isinstance(row, dict):
            raise RequestError(f"{where}: expected an object, found {kind(row)}")
        numbered.append((row, where))
    return numbered


def text(entry: Mapping[str, Any], key: str, where: str) -> str:
    """A field that must be text with something in it."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        what = f"no field {key!r}" if key not in entry else f"{key!r} is no text: {value!r:.40}"
        raise RequestError(f"{where}: {what}")
    return value.strip()


def texts(entry: Mapping[str, Any], key: str, where: str) -> list[str]:
    """A field that must be text, or a list of texts with one at least."""
    value = entry.get(key)
    if not isinstance(value, list):
        return [text(entry, key, where)]
    if not value:
        raise RequestError(f"{where}: {key!r} is an empty list")
    return [text({key: one}, key, where) for one in value]


def number(entry: Mapping[str, Any], key: str, where: str) -> str:
    """A field that must be an identifier, a whole number or text; as text."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        what = f"no field {key!r}" if key not in entry else f"{key!r} is no identifier: {value!r}"
        raise RequestError(f"{where}: {what}")
    return str(value)


def image(entry: Mapping[str, Any], where: str, root: str | None, key: str = "image") -> str:
    """The path of an image, relative to ``root``, or to the folder of the JSON file."""
    name = text(entry, key, where)
    base = Path(root).expanduser() if root else Path(where.rpartition(", entry ")[0]).parent
    return str(base / name)


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    return kinds.get(type(value), "a number")
