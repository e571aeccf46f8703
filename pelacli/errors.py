"""The errors that pela raises on purpose, each with the command line's exit code.

A message is one line that names the thing, the place and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LONGEST = 600  # characters of a message


def shortened(line: str) -> str:
    """A line; of a very long one beginning and end."""
    if len(line) <= _LONGEST:
        return line
    return f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 3 :]}"


class PelaError(Exception):
    """Something failed while running. Exit code 1."""

    exit_code = 1

    def __str__(self) -> str:
        """The message in one line, even where it quotes several lines of another library. Of a
        very long one, as a file with a name of thousands of letters causes, beginning and end."""
        return shortened(" ".join(super().__str__().split()))


class StoppedError(PelaError):
    """A training was asked to stop, and has. Exit code 1.

    Attributes:
        where: how far it came.
    """

    def __init__(self, where: str, remedy: str) -> None:
        """
        Args:
            remedy: how the user goes on, which depends on the command.
        """
        super().__init__(f"{where}; {remedy}")
        self.where = where


class RequestError(PelaError):
    """The request was wrong: usage, recipe, unknown model, unusable input. Exit code 2."""

    exit_code = 2


class PackageError(RequestError):
    """An optional package is not installed. Exit code 2."""


class CollectedError(RequestError):
    """Several things were wrong with one request. Exit code 2.

    Attributes:
        messages: one line each.
    """

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__(f"{messages[0]} (and {len(messages) - 1} more)")
        self.messages = [str(RequestError(message)) for message in messages]


class InfeasibleError(RequestError):
    """No plan meets the budget. Exit code 2.

    Attributes:
        smallest: the smallest value of the budget that can be met, a ratio for one; None where not
            even that of the dense model can.
    """

    def __init__(self, message: str, smallest: str | None) -> None:
        super().__init__(message)
        self.smallest = smallest


class GateError(PelaError):
    """A gate (``--max-drop``) was not met. Exit code 3."""

    exit_code = 3


class DropError(GateError):
    """No factorised model loses as few points as it may. Exit code 3.

    Attributes:
        tried: what was tried, as a document for JSON.
    """

    def __init__(self, message: str, tried: dict[str, Any]) -> None:
        super().__init__(message)
        self.tried = tried
