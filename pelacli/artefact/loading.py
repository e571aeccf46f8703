"""Read an artefact back: build the architecture, apply the plan, load strictly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pelacli.artefact.rebuilding import read_config, rebuild
from pelacli.errors import RequestError
from pelacli.manifest import digests, document, lookup
from pelacli.manifest.document import Manifest
from pelacli.models import carried, libraries, opening
from pelacli.models.inputs import tokenizer_of
from pelacli.models.opened import OpenModel
from pelacli.models.weight_files import load_strictly, stored_tensors


@dataclass
class Artefact:
    """An artefact in memory: the model as opened, and its manifest."""

    opened: OpenModel
    manifest: Manifest

    @property
    def module(self) -> nn.Module:
        return self.opened.module


def load(path: Path) -> Artefact:
    """Read an artefact back.

    Raises:
        RequestError: it is no artefact, or a file of it is damaged or doesn't fit; the message
            names the file and the tensor.
    """
    manifest = document.read(path)
    adapter = libraries.library(manifest.library)
    config = read_config(path)
    module = rebuild(path, manifest)
    load_strictly(module, stored_tensors(digests.weight_files(path)), path, tied=manifest.tied)
    module.eval()
    inputs = adapter.inputs(module, path)
    opened = OpenModel(
        module,
        str(path),
        manifest.library,
        config,
        carried.carried(path, tokenizer_of(inputs)),
        manifest.source,
        inputs,
        adapter.head(module),
    )
    return Artefact(opened, manifest)


def open(ref: str, **how: Any) -> tuple[OpenModel, Manifest | None]:
    """Open whatever a user may name: an artefact, a run directory (its last step), or a model.

    Args:
        how: for a model, the keyword arguments of `models.open`.

    Returns:
        (the opened model, its manifest where it is an artefact).
    """
    path = lookup.latest(Path(ref))
    if path is None:
        return opening.open(ref, **how), None
    if how.get("weights", "pretrained") != "pretrained":
        raise RequestError(f"{ref}: is an artefact and has its weights; leave --weights out")
    artefact = load(path)
    return artefact.opened, artefact.manifest


def input_digest(source: str, opened: OpenModel) -> str:
    """What identifies a step's input: its weights' digest; for random weights, their description.

    Args:
        source: what was opened; an artefact is identified by its own weights, not its origin's.
    """
    path = lookup.latest(Path(source))
    if path is not None:
        return digests.weights_digest(path)
    return opened.source.digest or f"{opened.source.architecture}:{opened.source.weights}"
