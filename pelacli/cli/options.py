"""Options that several commands share, and how a function becomes a command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pelacli import console

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set any key of the recipe: pretrain.epochs=5."
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Directory of the artefact to write.")
]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe (TOML).")]
Format = Annotated[str, typer.Option("--format", help="table, json, csv or markdown.")]


def _verbosity_flag(name: str, *short: str, help: str) -> Any:
    """A flag that sets the field of this name in `console.verbosity`.

    It is read before all other options, so that --debug holds for a mistake in these too.
    """

    def set_verbosity(value: bool) -> bool:
        if value:
            setattr(console.verbosity, name, True)
        return value

    option = typer.Option(f"--{name}", *short, callback=set_verbosity, is_eager=True, help=help)
    return Annotated[bool, option]


# The options that every command has.
_COMMON = {
    "verbose": _verbosity_flag(
        "verbose", "-v", help="Show messages and progress even where standard error is no terminal."
    ),
    "quiet": _verbosity_flag("quiet", "-q", help="Say nothing but the result and errors."),
    "debug": _verbosity_flag("debug", help="Show the traceback of an error."),
}


def add_command(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Make a function a command, with the options that every command has after its own."""

    @functools.wraps(function)
    def command(**values: Any) -> None:
        function(**{key: value for key, value in values.items() if key not in _COMMON})

    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.signature(function, eval_str=True)
    parameters = [p.replace(kind=keyword) for p in signature.parameters.values()]
    parameters += [
        inspect.Parameter(key, keyword, default=False, annotation=annotation)
        for key, annotation in _COMMON.items()
    ]
    # typer reads the options from the signature.
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name)(command)
