"""What the adapter of a library offers: a file of functions, described here as two protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from pelacli.models.inputs import Inputs
from pelacli.models.pairs.view import PairModel


class Adapter(Protocol):
    """What pela needs of timm, of transformers and of each model of its own."""

    def rebuild(self, directory: Path) -> nn.Module:
        """The dense architecture that config.json describes, its weights without values; buffers
        that no checkpoint holds have theirs."""

    def config(self, module: nn.Module) -> dict[str, Any]:
        """config.json, from which `rebuild` works."""

    def inputs(self, module: nn.Module, directory: Path | None) -> Inputs:
        """What a sample looks like, from the model's own files where there are any."""

    def example(self, module: nn.Module, inputs: Any) -> Tensor | dict[str, Tensor] | None:
        """A sample to count FLOPs at, as a batch of one; None where pela can't know any."""

    def head(self, module: nn.Module) -> frozenset[str]:
        """Names of the modules that make the output and stay dense."""

    def num_classes(self, module: nn.Module) -> int | None:
        """Outputs of the classifier; None for a model without one."""

    def set_classes(self, module: nn.Module, num_classes: int) -> None:
        """Give the model a fresh classifier.

        Raises:
            RequestError: it has none that can be exchanged.
        """

    def pairs(self, module: nn.Module) -> PairModel | None:
        """What the tasks on images with texts ask of the model; None where it isn't made for
        these."""


class OwnAdapter(Adapter, Protocol):
    """What a model of pela's own offers beyond that."""

    def build(
        self,
        name: str,
        *,
        model_args: dict[str, Any],
        num_classes: int | None,
        weights: Path | None,
    ) -> nn.Module:
        """The model of this name.

        Args:
            weights: a checkpoint file; None: fresh weights.

        Raises:
            RequestError: arguments or weights that don't fit.
        """

    def open_directory(
        self, directory: Path, *, random: bool, num_classes: int | None
    ) -> nn.Module:
        """The dense model of a directory with config.json and weights."""
