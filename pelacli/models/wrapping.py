"""A module as `open` would have given it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import overload

from torch import nn

from pelacli.errors import RequestError
from pelacli.manifest.document import SourceRecord
from pelacli.models import libraries
from pelacli.models.opened import OpenModel


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as its manifest will say.

    Attributes:
        model: a hub id, a path, or the name of an architecture.
        weights: "pretrained", "random", "in memory" or the path of a file.
        digest: of the weights; None where no file holds them.
    """

    model: str
    weights: str
    digest: str | None = None


@overload
def wrap(module: nn.Module) -> OpenModel: ...
@overload
def wrap(module: nn.Module, *, must: bool) -> OpenModel | None: ...
def wrap(module: nn.Module, *, must: bool = True) -> OpenModel | None:
    """What `open` would have given for a module that the caller built.

    Args:
        must: raise where the module's library is unknown; else give None.

    Raises:
        RequestError: the module is neither timm's nor transformers'.
    """
    name = type(module).__name__
    library_name = libraries.of(module)
    if library_name is not None:
        return describe(name, module, library_name, Origin(name, "in memory"))
    if must:
        raise RequestError(f"{name}: neither timm's nor transformers', so it can't be rebuilt")
    return None


def describe(
    ref: str,
    module: nn.Module,
    library_name: str,
    origin: Origin,
    folder: Path | None = None,
) -> OpenModel:
    """A module with all that its library says about it.

    Args:
        ref: what the user calls the model.
        folder: its directory, where its preprocessor or tokenizer may lie.
    """
    adapter = libraries.library(library_name)
    config = adapter.config(module)
    source = SourceRecord(
        model=origin.model,
        library=library_name,
        architecture=config.get("architecture") or type(module).__name__,
        weights=origin.weights,
        digest=origin.digest,
    )
    inputs = adapter.inputs(module, folder)
    return OpenModel(module, ref, library_name, config, {}, source, inputs, adapter.head(module))
