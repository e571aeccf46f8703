"""Read a recipe from its file, with overrides from the command line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pelacli.recipe import overrides as recipe_overrides
from pelacli.recipe import toml_file
from pelacli.recipe.keys import Key, dotted, has
from pelacli.recipe.overrides import Overrides
from pelacli.recipe.schema import Recipe
from pelacli.recipe.toml_file import TomlFile
from pelacli.recipe.validation import validate


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        overrides: "a.b=value" each; values as in TOML, anything else is text.

    Raises:
        RequestError: one line with file, line, key, what is wrong and the remedy.
    """
    return load_with_places(path, overrides)[0]


def load_with_places(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[Recipe, Callable[[Key], str]]:
    """Read and validate a recipe, as `load` does.

    Returns:
        (the recipe, key → where it is set and its name: "r.toml:3: data.dataset").
    """
    file = toml_file.read(Path(path))
    document = copy.deepcopy(file.document)
    applied = recipe_overrides.apply(document, overrides)
    origin = _FileAndOverrides(str(path), file, applied)
    return validate(document, origin), origin.locate


@dataclass(frozen=True)
class _FileAndOverrides:
    """The origin of each key: a line of the file, or an override."""

    name: str
    file: TomlFile
    overrides: Overrides

    def locate(self, key: Key) -> str:
        # A key that is missing has no place of its own: the section it is missing in has one.
        for n in range(len(key), 0, -1):
            part = key[:n]
            if override := self.overrides.locate(part, key):
                return override
            if has(self.file.document, part):
                return f"{self.name}:{self.file.line_of(part)}: {dotted(key)}"
            if override := self.overrides.locate_within(part, key):
                return override
        return f"{self.name}: {dotted(key)}" if key else self.name

    def from_command_line(self, key: Key) -> bool:
        return self.overrides.sets(key)

    def remedy(self, key: Key) -> str:
        return ""
