"""``pela recipes``: list, show, copy and check recipes, and print their schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pelacli.cli.options import Json, RecipeFile, Set


def _names() -> list[str]:
    from pelacli.recipe import gallery

    return list(gallery.recipes())


_Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", autocompletion=_names, help="The name, as pela recipes list prints it."
    ),
]


def list_recipes(json: Json = False) -> None:
    """List the recipes that come with pela."""
    from pelacli import console
    from pelacli.cli import terminal
    from pelacli.recipe import gallery

    rows = [
        {"name": name, "about": gallery.describe(file)} for name, file in gallery.recipes().items()
    ]
    if json:
        console.print_json(rows)
    else:
        terminal.print_table(rows)


def show(name: _Name) -> None:
    """Print a recipe."""
    from pelacli.recipe import gallery

    typer.echo(gallery.read(name), nl=False)


def copy(
    name: _Name,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="The file to write. It must not exist yet. By default one here with that name.",
        ),
    ] = Path("."),
) -> None:
    """Copy a recipe, to edit it."""
    from pelacli.recipe import gallery

    typer.echo(gallery.copy(name, target))


def check(recipe: RecipeFile, set_: Set = None, json: Json = False) -> None:
    """Check a recipe, its model and its data, and print it with every key filled in."""
    from pelacli import console
    from pelacli.recipe import reading, schema, toml_text

    read, place_of = reading.load_with_places(recipe, set_ or [])
    from pelacli.steps.preflight import check as preflight

    chosen = preflight.check(read, place_of)
    console.info(f"{recipe}: ok")
    if json:
        console.print_json(schema.resolved(read), exact=True)
    else:
        typer.echo(toml_text.dumps(read, chosen), nl=False)


def print_schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from pelacli import console
    from pelacli.recipe import schema

    console.print_json(schema.json_schema(), exact=True)
