"""The recipes that come with pela are valid, and are read without a heavy library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from recipe_text import FULL

from pelacli.recipe import gallery
from pelacli.recipe.reading import load
from pelacli.recipe.schema import Recipe, resolved


@pytest.mark.parametrize("name", sorted(gallery.recipes()))
def test_every_recipe_that_comes_with_pela_is_valid(name: str) -> None:
    recipe = load(gallery.recipes()[name])
    assert Recipe.model_validate(resolved(recipe)) == recipe


def test_the_gallery_describes_a_recipe_by_its_first_line() -> None:
    file = gallery.recipes()["quickstart"]
    assert gallery.describe(file) == file.read_text().split("\n")[0].removeprefix("# ")


def test_reading_a_recipe_needs_no_heavy_library() -> None:
    Path("x.toml").write_text(FULL)
    code = (
        "import sys, pelacli.recipe.gallery; from pelacli.recipe import reading;"
        "reading.load('x.toml', ['seed=2']);"
        "print(sorted({'torch', 'numpy', 'timm', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    root = str(Path(gallery.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
