"""The recipes that come with pela: in recipes/ of a checkout, else package data. No torch."""

from __future__ import annotations

import difflib
from pathlib import Path

from pelacli.errors import RequestError


def recipes() -> dict[str, Path]:
    """Name ("quickstart", "imagenet/deit_base") → file."""
    here = Path(__file__).resolve().parents[1]
    # An installed pela carries them inside the package; a checkout has them at its top.
    for root in (here / "_recipes", here.parent / "recipes"):
        files = sorted(root.rglob("*.toml"))
        if files:
            return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}
    return {}


def find(name: str) -> Path:
    """The file of a recipe.

    Raises:
        RequestError: there is none of this name; the nearest is given.
    """
    known = recipes()
    name = name.removesuffix(".toml")
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else "`pela recipes list` shows them"
        raise RequestError(f"{name}: there is no such recipe; {hint}")
    return known[name]


def read(name: str) -> str:
    """The text of a recipe."""
    return find(name).read_text(encoding="utf-8")


def copy(name: str, target: Path) -> Path:
    """Copy a recipe to a new file, or under its own name into a directory."""
    source = find(name)
    if target.is_dir():
        target = target / source.name
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise RequestError(f"{target}: exists already; choose another name") from None
    except OSError as error:
        raise RequestError(f"{target}: can't be written: {error.strerror}") from None
    return target


def describe(file: Path) -> str:
    """The first line of a recipe's header."""
    with file.open(encoding="utf-8") as lines:
        first = next(lines, "")
    return first.lstrip("# ").strip() if first.startswith("#") else ""
