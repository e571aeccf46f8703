"""The errors pela raises on purpose. Each knows the exit code the command line answers with.

A message is one line that names the thing, the place and the remedy.
"""


class PelaError(Exception):
    """Something failed while running. Exit code 1."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # whatever a library put in, one line goes out


class RequestError(PelaError):
    """The request was wrong: usage, recipe, unknown model, unusable input. Exit code 2."""

    exit_code = 2


class GateError(PelaError):
    """A gate (``--max-drop``) was not met. Exit code 3."""

    exit_code = 3
