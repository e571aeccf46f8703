"""The application: every command under its name. Imports nothing heavy until a command runs."""

from __future__ import annotations

from functools import partial
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
from pelacli.cli.help_text import Group, examples_below
from pelacli.cli.options import add_command
from pelacli.version import __version__

# Groups of commands in `pela --help`.
_SMALLER, _LOOK, _ELSEWHERE = "Make a model smaller", "Look at models", "Use models elsewhere"
_OLDER_NAME = "The same as heal, by its older name."
_EXAMPLES = (
    "pela run recipes/quickstart.toml",
    "pela decompose vit_base --ratio 0.5 --calibrate my/images",
    "pela eval runs/vit_base-r0.50 --against vit_base --data my/dataset",
    "pela report",
    "pela COMMAND --help",
)


def make_app() -> typer.Typer:
    """The command line, with its commands in the order of ``pela --help``."""
    app = typer.Typer(
        name="pela",
        cls=Group,
        help="Make pretrained Transformers smaller and keep them as good.",
        epilog=examples_below(_EXAMPLES),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    add = partial(add_command, app)
    add("decompose", decompose.decompose, _SMALLER, decompose.EXAMPLES)
    add("heal", training.heal, _SMALLER, training.HEAL_EXAMPLES)
    add("pretrain", training.heal, _SMALLER, training.HEAL_EXAMPLES, help=_OLDER_NAME)
    add("finetune", training.finetune, _SMALLER, training.FINETUNE_EXAMPLES)
    add("eval", measuring.evaluate, _LOOK, measuring.EVAL_EXAMPLES)
    add("report", measuring.report, _LOOK, measuring.REPORT_EXAMPLES, by_first=True)
    add("export", exporting.export, _ELSEWHERE, exporting.EXAMPLES, by_first=True)
    add("import", importing.import_checkpoint, _ELSEWHERE, importing.EXAMPLES, by_first=True)
    add("push", sharing.push, _ELSEWHERE, sharing.EXAMPLES, by_first=True)
    add("run", training.run, _SMALLER, training.RUN_EXAMPLES)
    add("verify", measuring.verify, _LOOK, measuring.VERIFY_EXAMPLES, by_first=True)
    app.add_typer(_make_recipes_app(), name="recipes", rich_help_panel=_SMALLER)
    return app


def _make_recipes_app() -> typer.Typer:
    app = typer.Typer(
        cls=Group,
        help="List, show, copy and check recipes, and print their schema.",
        no_args_is_help=True,
    )
    add_command(app, "list", recipes.list_recipes, by_first=True)
    add_command(app, "show", recipes.show, by_first=True)
    add_command(app, "copy", recipes.copy, by_first=True)
    add_command(app, "check", recipes.check, by_first=True)
    add_command(app, "schema", recipes.print_schema, by_first=True)
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
