"""The table of libraries, and what the adapter of each offers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.models.inputs import Inputs

# library → its adapter
_LIBRARIES = {"timm": "timm.adapter", "transformers": "hf.adapter"}
# The same for models of pela's own. Their config.json says which under "pela_model"; the names are
# what `open` knows them by.
_OWN: dict[str, str] = {"albef": "albef.adapter", "segmenter": "around.segmenter"}
OWN_NAMES: dict[str, str] = {"albef": "albef"}  # name → library


def library(name: str) -> Adapter:
    """The adapter of a library."""
    known = _LIBRARIES | _OWN
    if name not in known:
        raise RequestError(f"library {name!r}: this version of pela knows {', '.join(known)} only")
    return cast(Adapter, import_module(f"pelacli.models.{known[name]}"))


def own(name: str) -> OwnAdapter:
    """The adapter of a model of pela's own."""
    return cast(OwnAdapter, library(name))


class Adapter(Protocol):
    """What the file of a library in `pelacli.models` offers, as functions."""

    def rebuild(self, directory: Path) -> nn.Module:
        """The dense architecture that config.json describes, its weights without values; buffers
        that no checkpoint holds have theirs."""

    def config(self, module: nn.Module) -> dict[str, Any]:
        """config.json, from which `rebuild` works."""

    def inputs(self, module: nn.Module, directory: Path | None) -> Inputs:
        """What a sample looks like, from the model's own files where there are any."""

    def example(self, module: nn.Module, inputs: Any) -> Tensor | dict[str, Tensor]:
        """A sample to count FLOPs at, as a batch of one."""

    def head(self, module: nn.Module) -> frozenset[str]:
        """Names of the modules that make the output and stay dense."""

    def num_classes(self, module: nn.Module) -> int | None:
        """Outputs of the classifier; None for a model without one."""

    def set_classes(self, module: nn.Module, num_classes: int) -> None:
        """Give the model a fresh classifier.

        Raises:
            RequestError: it has none that can be exchanged.
        """


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
