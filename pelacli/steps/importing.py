"""A low-rank checkpoint of other code → artefact."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pelacli import console
from pelacli.artefact import changes, foreign_pairs, loading, saving
from pelacli.errors import RequestError
from pelacli.lowrank import find, replace
from pelacli.manifest import versions
from pelacli.manifest.document import Manifest, StepRecord
from pelacli.models import checkpoint_file, hub
from pelacli.models.hub import Files
from pelacli.models.opened import OpenModel
from pelacli.models.weight_files import StoredTensor, load_strictly
from pelacli.models.wrapped_names import attempts
from pelacli.steps import outputs


@dataclass
class Imported:
    """What was made of a checkpoint: the artefact at ``path``."""

    path: Path
    checkpoint: Path
    manifest: Manifest

    @property
    def ranks(self) -> dict[str, int]:
        """Low-rank layer → its rank."""
        return {row.name: row.rank for row in self.manifest.layers if row.rank is not None}


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
    tensors = read(checkpoint, output)
    return write(_open_dense(model), model, tensors, checkpoint, output, start)


def read(checkpoint: Path, output: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, where there is a place for its artefact.

    Raises:
        RequestError: the checkpoint can't be read, or the output holds something else.
    """
    if not checkpoint.is_file():
        raise RequestError(f"{checkpoint}: there is no such file; name a checkpoint")
    saving.check_output(output, str(checkpoint))
    return checkpoint_file.read(checkpoint)


def write(
    opened: OpenModel,
    model: str,
    tensors: dict[str, Tensor],
    checkpoint: Path,
    output: Path,
    start: float,
) -> Imported:
    """Make a dense model low-rank as the tensors of a checkpoint are, and write it.

    Args:
        model: what the user calls it.
        start: of the work, by `time.perf_counter`.
    """
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
    with outputs.writing(output), console.file_progress(f"writing {output}"):
        saving.save(opened, manifest, output)
    return Imported(output, checkpoint, manifest)


def _open_dense(model: str) -> OpenModel:
    """The architecture of a dense model: from its directory or file, else with random weights.

    Raises:
        RequestError: there is no such model, or it is low-rank.
    """
    is_local = Path(model).exists()
    if is_local or hub.artefact(model, Files.SMALL) is None:
        weights = "pretrained" if is_local else "random"
        with console.file_progress(f"opening {model}"):
            opened, before = loading.open(model, as_stored=True, weights=weights)
        if before is None:
            return opened
    raise RequestError(f"--model {model}: is low-rank already; name the dense model")


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
