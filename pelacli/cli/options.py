"""Options that several commands share, and how a function becomes a command."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pelacli import console
from pelacli.cli import completion, waiting
from pelacli.cli.help_text import EVERY_COMMAND, Command, examples_below
from pelacli.errors import RequestError
from pelacli.system import processes

Json = Annotated[
    bool,
    typer.Option(
        "--json",
        rich_help_panel=EVERY_COMMAND,
        help="Print the result as one JSON document, for scripts.",
    ),
]
SET_HELP = "Set any key of the recipe, as in pretrain.epochs=5. Can be given more than once."
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET_HELP)]
RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file (see pela recipes).")
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        autocompletion=completion.one_of("table", "json", "csv", "markdown"),
        help="How to print it: table (the default), json, csv or markdown.",
    ),
]


# These hold no paths, so "~" means nothing in them.
_NO_PATHS = ("include", "exclude", "pin", "set_")


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that are empty, which a shell makes of a variable that is not set, and names
    that are no text, which neither safetensors nor a manifest can hold.

    Raises:
        RequestError: naming the option whose value is empty, or the place of the argument.
    """
    for number, argument in enumerate(arguments, 1):
        if argument != argument.encode(errors="replace").decode():
            raise RequestError(f"{argument}: is no name in UTF-8; give it another (mv)")
        before = arguments[number - 2] if number > 1 else ""
        if argument == "":
            what = before if before.startswith("-") else f"argument {number}"
        elif re.fullmatch(r"--[a-z-]+=", argument):
            what = argument[:-1]
        else:
            continue
        raise RequestError(f"{what}: is empty; give it a value (is a shell variable not set?)")


def _verbosity_flag(name: str, *short: str, help: str) -> Any:
    """A flag that sets the field of this name in `console.verbosity`.

    It is read before all other options, so that --debug holds for a mistake in these too.
    """

    def set_verbosity(value: bool) -> bool:
        if value:
            setattr(console.verbosity, name, True)
        return value

    option = typer.Option(
        f"--{name}",
        *short,
        callback=set_verbosity,
        is_eager=True,
        rich_help_panel=EVERY_COMMAND,
        help=help,
    )
    return Annotated[bool, option]


# The options that every command has.
_COMMON = {
    "verbose": _verbosity_flag(
        "verbose",
        "-v",
        help="Print messages and progress even if standard error is not a terminal.",
    ),
    "quiet": _verbosity_flag("quiet", "-q", help="Print only the result and errors."),
    "debug": _verbosity_flag("debug", help="Print the Python traceback of an error."),
}


def add_command(
    app: typer.Typer,
    name: str,
    function: Callable[..., None],
    group: str | None = None,
    examples: Sequence[str] = (),
    *,
    help: str | None = None,
    by_first: bool = False,
) -> None:
    """Make a function a command, with the options that every command has after its own.

    Args:
        group: of commands, in the help of what is above it.
        examples: lines to type, which end its help.
        help: in place of the function's docstring.
        by_first: of the processes that a launcher started the first one does it alone. The others
            would write the same files, or be timed beside it.
    """

    @functools.wraps(function)
    def command(**values: Any) -> None:
        if values["quiet"] and values["verbose"]:
            raise RequestError("--quiet and --verbose contradict each other; give one")
        if by_first and not processes.is_first():
            return
        own = {key: _with_home(key, value) for key, value in values.items() if key not in _COMMON}
        with waiting.announced():
            function(**own)

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
    below = examples_below(examples)
    app.command(name, cls=Command, help=help, epilog=below, rich_help_panel=group)(command)


def _with_home(name: str, value: Any) -> Any:
    """The value with "~" at its start spelt out, which shells leave as it is in --output=~/runs."""
    if name in _NO_PATHS:
        return value
    if isinstance(value, list):
        return [_with_home(name, item) for item in value]
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if isinstance(value, str) else value
