"""What a model can be exported to, and what each target offers: a file of functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pelacli.errors import RequestError
from pelacli.exports.calls import Call
from pelacli.exports.order import Order
from pelacli.messages import did_you_mean
from pelacli.models.opened import OpenModel


class Target(Protocol):
    """What `pelacli.steps.export` needs of a target.

    Attributes:
        SUFFIX: what the name of its file ends in; "" where it is a directory.
        PRECISIONS: those that it can be written in.
        OPSETS: its versions that a user may choose from; none where it has none.
    """

    SUFFIX: str
    PRECISIONS: tuple[str, ...]
    OPSETS: range

    def check_installed(self) -> None:
        """Refuse where the libraries that write and run it are missing.

        Raises:
            RequestError: naming the extra of pela that brings them.
        """

    def call(self, opened: OpenModel) -> Call:
        """The model as it will be called.

        Raises:
            RequestError: this target can't hold a model of that kind.
        """

    def prepare(self, opened: OpenModel) -> None:
        """Change the module, which is in float32, before it gets the precision that is written."""

    def write(self, order: Order, at: Path) -> None:
        """Write the model.

        Raises:
            RequestError: the model does something that can't be written in this form.
        """

    def run(
        self, at: Path, batches: list[dict[str, Tensor]], opened: OpenModel
    ) -> list[dict[str, Tensor]]:
        """Load what was written, as those would who have no pela, and run it: outputs by name for
        each batch."""

    def record(self, at: Path, document: dict[str, Any]) -> None:
        """Keep in what was written where it comes from and how far it is from the artefact."""


def _dense() -> Target:
    from pelacli.exports import dense

    return dense


def _onnx() -> Target:
    from pelacli.exports import onnx

    return onnx


def _torch() -> Target:
    from pelacli.exports import torch

    return torch


TARGETS: Mapping[str, Callable[[], Target]] = {"dense": _dense, "onnx": _onnx, "torch": _torch}


def get(name: str) -> Target:
    """The target of a name.

    Raises:
        RequestError: there is none.
    """
    if name not in TARGETS:
        hint = did_you_mean(name, TARGETS, before="; ")
        raise RequestError(f"--to {name}: give {', '.join(TARGETS)}{hint}")
    return TARGETS[name]()
