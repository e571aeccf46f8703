"""A low-rank checkpoint of other code → artefact."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pelacli.artefact import changes, foreign_pairs, loading, saving
from pelacli.errors import RequestError
from pelacli.lowrank import find, replace
from pelacli.manifest import versions
from pelacli.manifest.document import Manifest, StepRecord
from pelacli.models import checkpoint_file
from pelacli.models.opened import OpenModel
from pelacli.models.weight_files import StoredTensor, load_strictly
from pelacli.models.wrapped_names import attempts


@dataclass
class Imported:
    """What was made of a checkpoint."""

    path: Path
    checkpoint: Path
    manifest: Manifest


def run(checkpoint: Path, model: str, output: Path) -> Imported:
    """Write an artefact with the weights of a checkpoint.

    Args:
        checkpoint: a safetensors or ``.pth`` file, whose low-rank layers are pairs of matrices
            (`pelacli.artefact.foreign_pairs`). All other tensors have the dense model's names.
        model: the dense model that was factorised, for its architecture; its weights are not used.
        output: a new directory, an empty one, or an artefact, which is replaced.

    Raises:
        RequestError: the checkpoint can't be read, or doesn't fit the model.
        PelaError: the disk refuses.
    """
    start = time.perf_counter()
    if not checkpoint.is_file():
        raise RequestError(f"{checkpoint}: there is no such file; name a checkpoint")
    saving.check_output(output, str(checkpoint))
    tensors = checkpoint_file.read(checkpoint)
    weights = "pretrained" if Path(model).exists() else "random"
    opened, before = loading.open(model, as_stored=True, weights=weights)
    if before is not None:
        raise RequestError(f"--model {model}: is low-rank already; name the dense model")
    fill(opened, tensors, checkpoint)
    manifest = changes.current(opened)
    manifest.history.append(
        StepRecord(
            step="import",
            recipe={"checkpoint": checkpoint.name, "model": model},
            versions=versions.versions(),
            seconds=time.perf_counter() - start,
        )
    )
    saving.save(opened, manifest, output)
    return Imported(output, checkpoint, manifest)


def fill(opened: OpenModel, tensors: dict[str, Tensor], file: Path) -> None:
    """Make a dense model low-rank as a checkpoint is, and fill it with that.

    Raises:
        RequestError: a tensor of the checkpoint has no place in the model, or the other way round.
    """
    layers = {
        layer.name: layer.shape
        for layer in find.find_layers(opened.module)
        if layer.kind in ("linear", "conv1d")
    }
    names = _unwrapped(opened.module, tensors)
    renamed, ranks = foreign_pairs.in_our_names(names, layers, file)
    computed = {
        name for name, _ in opened.module.named_buffers()
    } - opened.module.state_dict().keys()
    replace.replace_empty(opened.module, ranks)
    stored = [
        StoredTensor(file, name, tensor)
        for name, tensor in renamed.items()
        if name not in computed  # older code keeps tables that the model computes
    ]
    load_strictly(opened.module, stored, file)
    opened.stored = {}
    opened.module.eval()


def _unwrapped(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what a wrapper put in front of their names, where more of them then have
    the names of the model's."""
    own = module.state_dict().keys()
    best, most = tensors, len(own & tensors.keys())
    for unwrapping in attempts(tensors):
        renamed = {new: tensors[old] for old, new in unwrapping.names.items()}
        if len(own & renamed.keys()) > most:
            best, most = renamed, len(own & renamed.keys())
    return best
