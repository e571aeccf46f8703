"""The application: every command under its name. Imports nothing heavy until a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pelacli.cli import (
    decompose,
    exporting,
    importing,
    measuring,
    recipes,
    sharing,
    training,
)
from pelacli.cli.options import add_command
from pelacli.version import __version__


def make_app() -> typer.Typer:
    """The command line, with its commands in the order of ``pela --help``."""
    app = typer.Typer(
        name="pela",
        help="Make pretrained Transformers smaller and keep them as good.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    add_command(app, "decompose", decompose.decompose)
    add_command(app, "heal", training.heal)
    add_command(app, "pretrain", training.heal, help="The same as heal: its older name.")
    add_command(app, "finetune", training.finetune)
    add_command(app, "eval", measuring.evaluate)
    add_command(app, "report", measuring.report)
    add_command(app, "export", exporting.export)
    add_command(app, "import", importing.import_checkpoint)
    add_command(app, "push", sharing.push)
    add_command(app, "run", training.run)
    add_command(app, "verify", measuring.verify)
    app.add_typer(_make_recipes_app(), name="recipes")
    return app


def _make_recipes_app() -> typer.Typer:
    app = typer.Typer(
        help="List, show, copy and check recipes; print their schema.", no_args_is_help=True
    )
    add_command(app, "list", recipes.list_recipes)
    add_command(app, "show", recipes.show)
    add_command(app, "copy", recipes.copy)
    add_command(app, "check", recipes.check)
    add_command(app, "schema", recipes.print_schema)
    return app


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"pela {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    # The options of `pela` itself. A docstring here would take the place of the help above.
    pass
