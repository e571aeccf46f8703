"""What a user wants opened, handed to whatever opens it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from pelacli.models.without_values import without_values


@dataclass(frozen=True)
class Request:
    """What a user wants opened.

    Attributes:
        ref: what the user calls the model, for messages; name: the same without an alias.
        weights: "pretrained", "random" or a path.
        arch: architecture of a bare file of weights.
        model_args: for the architecture.
        num_classes: outputs, where they differ from the checkpoint's.
        only_shapes: the weights' values are not wanted.
        lazy_above: bytes that the weights would take in float32, from which on they are left in
            their files.
    """

    ref: str
    name: str
    weights: str
    arch: str | None
    model_args: dict[str, Any]
    num_classes: int | None
    only_shapes: bool = False
    lazy_above: float = math.inf

    def building(self) -> AbstractContextManager[None]:
        """To be active where the module is built, and nowhere around it: tensors that a file makes
        as it is imported would lie on "meta" for good."""
        return without_values() if self.only_shapes else nullcontext()
