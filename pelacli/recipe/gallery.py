"""The recipes that come with pela: package data of an installed pela, recipes/ in a checkout."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pelacli.errors import RequestError
from pelacli.messages import did_you_mean


def recipes() -> dict[str, Path]:
    """Name ("quickstart", "imagenet/deit_base") → file."""
    package = Path(str(resources.files("pelacli")))
    installed, checkout = package / "_recipes", package.parent / "recipes"
    root = installed if installed.is_dir() else checkout
    files = sorted(root.rglob("*.toml"))
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}


def find(name: str) -> Path:
    """The file of a recipe.

    Raises:
        RequestError: there is none of this name; the nearest is given.
    """
    known = recipes()
    name = name.removesuffix(".toml")
    if name not in known:
        hint = did_you_mean(name, known, quoted=True, otherwise="`pela recipes list` shows them")
        raise RequestError(f"{name}: there is no such recipe; {hint}")
    return known[name]


def read(name: str) -> str:
    """The text of a recipe."""
    return find(name).read_text(encoding="utf-8")


def copy(name: str, target: Path) -> Path:
    """Copy a recipe to a new file, or under its own name into a directory.

    Returns:
        the new file.

    Raises:
        RequestError: the file exists already, or can't be written.
    """
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
    """The first line of a recipe, which says what it is for."""
    with file.open(encoding="utf-8") as lines:
        first = next(lines, "")
    return first.lstrip("# ").strip() if first.startswith("#") else ""
