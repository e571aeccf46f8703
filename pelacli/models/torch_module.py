"""What pela asks of a library, for a module of the user's own class; see
`pelacli.models.adapters.Adapter`.

Only the user's own code can build such a class. So an artefact of one holds the weights and the
plan, and is read into a dense module that the user brings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pelacli.errors import RequestError
from pelacli.models import config_file

NAME = "torch"


def rebuild(directory: Path) -> nn.Module:
    """Never: pela imports no code that an artefact names.

    Raises:
        RequestError: always, with the class and the remedy.
    """
    kind = config_file.read(directory, "make the artefact anew")
    name = str(kind.get("class", "")).rpartition(".")[2] or "a class of its own"
    raise RequestError(
        f"{directory}: is a model of {name}, which pela can't build; read it in Python: "
        f"pelacli.load({str(directory)!r}, model={name}(…))"
    )


def config(module: nn.Module) -> dict[str, Any]:
    """config.json: the class, for messages."""
    kind = type(module)
    return {"class": kind.__qualname__, "module": kind.__module__}


def inputs(module: nn.Module, directory: Path | None) -> Any:
    """None: only the user knows, and no task of pela's opens such a module."""


def example(module: nn.Module, inputs: Any) -> None:
    """None: only the user has samples."""


def head(module: nn.Module) -> frozenset[str]:
    """None that could be told."""
    return frozenset()


def num_classes(module: nn.Module) -> None:
    """Unknown."""


def set_classes(module: nn.Module, num_classes: int) -> None:
    """Never.

    Raises:
        RequestError: always.
    """
    raise RequestError(f"{type(module).__name__}: has no classifier that pela knows")


def pairs(module: nn.Module) -> None:
    """None: it has no family."""
