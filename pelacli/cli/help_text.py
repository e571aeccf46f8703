"""How the help of a command looks: options in groups, no names of Python's types, examples last."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

EVERY_COMMAND = "Every command"  # the group of options that all commands have
_NO_VALUE = ""
_BESIDE = 70  # characters


class Command(TyperCommand):
    """A command whose help says of each option what a user types, and nothing of Python.

    An option that takes a value names it (``--ratio RATIO``); a switch shows nothing there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = _literal(self.help)
        for parameter in self.params:
            _as_typed(parameter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        items = super().shell_complete(ctx, incomplete)
        for item in items:
            item.help = item.help and _first_sentence(item.help)
        return items

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = EVERY_COMMAND
            _as_typed(option)
        return option


class Group(TyperGroup):
    """Commands under one name, with a help like that of `Command`."""

    def get_params(self, ctx: Any) -> Any:
        parameters = super().get_params(ctx)
        for parameter in parameters:
            _as_typed(parameter)
        return parameters


def _as_typed(parameter: Any) -> None:
    """Take Python out of the help of one parameter."""
    if parameter.param_type_name == "argument":
        # Its name is there already; what typer would add is "<str>" or "<list[str]>".
        parameter.display_type_rich = _no_type
    elif getattr(parameter, "is_flag", False):
        parameter.metavar = _NO_VALUE
    parameter.help = _literal(parameter.help)


def _first_sentence(text: str) -> str:
    """What a shell shows beside an option. typer breaks longer lines, and shells take each of these
    for an option of its own."""
    return textwrap.shorten(text.split(". ")[0], _BESIDE, placeholder=" …")


def _no_type(ctx: Any) -> None:
    """In place of what typer says of an argument's type."""


def _literal(text: str | None) -> str | None:
    """A text whose brackets, as in [finetune], rich does not take for markup."""
    return None if text is None else text.replace("\\[", "[").replace("[", "\\[")


def examples_below(lines: Sequence[str]) -> str | None:
    """The end of a command's help: what one types, line by line. None without examples."""
    if not lines:
        return None
    return _literal("\n".join(["Examples:", *(f"$ {line}" for line in lines)]))
