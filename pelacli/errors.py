"""The errors pela raises on purpose. Each knows the exit code the command line answers with.

A message is one line that names the thing, the place and the remedy.
"""

from __future__ import annotations

from typing import Any


class PelaError(Exception):
    """Something failed while running. Exit code 1."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # whatever a library put in, one line goes out


class RequestError(PelaError):
    """The request was wrong: usage, recipe, unknown model, unusable input. Exit code 2."""

    exit_code = 2


class InfeasibleError(RequestError):
    """A budget that no plan meets.

    Attributes:
        smallest: the smallest ratio that can be met; None where there is none up to 1.
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
