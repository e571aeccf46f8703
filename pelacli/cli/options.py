"""What the commands of the command line share: their options, and how they are registered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pelacli.console import verbosity

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


def _talk(flag: str) -> Callable[[bool], bool]:
    def set_flag(value: bool) -> bool:
        if value:
            setattr(verbosity, flag, True)
        return value

    return set_flag


# Options that every command has, in one place.
_COMMON: dict[str, Any] = {
    "verbose": Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            callback=_talk("verbose"),
            is_eager=True,
            help="Talk on standard error even where it is no terminal.",
        ),
    ],
    "quiet": Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            callback=_talk("quiet"),
            is_eager=True,
            help="Say nothing but the result and errors.",
        ),
    ],
    "debug": Annotated[
        bool,
        typer.Option(
            "--debug",
            callback=_talk("debug"),
            is_eager=True,
            help="Show the traceback of an error.",
        ),
    ],
}


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command together with the options that every command has."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def body(**given: Any) -> None:
            function(**{k: v for k, v in given.items() if k not in _COMMON})

        keyword = inspect.Parameter.KEYWORD_ONLY
        signature = inspect.signature(function, eval_str=True)
        common = [
            inspect.Parameter(key, keyword, default=False, annotation=annotation)
            for key, annotation in _COMMON.items()
        ]
        own = [p.replace(kind=keyword) for p in signature.parameters.values()]
        body.__signature__ = signature.replace(parameters=[*own, *common])  # type: ignore[attr-defined]
        body.__annotations__ = {p.name: p.annotation for p in [*own, *common]}
        group.command(name)(body)
        return function

    return register
