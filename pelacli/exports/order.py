"""What a target is asked to write."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pelacli.exports.calls import Call
from pelacli.models.opened import OpenModel
from pelacli.system.amounts import Reach


@dataclass(frozen=True)
class Order:
    """A model, and how it is to be written.

    Attributes:
        opened: its module may be changed.
        call: the model as it will be called.
        example: inputs to trace the model with, of no user's data: they may stay in the file.
        opset: of ONNX; None: torch's default.
        reach: is given the share of the export's time that is over, and 1, where a target knows it.
    """

    opened: OpenModel
    call: Call
    example: dict[str, Tensor]
    opset: int | None
    reach: Reach
