"""A module as `open` would have given it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from pelacli.manifest.document import SourceRecord
from pelacli.messages import naming
from pelacli.models import libraries
from pelacli.models.opened import OpenModel

_REMEDY = "its configuration must be as its library writes it"


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as its manifest will say.

    Attributes:
        model: a hub id, a path, or the name of an architecture.
        weights: "pretrained", "random", "in memory" or the path of a file.
        digest: of the weights; None where no file holds them.
        licence: of the weights, as `pelacli.models.licence` gives it.
    """

    model: str
    weights: str
    digest: str | None = None
    licence: dict[str, str] = field(default_factory=dict)


def wrap(module: nn.Module) -> OpenModel:
    """What `open` would have given for a module that the caller built."""
    name = type(module).__name__
    return describe(name, module, libraries.of(module), Origin(name, "in memory"))


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
    where = ref if folder is None else str(folder)
    with naming(f"{where}: {library_name} can't describe it", _REMEDY):
        config, inputs = adapter.config(module), adapter.inputs(module, folder)
        head = adapter.head(module)
    source = SourceRecord(
        model=origin.model,
        library=library_name,
        architecture=config.get("architecture") or type(module).__name__,
        weights=origin.weights,
        digest=origin.digest,
        licence=origin.licence,
    )
    return OpenModel(module, ref, library_name, config, {}, source, inputs, head)
