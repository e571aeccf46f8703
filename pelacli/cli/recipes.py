"""``pela recipes``: list, show, copy and check recipes, and print their schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pelacli.cli.options import Json, RecipeFile, Set


def list_recipes(json: Json = False) -> None:
    """The recipes that come with pela."""
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


def show(name: Annotated[str, typer.Argument(help="Name of a recipe.")]) -> None:
    """Print a recipe."""
    from pelacli.recipe import gallery

    typer.echo(gallery.read(name), nl=False)


def copy(
    name: Annotated[str, typer.Argument(help="Name of a recipe.")],
    target: Annotated[Path, typer.Argument(help="File to write; must not exist.")] = Path("."),
) -> None:
    """Copy a recipe to edit it."""
    from pelacli.recipe import gallery

    typer.echo(gallery.copy(name, target))


def check(recipe: RecipeFile, set_: Set = None, json: Json = False) -> None:
    """Validate a recipe, look for its model and its data, and print it as resolved."""
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
    """Print the JSON schema of recipes."""
    from pelacli import console
    from pelacli.recipe import schema

    console.print_json(schema.json_schema(), exact=True)
