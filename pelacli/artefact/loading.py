"""Read an artefact back: build the architecture, apply the plan, load strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from pelacli.artefact import changes, locating, unrecorded
from pelacli.artefact.rebuilding import REMEDY, forms_of, ranks_of, read_config, rebuild_dense
from pelacli.errors import RequestError
from pelacli.lowrank import replace
from pelacli.manifest import digests, document, integrity, lookup
from pelacli.manifest.document import Manifest, SourceRecord
from pelacli.messages import naming
from pelacli.models import carried, libraries, opening, precision
from pelacli.models.inputs import tokenizer_of
from pelacli.models.opened import OpenModel
from pelacli.models.weight_files import load_strictly, stored_tensors
from pelacli.ranks.forms import Form


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
    integrity.check(path, manifest)
    module = _low_rank(path, manifest.library, ranks_of(manifest), forms_of(manifest))
    load_strictly(module, stored_tensors(digests.weight_files(path)), path, tied=manifest.tied)
    return Artefact(_opened(path, module, manifest.library, manifest.source), manifest)


def shapes(path: Path) -> OpenModel:
    """An artefact's model without the values of its weights, which lie on "meta".

    Raises:
        RequestError: it is no artefact, its configuration is damaged, or it has no weights.
    """
    manifest = document.read(path)
    integrity.check(path, manifest, sizes_only=True)
    module = _low_rank(path, manifest.library, ranks_of(manifest), forms_of(manifest)).to("meta")
    if not digests.weight_files(path):
        raise RequestError(f"{path}: has no model.safetensors; {REMEDY}")
    return _opened(path, module, manifest.library, manifest.source)


def _load_unrecorded(
    path: Path, ranks: Mapping[str, int], forms: Mapping[str, Form], source: SourceRecord
) -> Artefact:
    """A low-rank model whose pela.json is missing, with a manifest of what can be seen of it.

    Raises:
        RequestError: a file is damaged or doesn't fit.
    """
    module = _low_rank(path, source.library, ranks, forms)
    computed = unrecorded.computed_tensors(path, module)
    load_strictly(module, chain(stored_tensors(digests.weight_files(path)), computed), path)
    opened = _opened(path, module, source.library, source)
    return Artefact(opened, changes.current(opened))


def _low_rank(
    path: Path, library: str, ranks: Mapping[str, int], forms: Mapping[str, Form]
) -> nn.Module:
    """The architecture that config.json describes, with layers of these ranks, to be filled."""
    carried.check_read_files(path)
    read_config(path)  # or its error, before the library's own
    module = rebuild_dense(path, library)
    replace.replace_empty(module, ranks, forms)
    return module


def _opened(path: Path, module: nn.Module, library: str, source: SourceRecord) -> OpenModel:
    """The filled module with what its directory says about it."""
    module.eval()
    adapter = libraries.library(library)
    with naming(str(path), REMEDY):
        inputs = adapter.inputs(module, path)
    return OpenModel(
        module,
        str(path),
        library,
        read_config(path),
        carried.carried(path, tokenizer_of(inputs)),
        source,
        inputs,
        adapter.head(module),
    )


def open(ref: str, *, as_stored: bool = False, **how: Any) -> tuple[OpenModel, Manifest | None]:
    """Open whatever a user may name: an artefact, a run directory (its last step), or a model.

    Args:
        as_stored: leave weights in half precision as they are in their file. Else they are float32
            to compute with, but those of transformers, whose models take inputs of any precision.
        how: for a model, the keyword arguments of `models.open`.

    Returns:
        (the opened model, its manifest where it is an artefact).
    """
    weights = how.get("weights", "pretrained")
    is_file = weights not in ("pretrained", "random")
    path = lookup.latest(Path(ref)) if is_file else locating.locate(ref)
    if path is None:
        seen = unrecorded.layers_and_source(Path(ref))
        if seen is None:
            opened = opening.open(ref, **how)
            if as_stored:
                precision.as_in_file(opened)
            return opened, None
        unrecorded.check_settings(ref, how.get("model_args"), weights)
        return _computable(_load_unrecorded(Path(ref), *seen), as_stored)
    if weights != "pretrained":
        raise RequestError(f"{ref}: is an artefact and has its weights; leave --weights out")
    artefact = load(path)
    if not Path(ref).exists():
        artefact.opened.ref = ref  # of the hub: its cache is no name for people
    return _computable(artefact, as_stored)


def _computable(artefact: Artefact, as_stored: bool) -> tuple[OpenModel, Manifest]:
    if not as_stored:
        precision.ready_to_run(artefact.opened)
    return artefact.opened, artefact.manifest


def input_digest(source: str, opened: OpenModel) -> str:
    """What identifies a step's input: its weights' digest; for random weights, their description.

    Args:
        source: what was opened; an artefact is identified by its own weights, not its origin's.
    """
    path = locating.locate(source)
    if path is not None:
        return digests.weights_digest(path)
    return opened.source.digest or f"{opened.source.architecture}:{opened.source.weights}"
